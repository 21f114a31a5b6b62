"""What people and machines hear while something runs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from logitbank.cli import app
from logitbank.pipeline.cache_teacher.progress import Progress
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.processes.bar import progress_bar
from logitbank.pipeline.views import Views
from logitbank.stores import open_store

ROOT = Path(__file__).parents[1]
TEACHER = ("cache-teacher", "--teacher", "mlp", "--weights", "random-init", "--mean", "0.5", "--std", "0.25")


def test_a_log_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar(30, "row", every=0.1) as bar:
        for number in range(30):
            bar.set_postfix(accuracy=number)
            bar.update()
            time.sleep(0.01)
    lines = capsys.readouterr().err.splitlines()
    assert 1 <= len(lines) <= 4
    assert all("/30 [" in line and "accuracy=" in line for line in lines)
    with progress_bar(30, "row", every=60) as bar:
        bar.update(30)
    assert capsys.readouterr().err == ""


def test_progress_moves_with_every_batch(tmp_path: Path) -> None:
    split = load_split("digits")
    heard: list[Progress] = []
    teacher = build_teacher(split, "mlp", "random-init", Views(), compute=Compute(batch_size=100))
    cache_teacher(
        teacher, tmp_path / "s.zarr", encoding=Encoding(kind="dense", num_classes=split.num_classes), block_rows=700,
        on_progress=heard.append,
    )  # fmt: skip
    shown = [progress.done + progress.under_way for progress in heard]
    assert len([progress for progress in heard if progress.rows]) == 3
    assert len(heard) >= 15
    assert shown == sorted(shown)
    assert heard[-1].done == len(split)
    assert heard[-1].under_way == 0


def test_control_c_says_how_to_go_on(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "logitbank.cli", *TEACHER, "--out", "s.zarr", "--log-json", "--transform"]
    command += ["flip-crop", "--views", "300", "--batch-size", "256"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it for what runs behind them
    )  # fmt: skip
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["event"] == "progress"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "stopped; the same command goes on in s.zarr with the rows that are not there yet"
    store = open_store(tmp_path / "s.zarr", allow_incomplete=True)
    assert not store.teacher("teacher").complete


def events(*arguments: str) -> list[dict[str, object]]:
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.fixture
def student(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Options of a short student."""
    monkeypatch.chdir(tmp_path)
    data = ("--data", "digits?limit=60")
    CliRunner().invoke(app, [*TEACHER, *data, "--out", "s.zarr"], catch_exceptions=False)
    return ("--store", "s.zarr", *data, "--epochs", "2", "--log-json", "--student", "linear")


def test_stage_two_speaks_json_too(student: tuple[str, ...]) -> None:
    heard = events("train-student", *student, "--out", "run")
    assert [event["event"] for event in heard if event["event"] != "warning"] == ["epoch", "epoch", "finished"]
    assert [event["epoch"] for event in heard if event["event"] == "epoch"] == [1, 2]
    assert heard[-1]["out"] == "run"
    assert heard[-1]["already_there"] is False
    assert events("train-student", *student, "--out", "run")[-1]["already_there"] is True


@pytest.mark.slow
def test_a_sweep_speaks_json_too(student: tuple[str, ...]) -> None:
    heard = events("sweep", *student, "--out", "sweep", "--loss", "ce", "--seeds", "1")
    counts = {"done": 1, "skipped": 0, "failed": 0, "elsewhere": 0}
    assert heard[-1] == {"event": "finished", "out": "sweep", **counts}
    assert {event["run"] for event in heard[:-1] if event["event"] == "epoch"} != {""}
