"""Stage one as a user types it, in this process: parts, trials, logs, and the teachers that need no training."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from logitbank import cli
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.folds import FoldPlan
from logitbank.stores import open_store
from logitbank.stores.locks import locked


class Terminal:
    """Types a command and reads the answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, command: str, code: int = 0) -> str:
        """Standard output of a command that works, standard error of one that ends with another code."""
        self._monkeypatch.setattr(sys, "argv", ["cli", *command.split()])
        with pytest.raises(SystemExit) as exited:
            cli.main()
        out, error = self._capsys.readouterr()
        assert (exited.value.code or 0) == code, error
        return error if code else out


@pytest.fixture
def type_in(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Terminal:
    monkeypatch.chdir(tmp_path)
    return Terminal(monkeypatch, capsys)


CONTROL = "cache-teacher --teacher mlp:16 --weights random-init"


def test_processes_of_a_job_array(type_in: Terminal, tmp_path: Path) -> None:
    """A process leaves what another one has claimed, and says only what it wrote itself."""
    views = "--views 2 --transform flip-crop"
    with locked(tmp_path / "s.zarr.teacher@1-0"):
        said = type_in(f"{CONTROL} {views} --out s.zarr --part 1/2")
        assert said == "wrote 1850 rows of s.zarr; other processes still write the rest\n"
        said = type_in(f"{CONTROL} {views} --out s.zarr --part 0/2")
        assert said == "nothing was left to write of s.zarr; other processes still write the rest\n"
        assert "unfinished" in type_in("verify s.zarr", code=2)
    assert type_in(f"{CONTROL} {views} --out s.zarr --part 0/2").startswith("wrote s.zarr: 1437 rows x 2 views")
    assert {path.name for path in tmp_path.iterdir()} == {"s.zarr"}
    assert type_in("verify s.zarr --data digits").startswith("sound")
    assert "expected i/n" in type_in(f"{CONTROL} --out s.zarr --part 2/2", code=2)


def test_a_dry_run_writes_nothing(type_in: Terminal, tmp_path: Path) -> None:
    said = type_in(f"{CONTROL} --out s.zarr --dry-run --encoding topk --top-k 3")
    assert "1437 rows at" in said
    assert "KL T^2" in said
    machine = json.loads(type_in(f"{CONTROL} --out s.zarr --dry-run --log-json"))
    assert machine["event"] == "dry-run"
    assert machine["num_rows"] == 1437
    assert machine["bytes"] > 1437 * 9
    assert list(tmp_path.iterdir()) == []


def test_a_log_for_machines(type_in: Terminal) -> None:
    events = [json.loads(line) for line in type_in(f"{CONTROL} --out s.zarr --log-json").splitlines()]
    assert [event["event"] for event in events] == ["progress", "progress", "finished"]
    assert events[1]["done"] == events[1]["total"] == 1437
    assert events[1]["accuracy"] == pytest.approx(events[2]["summary"]["accuracy"], abs=1e-9)
    assert events[1]["seconds_left"] == 0


def test_a_trial_on_a_few_examples(type_in: Terminal) -> None:
    type_in("train-teacher --teacher mlp:16 --epochs 2 --folds 3 --out t")
    assert "100 rows" in type_in("cache-teacher --teacher mlp:16 --weights t --limit 100 --out s.zarr")
    store = open_store(Path("s.zarr"))
    assert store.folds is not None
    whole = FoldPlan(num_folds=3).assign(load_split("digits"))
    assert (store.folds == whole[np.arange(100) * 1437 // 100]).all()
    trained = type_in("train-student --store s.zarr --data digits?limit=100 --epochs 1 --student linear --out r")
    assert "test accuracy" in trained
    assert "expected at least 0" in type_in(f"{CONTROL} --out n.zarr --limit -1", code=2)


def test_folds_for_teachers_trained_elsewhere(type_in: Terminal) -> None:
    said = type_in("assign-folds --folds 4 --fold-strategy hash --fold-seed 2 --out a")
    assert said == "wrote a: 1437 rows in 4 folds (hash, seed 2)\n"
    digits = load_split("digits")
    with np.load("a/folds.npz", allow_pickle=False) as file:
        assert (file["key"] == digits.keys).all()
        assert (file["label"] == digits.labels).all()
        folds = file["fold"]
    assert (folds == FoldPlan(num_folds=4, strategy="hash", seed=2).assign(digits)).all()
    with Path("a/folds.csv").open() as file_csv:
        lines = list(csv.DictReader(file_csv))
    assert [int(line["fold"]) for line in lines] == folds.tolist()
    assert [int(line["key"], 16) for line in lines] == digits.keys.tolist()
    assert "already there: a" in type_in("assign-folds --folds 4 --fold-strategy hash --fold-seed 2 --out a")
    assert "something else" in type_in("assign-folds --folds 4 --out a", code=2)
    assert "expected at least 2" in type_in("assign-folds --folds 0 --out b", code=2)


def test_a_forest_without_a_training_command(type_in: Terminal) -> None:
    forest = "sklearn:ExtraTreesClassifier?n_estimators=20"
    assert "(out-of-fold)" in type_in(f"cache-teacher --teacher {forest} --folds 3 --out s.zarr")
    assert "proof: fitted here" in type_in("inspect s.zarr")
    assert "cache-teacher itself" in type_in(f"train-teacher --teacher {forest} --out t", code=2)
    assert "leave it out" in type_in(f"cache-teacher --teacher {forest} --weights t --out n.zarr", code=2)
    assert "as they are" in type_in(f"cache-teacher --teacher {forest} --views 2 --out n.zarr", code=2)


def test_a_leak_is_said_aloud(type_in: Terminal, capsys: pytest.CaptureFixture[str]) -> None:
    """Fold 1 of these answers is right everywhere, the others in half of the rows."""
    digits = load_split("digits")
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1437, 10)).astype(np.float32)
    folds = FoldPlan(num_folds=3).assign(digits)
    right = (folds == 1) | (rng.random(1437) < 0.5)
    logits[np.flatnonzero(right), digits.labels[right]] = 9
    np.save("logits.npy", logits)
    capsys.readouterr()
    sys.argv[1:] = ["cache-teacher", "--teacher", "array:logits.npy", "--folds", "3", "--out", "s.zarr"]
    with pytest.raises(SystemExit):
        cli.main()
    assert "warning: a fold teacher may have been trained on its own fold" in capsys.readouterr().err
    assert [leak["fold"] for leak in open_store(Path("s.zarr")).teacher().summary["leaks"]] == [1]


def test_own_code_for_teacher_and_views(type_in: Terminal, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net(num_classes, input_shape):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, num_classes))\n"
        "def darker():\n"
        "    return lambda images, seeds: images // 2\n"
    )
    said = type_in(
        "cache-teacher --teacher own.py:net --weights random-init --transform own.py:darker --views 2 --out s.zarr"
    )
    assert said.startswith("wrote s.zarr: 1437 rows x 2 views")
    assert open_store(Path("s.zarr")).views["transform"] == "own.py:darker"
