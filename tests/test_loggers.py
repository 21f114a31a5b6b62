"""Every logger with its real library, offline, and what it wrote read back, of runs that were stopped and went on."""

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.train_student.loggers.all_of import Loggers
from logitbank.pipeline.train_student.loggers.group import grouped
from logitbank.pipeline.train_student.loggers.spec import read_loggers
from logitbank.pipeline.train_student.loggers.tensorboard_files import FOLDER, TensorBoardFiles
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views

OFFLINE = "wandb?project=p&mode=offline"
OF_EPOCH = {"loss/training", "accuracy/training", "accuracy/validation", "nll/validation", "lr", "seconds"}
OF_TEST = {
    f"{name}/test" for name in ("accuracy", "top5_accuracy", "balanced_accuracy", "f1", "auc", "nll", "brier", "ece")
}
MLFLOW = (  # what its own libraries warn of
    "ignore::sqlalchemy.exc.SADeprecationWarning",
    "ignore::DeprecationWarning:mlflow",
    "ignore::DeprecationWarning:alembic",
)


@pytest.fixture(scope="module")
def store(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("logged") / "s.zarr"
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, path, encoding=Encoding(kind="dense", num_classes=10, bits=8))
    return path


@pytest.fixture
def run(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Three epochs; what libraries write lies in the test's folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    return Run(store=str(store), student="mlp:8", training=Training(epochs=3), val_share=0.1, workers=0)


def stopped_and_gone_on(run: Run, out: Path) -> tuple[list[EpochRecord], dict[str, Any]]:
    """Stops a run in its second epoch, and trains it to its end."""

    def stop(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_student(run, out, on_epoch=stop)
    records: list[EpochRecord] = []
    return records, train_student(run, out, on_epoch=records.append)


def of_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder))
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def of_wandb(file: Path) -> list[Any]:
    """The records of an offline run: a log in LevelDB's format behind a header of seven bytes."""
    from wandb.proto import wandb_internal_pb2

    made: Any = wandb_internal_pb2

    data, place, whole, found = file.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        size, kind = struct.unpack("<HB", data[place + 4 : place + 7])
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = made.Record()
            record.ParseFromString(whole)
            found.append(record)
            whole = b""
    return found


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard")
def test_tensorboard_holds_every_epoch_once(run: Run, tmp_path: Path) -> None:
    records, result = stopped_and_gone_on(replace(run, logger=("tensorboard",)), tmp_path / "run")
    found = of_tensorboard(tmp_path / "run" / FOLDER)
    assert set(found) == OF_EPOCH | OF_TEST | {"agreement/teacher", "kl/teacher"}
    assert [step for step, _ in found["loss/training"]] == [1, 2, 3]
    for record, (_, value) in zip(records, found["nll/validation"], strict=True):
        assert value == pytest.approx(record.val_nll)
    ((step, value),) = found["accuracy/test"]
    assert step == 3
    assert value == pytest.approx(result["accuracy"])


