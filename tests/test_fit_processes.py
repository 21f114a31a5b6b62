"""Several processes train the student that one would: the same steps, each on a share of every batch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models.signature import SIGNATURE
from logitbank.pipeline.models.weights import load_state
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.folder import CHECKPOINT, CLASSES, CONFUSION, HISTORY, RESULT, SETTINGS, WEIGHTS
from logitbank.pipeline.views import Views

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s.zarr"
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    cache_teacher(
        NetworkTeacher(digits, teachers, Views()), path, encoding=Encoding(kind="dense", num_classes=10, bits=8)
    )
    return path


def train(
    count: int, store: Path, out: Path, *options: str, student: str = "mlp:16"
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    command += [str(ROOT / "cli.py"), "train-student", "--store", str(store), "--out", str(out), "--threads", "1"]
    command += ["--student", student, "--optimizer", "adamw", "--lr", "0.002", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_two_processes_train_the_student_that_one_does(store: Path, tmp_path: Path) -> None:
    options = ("--epochs", "3", "--val-share", "0.1", "--accumulate", "2", "--ema-decay", "0.9", "--select", "best")
    for count in (1, 2):
        done = train(count, store, tmp_path / str(count), *options)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test accuracy") == 1
    files = {path.name for path in (tmp_path / "2").iterdir()}
    assert files == {CLASSES, CONFUSION, HISTORY, RESULT, SETTINGS, SIGNATURE, WEIGHTS}
    one, two = (json.loads((tmp_path / name / RESULT).read_text()) for name in "12")
    assert (one["processes"], two["processes"]) == (1, 2)
    assert two["accuracy"] == pytest.approx(one["accuracy"], abs=0.01)
    assert two["validation"]["nll"] == pytest.approx(one["validation"]["nll"], abs=1e-3)
    weights = [load_state(tmp_path / name / WEIGHTS) for name in "12"]
    for name, values in weights[0].items():  # sums in another order, through AdamW
        torch.testing.assert_close(weights[1][name], values, rtol=1e-2, atol=1e-3)


DROPOUT = """
import os
from pathlib import Path

import torch
from torch import nn

class Dropout(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.layer = nn.Linear(64, classes)

    def forward(self, x):
        x = x.flatten(1)
        if self.training:
            mask = (torch.rand(64) > 0.5).float()
            with Path(__file__).with_name(f"masks{os.environ['RANK']}").open("a") as file:
                print("".join(map(str, mask.int().tolist())), file=file)
            x = 2 * mask * x
        return self.layer(x)

def dropout(num_classes, input_shape): return Dropout(num_classes)
"""


def test_a_run_of_two_processes_goes_on_to_the_same_bits(store: Path, tmp_path: Path) -> None:
    """The second epoch's checkpoint, put back as if the run had been killed there, leads to the same student.

    That holds also where each process draws dropout masks, which are its own.
    """
    (tmp_path / "net.py").write_text(DROPOUT)
    student, options = f"{tmp_path / 'net.py'}:dropout", ("--epochs", "3", "--student-bits", "4")
    code = (
        "import sys, shutil; from pathlib import Path; sys.argv[0] = 'cli'; from logitbank import cli\n"
        "from logitbank.pipeline.fit.checkpoint import Checkpoint\n"
        "save = Checkpoint.save\n"
        "def kept(self, run, training, processes):\n"
        "    save(self, run, training, processes)\n"
        "    if processes.first and len(run.history) == 2: shutil.copy(self.path, self.path.parent.parent / 'second')\n"
        "Checkpoint.save = kept\n"
        "cli.main()\n"
    )
    (tmp_path / "watched.py").write_text(code)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(tmp_path / "watched.py"), "train-student", "--store", str(store), "--out", str(tmp_path / "whole")]
    command += ["--optimizer", "adamw", "--lr", "0.002", "--threads", "1", "--student", student, *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    masks = [(tmp_path / f"masks{rank}").read_text().splitlines() for rank in (0, 1)]
    assert len(masks[0]) == len(masks[1]) > 60
    differing = sum(a != b for a, b in zip(*masks, strict=True))
    assert differing >= len(masks[0]) - 1  # but for the one check before the first step
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    (stopped / SETTINGS).write_bytes((tmp_path / "whole" / SETTINGS).read_bytes())
    (stopped / CHECKPOINT).write_bytes((tmp_path / "second").read_bytes())
    done = train(2, store, stopped, *options, student=student)
    assert done.returncode == 0, done.stderr
    assert len((stopped / HISTORY).read_text().splitlines()) == 4
    whole, resumed = load_state(tmp_path / "whole" / WEIGHTS), load_state(stopped / WEIGHTS)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_share_of_a_batch() -> None:
    rows = torch.arange(11)
    shares = [Processes(number=number, count=3).share(rows) for number in range(3)]
    assert torch.cat(shares).tolist() == rows.tolist()
    assert {len(share) for share in shares} <= {3, 4}
    Processes().check(batch_size=1, num_rows=1)
    with pytest.raises(ValueError, match="3 processes share each batch, which has 5 examples; expected at least 6"):
        Processes(count=3).check(batch_size=5, num_rows=100)


@pytest.mark.parametrize(("command", "refused"), [("train-teacher", True), ("sweep", True), ("train-student", False)])
def test_commands_of_one_process_are_refused_under_torchrun(command: str, refused: bool, tmp_path: Path) -> None:
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "cli.py"), command, "--out", "o", "--store", "none.zarr"][: 5 if refused else 7],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert ("call it without torchrun" in done.stderr) == refused
