"""A student beside its teacher and beside the truth, epoch by epoch, and where its teacher is wrong."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import COLUMNS, EpochRecord
from logitbank.pipeline.look.report import write_report
from logitbank.pipeline.metrics import measure_where_teacher_errs
from logitbank.pipeline.train_student.compare import compare
from logitbank.pipeline.train_student.folder import HISTORY
from logitbank.pipeline.train_student.golden import parted
from logitbank.pipeline.train_student.runs import load_runs
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

STUDENT: dict[str, Any] = {"student": "linear", "loss": "soft_ce", "epochs": 10, "val_share": 0.3, "lr": 0.02}


@pytest.fixture(scope="module")
def stores(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Teachers that say the label, the class after it for half of the classes, and an unsure label, and noise."""
    folder = tmp_path_factory.mktemp("golden")
    truth = np.eye(10, dtype=np.float32)[digits.labels]
    wrong = np.eye(10, dtype=np.float32)[np.where(digits.labels < 5, digits.labels, (digits.labels + 1) % 10)]
    noise = np.random.default_rng(0).normal(size=truth.shape).astype(np.float32)
    for name, logits in (("true", 6 * truth), ("wrong", 6 * wrong), ("unsure", 2 * truth + noise)):
        np.save(folder / f"{name}.npy", logits)
        teacher = ArrayTeacher(folder / f"{name}.npy", digits, Views())
        cache_teacher(teacher, folder / f"{name}.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=32))
    return {name: open_store(folder / f"{name}.zarr") for name in ("true", "wrong", "unsure")}


def columns(out: Path) -> dict[str, list[float]]:
    with (out / HISTORY).open(newline="") as file:
        lines = list(csv.DictReader(file))
    return {name: [float(line[name]) for line in lines if line[name]] for name in COLUMNS}


def test_a_teacher_that_is_wrong_alarms_and_one_that_is_right_does_not(
    stores: dict[str, Store], digits: Split, tmp_path: Path
) -> None:
    told: dict[str, list[str]] = {}
    for name in ("wrong", "true"):
        said = told.setdefault(name, [])
        out = tmp_path / name
        result = train(stores[name], digits, None, out, golden="labels", on_warning=said.append, asked=STUDENT)
        found, measured = result["golden"], columns(out)
        assert found["alarm"] is (name == "wrong")
        assert found["last"] == measured["val_golden"][-1]
        assert found["lowest"] == min(measured["val_golden"])
        assert measured["val_proxy"][0] > measured["val_proxy"][-1] == pytest.approx(result["against_teacher"]["kl"])
        assert (found["against"], found["num_rows"]) == ("labels", result["validation"]["num_rows"])
        assert [line for line in result["warnings"] if "teacher hacking" in line] == said[-1:] * found["alarm"]
    assert len([line for line in told["wrong"] if "teacher hacking" in line]) == 1
    assert not any("teacher hacking" in line for line in told["true"])


def test_a_better_teacher_of_another_store_is_the_truth(
    stores: dict[str, Store], digits: Split, tmp_path: Path
) -> None:
    """Lossless and with the mass of its label known, its divergence is what a hand computes; and it changes nothing."""
    asked = {**STUDENT, "epochs": 2}
    plain = train(stores["wrong"], digits, None, tmp_path / "plain", asked=asked)
    result = train(stores["wrong"], digits, None, tmp_path / "r", golden=str(stores["true"].path), asked=asked)
    assert result["weights_sha256"] == plain["weights_sha256"]
    assert columns(tmp_path / "plain")["val_golden"] == []
    with pytest.raises(ValueError, match="golden"):  # a finished run that did not measure it is another one
        train(stores["wrong"], digits, None, tmp_path / "plain", golden="labels", asked=asked)
    still = {**asked, "init": str(tmp_path / "r" / "student.safetensors"), "epochs": 1, "lr": 1e-12}
    named = f"{stores['wrong'].path}?teacher=teacher"
    other = train(stores["true"], digits, None, tmp_path / "other", golden=named, asked=still)
    assert other["golden"]["proxy_last"] == pytest.approx(result["golden"]["last"], rel=1e-5)
    assert other["golden"]["last"] == pytest.approx(result["golden"]["proxy_last"], rel=1e-5)
    assert result["golden"]["against"]["digest"] == stores["true"].teacher().digest


def test_a_stopped_run_goes_on_with_both_curves(stores: dict[str, Store], digits: Split, tmp_path: Path) -> None:
    asked = {**STUDENT, "epochs": 3, "golden": "labels"}

    def stop(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    whole = train(stores["wrong"], digits, None, tmp_path / "whole", asked=asked)
    with pytest.raises(KeyboardInterrupt):
        train(stores["wrong"], digits, None, tmp_path / "r", asked=asked, on_epoch=stop)
    again = train(stores["wrong"], digits, None, tmp_path / "r", asked=asked)
    assert again["golden"] == whole["golden"]
    for name in ("val_proxy", "val_golden"):
        assert columns(tmp_path / "r")[name] == columns(tmp_path / "whole")[name]


@pytest.mark.parametrize(
    ("golden", "settings", "message"),
    [
        ("labels", {"val_share": 0.0}, "--golden is measured on held-out rows; pass --val-share"),
        ("{wrong}", {}, "is the student's own teacher"),
        ("none.zarr", {}, "none.zarr"),
        ("{true}?teacher=nobody", {}, "nobody"),
        ("labels", {"student": "sklearn:Ridge"}, "--golden does nothing here"),
    ],
)
def test_what_would_measure_nothing_is_refused(
    stores: dict[str, Store], digits: Split, tmp_path: Path, golden: str, settings: dict[str, Any], message: str
) -> None:
    named = golden.format(**{name: store.path for name, store in stores.items()})
    asked = {name: value for name, value in STUDENT.items() if name == "val_share" or "student" not in settings}
    with pytest.raises(ValueError, match=message):
        train(stores["wrong"], digits, None, tmp_path / "r", golden=named, asked={**asked, **settings})
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("proxy", "golden", "alarm"),
    [
        ([5, 4, 3, 2, 1.5, 1.2, 1, 0.9], [3, 2, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6], True),  # a U in the plane of both
        ([5, 4, 3, 2, 1.5, 1.2, 1, 0.9], [3, 2, 1.9, 1.8, 1.7, 1.6, 1.5, 1.4], False),  # both fall
        ([5, 4, 4.1, 4.2, 4.3, 4.4, 4.5, 4.6], [3, 2, 2.1, 2.2, 2.3, 2.4, 2.5, 2.6], False),  # overfits, both rise
        ([5, 4, 3, 2, 1.5, 1.2, 1, 0.9], [3, 2, 2.3, 2.1, 2.2, 2.1, 2.3, 2.2], False),  # trembles
        ([5, 4, 3, 2, 1.5, 1.2], [3, 2, 2.1, 2.2, 2.3, 2.4], False),  # four epochs are too few
        ([1.0], [1.0], False),
        ([1.0] * 9, [1.0] * 9, False),
    ],
)
def test_the_alarm_wants_a_trend_of_both(proxy: list[float], golden: list[float], alarm: bool) -> None:
    assert parted(proxy, golden) is alarm


def test_noise_about_a_lowest_value_seldom_alarms() -> None:
    """The level of the test holds: of flat golden curves with a falling proxy, few."""
    rng = np.random.default_rng(0)
    alarms = [parted(list(np.linspace(2, 1, 40)), list(rng.normal(size=40))) for _ in range(200)]
    assert sum(alarms) <= 8


def test_where_the_teacher_errs_is_told_apart() -> None:
    labels = torch.tensor([0, 0, 1, 1, 2, -1])
    teacher, student = (one_hot(classes) for classes in ([0, 0, 1, 2, 0, 0], [0, 1, 1, 2, 2, 0]))
    assert measure_where_teacher_errs(student, teacher, labels) == {
        **{"num_teacher_wrong": 2, "accuracy_teacher_right": pytest.approx(2 / 3)},
        **{"accuracy_teacher_wrong": 0.5, "agreement_teacher_wrong": 0.5},
    }
    never = measure_where_teacher_errs(student[:3], teacher[:3], labels[:3])
    assert (never["num_teacher_wrong"], never["accuracy_teacher_wrong"]) == (0, None)


def one_hot(classes: list[int]) -> Tensor:
    return torch.eye(3)[torch.tensor(classes)]


def test_runs_are_compared_where_their_teacher_errs_and_beside_noise(
    stores: dict[str, Store], digits: Split, digits_test: Split, tmp_path: Path
) -> None:
    """A student of a teacher that knows nothing is the control; both curves are drawn."""
    asked = {**STUDENT, "epochs": 3, "golden": "labels"}
    for loss in ("soft_ce", "ce"):
        train(stores["wrong"], digits, digits_test, tmp_path / "runs" / loss, asked={**asked, "loss": loss})
    train(stores["unsure"], digits, digits_test, tmp_path / "runs" / "unsure", asked=asked)
    methods = load_runs(tmp_path / "runs")
    assert set(methods) == {"ce", "soft_ce store=wrong", "soft_ce store=unsure"}
    results = {name: {seed: run.result for seed, run in runs.items()} for name, runs in methods.items()}
    rows = {row.name: row for row in compare(results, "ce", "agreement_teacher_wrong")}
    assert rows["soft_ce store=wrong"].mean > 0.8 > 0.2 > rows["ce"].mean
    assert (rows["ce"].heading, rows["ce"].higher_is_better) == ("agreement_teacher_wrong %", False)
    page = tmp_path / "page.html"
    write_report(methods, list(rows.values()), page, title="t", failed={})
    text = page.read_text()
    assert "divergence to the truth" in text
    assert "its mistakes repeated %" in text
