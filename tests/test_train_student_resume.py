"""A run that was stopped goes on to the very bits of one that was not; a folder belongs to one run."""

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.models.signature import SIGNATURE
from logitbank.pipeline.models.weights import load_state, weights_digest
from logitbank.pipeline.train_student.folder import (
    CHECKPOINT,
    CLASSES,
    CONFUSION,
    HISTORY,
    RESULT,
    SEARCH,
    SETTINGS,
    WEIGHTS,
)
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("stores") / "s.zarr"
    answers = NetworkTeacher(
        digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views(transform="flip-crop", num_views=2)
    )
    cache_teacher(answers, path, encoding=Encoding(kind="topk", num_classes=10, top_k=3))
    return open_store(path)


def digest(folder: Path) -> str:
    return weights_digest(load_state(folder / WEIGHTS))


class Stop:
    """Ctrl-C at the end of an epoch."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def __call__(self, record: EpochRecord) -> None:
        if record.epoch == self.epoch:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"optimizer": "adamw", "ema_decay": 0.9, "schedule": "one-cycle", "warmup_epochs": 0.5},
        {"select": "best", "weight_bits": 4, "accumulate": 3, "schedule": "step"},
        {"precision": "bfloat16", "momentum": 0.0, "schedule": "constant"},
    ],
    ids=["plain", "adamw-ema", "best-4bit", "bfloat16"],
)
def test_a_stopped_run_goes_on_to_the_same_bits(
    store: Store, digits: Split, digits_test: Split, tmp_path: Path, settings: dict[str, object]
) -> None:
    asked = {"student": "cnn", "epochs": 4, "seed": 3, "val_share": 0.1 if "select" in settings else 0.0, **settings}

    def run(name: str, stop: Stop | None = None) -> None:
        train(store, digits, digits_test, tmp_path / name, on_epoch=stop, asked=asked)

    run("whole")
    for epoch in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            run("stopped", Stop(epoch))
        assert sorted(path.name for path in (tmp_path / "stopped").iterdir()) == [CHECKPOINT, HISTORY, SETTINGS]
    run("stopped")
    assert digest(tmp_path / "stopped") == digest(tmp_path / "whole")
    whole, stopped = (json.loads((tmp_path / name / RESULT).read_text()) for name in ("whole", "stopped"))
    assert whole["test"] == stopped["test"]
    assert whole["against_teacher"] == stopped["against_teacher"]
    files = {path.name for path in (tmp_path / "stopped").iterdir()}
    assert files == {CLASSES, CONFUSION, HISTORY, RESULT, SETTINGS, SIGNATURE, WEIGHTS}


def test_a_killed_process_goes_on_to_the_same_bits(store: Store, tmp_path: Path) -> None:
    """SIGKILL, twice, wherever it hits."""
    command = [sys.executable, str(ROOT / "cli.py"), "train-student", "--store", str(store.path), "--student", "cnn"]
    command += ["--epochs", "8", "--threads", "1", "--data", "digits"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    killed = tmp_path / "killed"
    for lines in (2, 5):
        process = subprocess.Popen([*command, "--out", str(killed)], env=environment, stderr=subprocess.DEVNULL)
        while not (killed / HISTORY).exists() or len((killed / HISTORY).read_text().splitlines()) < lines:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (killed / CHECKPOINT).exists()
        assert not (killed / RESULT).exists()
    for name in ("killed", "whole"):
        subprocess.run(
            [*command, "--out", str(tmp_path / name)], env=environment, check=True, stdout=subprocess.DEVNULL
        )
    assert digest(killed) == digest(tmp_path / "whole")


def test_a_stopped_run_of_an_earlier_version_is_refused_as_such(store: Store, digits: Split, tmp_path: Path) -> None:
    def run(stop: Stop | None = None) -> None:
        train(store, digits, None, tmp_path / "run", student="mlp:8", epochs=2, on_epoch=stop)

    with pytest.raises(KeyboardInterrupt):
        run(Stop(1))
    checkpoint = tmp_path / "run" / CHECKPOINT
    with safe_open(checkpoint, framework="pt") as file:
        content = json.loads(file.metadata()["checkpoint"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    del content["groups"]
    save_file(tensors, checkpoint, metadata={"checkpoint": json.dumps(content)})
    with pytest.raises(ValueError, match="is of an earlier version, whose stopped runs do not go on; remove it"):
        run()
    checkpoint.unlink()
    run()


def test_notes_are_those_of_all_epochs_also_when_the_run_was_stopped(
    store: Store, digits: Split, tmp_path: Path
) -> None:
    def run(name: str, stop: Stop | None = None) -> dict[str, int]:
        result = train(store, digits, None, tmp_path / name, student="mlp:8", loss="rld", epochs=3, on_epoch=stop)
        notes: dict[str, int] = result["notes"]
        return notes

    whole = run("whole")
    assert whole["rld_rows"] == 3 * len(digits)
    assert 0 < whole["rld_rows_abstained"] < whole["rld_rows"]
    with pytest.raises(KeyboardInterrupt):
        run("stopped", Stop(2))
    assert run("stopped") == whole


def test_a_folder_belongs_to_one_run(store: Store, digits: Split, tmp_path: Path) -> None:
    def run(lr: float = 0.05) -> None:
        train(store, digits, None, tmp_path / "run", epochs=3, lr=lr, on_epoch=Stop(1))

    with pytest.raises(KeyboardInterrupt):
        run()
    with pytest.raises(ValueError, match=r"other settings \(training.lr 0.05, here 0.1\); give the same ones"):
        run(lr=0.1)
    checkpoint = tmp_path / "run" / CHECKPOINT
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        run()
    checkpoint.unlink()
    with pytest.raises(KeyboardInterrupt):
        run()


def test_two_processes_do_not_train_in_one_folder(store: Store, digits: Split, tmp_path: Path) -> None:
    arguments = (store, digits, None, tmp_path / "run")
    results: list[Any] = []

    def another(record: EpochRecord) -> None:
        results.append(pool.submit(train, *arguments, epochs=1))
        with pytest.raises(TimeoutError):
            results[0].result(timeout=0.5)

    with ThreadPoolExecutor(1) as pool:
        first = train(*arguments, epochs=1, on_epoch=another)
    assert results[0].result() == json.loads(json.dumps(first))
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_option_that_is_auto_is_searched_by_cross_validation(
    store: Store, digits: Split, plain_teacher: Path, tmp_path: Path
) -> None:
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, tmp_path / "d.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=16))
    dense = open_store(tmp_path / "d.zarr")
    asked = {"loss": "sel_corrected", "settings": {"c": "auto"}, "epochs": 4, "val_share": 0.2}
    with pytest.raises(KeyboardInterrupt):
        train(dense, digits, None, tmp_path / "run", on_epoch=Stop(1), asked=asked)
    assert len(json.loads((tmp_path / "run" / SEARCH).read_text())) == 9
    result = train(dense, digits, None, tmp_path / "run", asked=asked)
    best = min(result["search"], key=lambda tried: tried["nll"])
    assert [tried["c"] for tried in result["search"]] == [10.0**power for power in range(-5, 4)]
    assert result["settings"]["terms"][0]["c"] == best["c"]
    assert result["validation"]["num_rows"] == pytest.approx(0.2 * len(digits), abs=10)
    assert result["against_teacher"]["rows"] == "validation"
    again = train(dense, digits, None, tmp_path / "again", asked=asked)
    assert again["weights_sha256"] == result["weights_sha256"]
