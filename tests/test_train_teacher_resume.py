"""A killed train-teacher goes on: finished folds stay, the unfinished one ends with the same weights, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.models.weights import read_metadata, save_weights
from logitbank.stores.locks import locked

CLI = [sys.executable, str(Path(__file__).parents[1] / "cli.py")]
CALL = "train-teacher --data digits --teacher mlp:8 --folds 2 --epochs 8 --transform flip-crop --out"
PLAN, TRAINING = FoldPlan(num_folds=3), Training(epochs=3)


class Killed(BaseException):
    pass


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def train(split: Split, out: Path, stop: tuple[int, int] | None = None, **changes: Any) -> list[Path]:
    """Trains until the given epoch of the given fold is over."""

    def on_epoch(fold: int, record: EpochRecord) -> None:
        if (fold, record.epoch) == stop:
            raise Killed

    settings: dict[str, Any] = {
        "architecture": "cnn",
        "training": TRAINING,
        "plan": PLAN,
        "transform": "flip-crop",
        **changes,
    }
    there: list[Path] = []
    train_teachers(split, out=out, on_epoch=on_epoch, on_there=there.append, **settings)
    return there


@pytest.fixture(scope="module")
def whole(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    assert train(digits, out) == []
    return out


@pytest.mark.parametrize("stop", [(0, 1), (1, 2), (2, 3)])
def test_a_stopped_run_ends_with_the_same_bytes(
    digits: Split, whole: Path, stop: tuple[int, int], tmp_path: Path
) -> None:
    with pytest.raises(Killed):
        train(digits, tmp_path / "t", stop)
    fold, _ = stop
    left = [f"fold{n}.safetensors" for n in range(fold)] + [f"fold{fold}.checkpoint.safetensors"]
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == sorted(left)
    assert train(digits, tmp_path / "t") == [tmp_path / "t" / f"fold{n}.safetensors" for n in range(fold)]
    assert bytes_of(tmp_path / "t") == bytes_of(whole)
    assert len(train(digits, tmp_path / "t")) == 3
    assert bytes_of(tmp_path / "t") == bytes_of(whole)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": replace(TRAINING, lr=0.1)}, "training.lr 0.05, here 0.1"),
        ({"training": replace(TRAINING, epochs=4)}, "training.epochs 3, here 4"),
        ({"architecture": "mlp:8"}, "architecture cnn, here mlp:8"),
        ({"transform": "none"}, "transform flip-crop, here none"),
        ({"plan": replace(PLAN, seed=1)}, "folds.seed 0, here 1"),
        ({"plan": FoldPlan(num_folds=2)}, "fold2.* of another call"),
        ({"plan": None}, "fold0.* of another call"),
    ],
)
def test_another_call_is_refused(
    digits: Split, whole: Path, changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    before = bytes_of(whole)
    with pytest.raises(ValueError, match=message):
        train(digits, whole, **changes)
    assert bytes_of(whole) == before
    with pytest.raises(Killed):
        train(digits, tmp_path / "t", (0, 1))
    left = bytes_of(tmp_path / "t")
    if changes.get("plan", PLAN) is not None and "fold2" not in message:
        with pytest.raises(ValueError, match="other settings"):
            train(digits, tmp_path / "t", **changes)
        assert bytes_of(tmp_path / "t") == left


def test_other_data_is_refused(digits: Split, digits_test: Split, whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another teacher.*digits train, here digits test"):
        train(digits_test, whole)
    with pytest.raises(Killed):
        train(digits, tmp_path / "t", (0, 1))
    with pytest.raises(ValueError, match="other settings"):
        train(digits_test, tmp_path / "t")


def test_what_is_there_without_a_word_is_another_teacher(digits: Split, whole: Path, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    save_weights(tmp_path / "fold0.safetensors", model, {})
    with pytest.raises(ValueError, match="another teacher"):
        train(digits, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["fold0.safetensors"]
    assert read_metadata(whole / "fold0.safetensors")["versions"]["torch"] == version("torch")


def test_one_process_at_a_time(digits: Split, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "t"):
            second = pool.submit(train, digits, tmp_path / "t")
            with pytest.raises(TimeoutError):
                second.result(timeout=0.5)
            assert not (tmp_path / "t").exists()
        second.result()
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


@pytest.mark.slow
def test_killed_processes_go_on_and_two_do_not_meet(tmp_path: Path) -> None:
    """SIGKILL at any moment; while one process trains, a second waits."""

    def call(name: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*CLI, *CALL.split(), name], cwd=tmp_path, capture_output=True, text=True)

    with subprocess.Popen([*CLI, *CALL.split(), "killed"], cwd=tmp_path) as process:
        until = time.monotonic() + 60
        while not list((tmp_path / "killed").glob("*checkpoint*")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGSTOP)  # so that it is still there when the second one comes
        second = subprocess.Popen(
            [*CLI, *CALL.split(), "killed"], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert second.stderr is not None
        while "waiting for another process" not in (line := second.stderr.readline()):
            assert line, "it does not wait"
        second.kill()
        second.communicate()
        os.kill(process.pid, signal.SIGKILL)
    names = ["fold0.safetensors", "fold1.safetensors"]
    assert call("killed").stdout.splitlines()[-1] == "wrote killed/fold1.safetensors"
    assert call("whole").stdout.splitlines() == [f"wrote whole/{name}" for name in names]
    assert bytes_of(tmp_path / "killed") == bytes_of(tmp_path / "whole")
    again = call("killed")
    assert (again.returncode, again.stdout.splitlines()) == (0, [f"already there: killed/{name}" for name in names])
