"""A run's curves as TensorBoard reads them, also when the run was stopped and went on."""

from dataclasses import replace
from pathlib import Path

import pytest

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.train_student.tensorboard import FOLDER
from logitbank.pipeline.views import Views


@pytest.fixture
def run(digits: Split, plain_teacher: Path, tmp_path: Path) -> Run:
    path = tmp_path / "s.zarr"
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, path, encoding=Encoding(kind="dense", num_classes=10, bits=8))
    training = Training(epochs=3)
    return Run(store=str(path), student="mlp:8", training=training, tensorboard=True)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_curves_hold_every_epoch_once(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def stop(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(replace(run, val_share=0.1), out, on_epoch=stop)
    records: list[EpochRecord] = []
    result = train_student(replace(run, val_share=0.1), out, on_epoch=records.append)
    found = curves(out / FOLDER)
    assert set(found) == {
        *("loss/training", "accuracy/training", "accuracy/validation", "nll/validation", "lr", "seconds"),
        *("accuracy/test", "nll/test", "ece/test"),
    }
    assert [step for step, _ in found["loss/training"]] == [1, 2, 3]
    for record, (_, value) in zip(records, found["nll/validation"], strict=True):
        assert value == pytest.approx(record.val_nll)
    ((step, value),) = found["accuracy/test"]
    assert step == 3
    assert value == pytest.approx(result["accuracy"])


def test_without_tensorboard_it_is_said_at_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitbank.pipeline.train_student.tensorboard.find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"--tensorboard needs another package: pip install 'logitbank\[tensorboard\]'"
    ):
        train_student(run, tmp_path / "run")
    assert not (tmp_path / "run").exists()
