"""The script for a machine with a GPU, which nobody here has: it tries itself out on CPUs."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "bench" / "gpu.sh"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(["bash", str(SCRIPT), *arguments], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [("--cpu",), ("--data",)])
def test_a_wrong_call_is_refused(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile needs a compiler on CPUs")
def test_every_step_works_on_next_to_no_data(tmp_path: Path) -> None:
    done = run("--tiny", "--out", str(tmp_path))
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(line["ok"] for line in lines if "ok" in line)
    names = {line["name"] for line in lines}
    assert {"cache-fast", "cache-compiled", "verify", "decode topk.zarr", "student-compiled", "whole"} <= names