def test_wandb_holds_every_epoch_once_under_one_id(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    records, result = stopped_and_gone_on(replace(run, logger=[f"{OFFLINE}&tags=a,b&group=g"]), out)
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    kept = json.loads((out / "loggers.json").read_text())
    ((text, state),) = kept.items()
    assert text == f"{OFFLINE}&tags=a,b&group=g"
    assert [file.stem for file in files] == [f"run-{state['id']}"] * 2
    read = [record for file in files for record in of_wandb(file)]
    (first, second) = [record.run for record in read if record.HasField("run")]
    assert (first.run_id, first.project, first.run_group, first.display_name) == (state["id"], "p", "g", "run")
    assert list(second.tags) == ["a", "b"]
    config = {item.key: json.loads(item.value_json) for item in first.config.update}
    assert config["student"] == "mlp:8"
    lines = [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in read
        if record.HasField("history")
    ]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    for record, line in zip(records, lines, strict=True):
        assert line["nll/validation"] == pytest.approx(record.val_nll)
        assert set(line) >= OF_EPOCH
    summary = {
        item.key or ".".join(item.nested_key): item.value_json
        for record in read
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert float(summary["accuracy/test"]) == pytest.approx(result["accuracy"])


@pytest.mark.filterwarnings(*MLFLOW)
def test_mlflow_holds_every_epoch_once_and_runs_of_a_sweep_lie_under_one(run: Run, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/m.db"
    out, text = tmp_path / "sweep" / "run", f"mlflow?experiment=e&uri={uri}"
    for _ in range(2):
        with grouped([text], tmp_path / "sweep") as loggers:
            pass
    client: Any = MlflowClient(tracking_uri=uri)
    assert train_student(replace(run, logger=loggers), out, until=1) == {}
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert {each.info.run_name: each.info.status for each in found} == {"sweep": "FINISHED", "run": "KILLED"}
    records, result = stopped_and_gone_on(replace(run, logger=loggers), out)
    found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    parent = next(each for each in found if each.info.run_name == "sweep")
    (child,) = [each for each in found if each.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert [each.info.status for each in (parent, child)] == ["FINISHED", "FINISHED"]
    assert (child.info.run_name, child.data.tags["sweep"], len(found)) == ("run", "sweep", 2)
    assert child.data.params["student"] == "mlp:8"
    history = client.get_metric_history(child.info.run_id, "nll/validation")
    assert [each.step for each in history] == [1, 2, 3]
    assert [each.value for each in history] == pytest.approx([record.val_nll for record in records])
    assert child.data.metrics["accuracy/test"] == pytest.approx(result["accuracy"])


def test_a_logger_that_cannot_begin_is_refused_and_nothing_is_left(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in ("tensorboard", "wandb", "mlflow"):
        with monkeypatch.context() as patch:
            patch.setitem(__import__("sys").modules, kind, None)
            with pytest.raises(ValueError, match=rf"--logger {kind} needs another package: .*logitbank\[{kind}\]"):
                train_student(replace(run, logger=(kind,)), tmp_path / "run")
    with pytest.raises(ValueError, match=r"--logger wandb\?project=.*: cannot begin"):
        train_student(replace(run, logger=(f"wandb?project={'x' * 300}&mode=offline",)), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_logger_that_fails_later_is_named_once_and_training_goes_on(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, record: EpochRecord) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(TensorBoardFiles, "on_epoch", fail)
    said: list[str] = []
    result = train_student(replace(run, logger=("tensorboard",)), tmp_path / "run", on_warning=said.append)
    assert result["accuracy"] > 0.2
    assert said == ["--logger tensorboard failed, OSError: disk full; training goes on without it"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["wandbb"], "did you mean 'wandb'"),
        (["csv"], "OUT/history.csv has every epoch without one"),
        (["wandb?projct=x"], "did you mean 'project'"),
        (["wandb?project"], "expected project=VALUE"),
        (["wandb?mode=loud"], "expected online or offline"),
        (["tensorboard?dir=x"], "unknown option 'dir'"),
        (["wandb", "wandb?project=x"], "given twice"),
    ],
)
def test_a_mistake_in_a_logger_is_named(texts: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_loggers(texts)
    with pytest.raises(ValueError, match=message):
        Run(store="s.zarr", logger=texts)


def test_a_text_is_what_it_was_read_from_and_a_group_is_named_only_once(tmp_path: Path) -> None:
    text = "wandb?project=a b&tags=x,y"
    assert [str(spec) for spec in read_loggers([text])] == [text]
    with grouped(["tensorboard", text, "wandb?group=own"][:2], tmp_path / "many") as loggers:
        assert loggers == ["tensorboard", f"{text}&group=many"]
    with grouped(["wandb?group=own"], tmp_path / "many") as loggers:
        assert loggers == ["wandb?group=own"]


def test_ids_that_a_stranger_wrote_are_checked(tmp_path: Path) -> None:
    nobody: Callable[[str], None] = print
    for content in ("[]", '{"wandb": 1}', '{"wandb": {"id": 3}}', "{"):
        (tmp_path / "loggers.json").write_text(content)
        with pytest.raises(ValueError, match="loggers.json"), Loggers(["tensorboard"], tmp_path, {}, nobody):
            pass
