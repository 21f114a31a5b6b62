"""Every kind of teacher: scikit-learn's estimators, untrained networks, other precisions; and leaks that are caught."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.sound import ask_first
from logitbank.pipeline.cache_teacher.summary import leak_warning, suspected_leaks
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.estimators import EstimatorTeacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.weights import load_state
from logitbank.pipeline.views import Views
from logitbank.stores import open_store


@pytest.fixture(scope="module")
def noisy_table() -> Split:
    """Two classes; the best possible accuracy is about 0.8, since a fifth of the labels are wrong."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(1200, 4)).astype(np.float32)
    y = ((x[:, 0] + x[:, 1] > 0) ^ (rng.random(1200) < 0.2)).astype(np.int64)
    return Split(name="t", split="train", spec="t", samples=x, labels=y, num_classes=2)


LOSSLESS = Encoding(kind="dense", num_classes=2, bits=32)


def test_a_forest_answers_out_of_fold(noisy_table: Split, tmp_path: Path) -> None:
    """Each row's answer is that of a forest fitted on the other folds: refitted here, bit for bit."""
    from sklearn.ensemble import RandomForestClassifier

    plan = FoldPlan(num_folds=3)
    answers = EstimatorTeacher("sklearn:RandomForestClassifier?n_estimators=10&floor=1e-3", noisy_table, plan=plan)
    summary = cache_teacher(answers, tmp_path / "s.zarr", encoding=LOSSLESS)
    teacher = open_store(tmp_path / "s.zarr").teacher()
    folds = plan.assign(noisy_table)
    for fold in range(3):
        rest, own = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        scaling = fit_preprocessing(noisy_table, rest)
        x = scaling(torch.from_numpy(noisy_table.samples)).numpy()
        forest = RandomForestClassifier(n_estimators=10, random_state=fold).fit(x[rest], noisy_table.labels[rest])
        expected = np.log(np.maximum(forest.predict_proba(x[own]), 1e-3)).astype(np.float32)
        assert (teacher.slab(0)["logit"][own] == expected).all()
    assert summary["kind"] == "out-of-fold"
    assert 0.65 < summary["accuracy"] < 0.85
    assert summary["leaks"] == []
    assert teacher.folds is not None
    assert teacher.folds["proof"] == "fitted here"
    again = EstimatorTeacher("sklearn:RandomForestClassifier?n_estimators=10&floor=1e-3", noisy_table, plan=plan)
    assert cache_teacher(again, tmp_path / "s.zarr", encoding=LOSSLESS) == summary


def test_estimators_on_images_with_few_labels(digits: Split) -> None:
    labels = digits.labels.copy()
    labels[::2] = -1
    labels[labels == 7] = -1  # a class that the estimator never sees gets the floor
    split = replace(digits, labels=labels)
    log_prob = EstimatorTeacher("sklearn:LogisticRegression?max_iter=200", split)(np.arange(len(split)), 0)
    accuracy = (log_prob.argmax(dim=1).numpy() == digits.labels)[digits.labels != 7].mean()
    assert accuracy > 0.95
    assert (log_prob[:, 7].numpy() == np.float32(np.log(1e-6))).all()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sklearn:RandomForest", "did you mean 'RandomForestClassifier'"),
        ("sklearn:RandomForestClassifier?n_trees=3", "unknown option 'n_trees'"),
        ("sklearn:GaussianNB?floor=0", "expected a probability"),
    ],
)
def test_impossible_estimators(noisy_table: Split, spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EstimatorTeacher(spec, noisy_table)
    with pytest.raises(ValueError, match="must be an int"):
        EstimatorTeacher("sklearn:RandomForestClassifier?n_estimators=-1", noisy_table)(np.arange(3), 0)


def test_a_leaking_fold_teacher_is_caught(noisy_table: Split, tmp_path: Path) -> None:
    """Nothing can be learnt here but by heart. Fold 1's network was trained on everything, and nobody told us."""
    plan = FoldPlan(num_folds=5)
    training = Training(epochs=25, lr=0.1, weight_decay=0.0)
    x = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    narrow = replace(noisy_table, samples=x, labels=noisy_table.labels[:300])
    paths = train_teachers(narrow, "mlp:128x2", training, tmp_path / "t", plan=plan)
    everything = train_teachers(narrow, "mlp:128x2", training, tmp_path / "all")[0]

    def summary(name: str, paths: list[Path]) -> dict[str, Any]:
        for fold, path in enumerate(paths):
            torch.save(load_state(path), tmp_path / f"{name}{fold}.pt")  # without the keys of their training rows
        pattern, scaling = str(tmp_path / f"{name}{{fold}}.pt"), fit_preprocessing(narrow)
        teachers = load_teachers(narrow, "mlp:128x2", pattern, plan=plan, preprocessing=scaling)
        return cache_teacher(NetworkTeacher(narrow, teachers, Views()), tmp_path / f"{name}.zarr", encoding=LOSSLESS)

    honest, leaking = summary("honest", paths), summary("leaking", [paths[0], everything, *paths[2:]])
    assert honest["leaks"] == []
    assert [leak["fold"] for leak in leaking["leaks"]] == [1]
    assert open_store(tmp_path / "leaking.zarr").teacher().summary["leaks"] == leaking["leaks"]
    warning = leak_warning(leaking)
    assert warning is not None
    assert "fold 1" in warning


def test_the_same_weights_for_two_folds_are_refused(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    for fold in range(3):
        torch.save(load_state(plain_teacher / "teacher.safetensors"), tmp_path / f"fold{fold}.pt")
    with pytest.raises(ValueError, match="the same weights as"):
        load_teachers(
            digits,
            "mlp:32",
            str(tmp_path / "fold{fold}.pt"),
            plan=FoldPlan(num_folds=3),
            preprocessing=fit_preprocessing(digits),
        )


def simulated_fold(rng: np.random.Generator, num_rows: int, skill: float, spread: float = 3.0) -> dict[str, Any]:
    """A fold whose rows have normal margins: log-odds of the label."""
    margins = rng.normal(skill, spread, num_rows)
    nll = np.log1p(np.exp(-margins))
    return {
        "num_rows": num_rows,
        "accuracy": float((margins > 0).mean()),
        "nll": float(nll.mean()),
        "nll_error": float(nll.std() / np.sqrt(num_rows)),
    }


def accused(num_sets: int, num_folds: int, num_rows: int, skills: float) -> tuple[float, float]:
    """Share of sets with an accused fold when all are honest, and share where the one that leaks is found."""
    rng, alarms, found = np.random.default_rng(0), 0, 0
    for _ in range(num_sets):
        folds = [simulated_fold(rng, num_rows, skill) for skill in rng.normal(4, skills, num_folds)]
        alarms += bool(suspected_leaks(folds))
        folds[1] = simulated_fold(rng, num_rows, 7, 1.5)
        found += [leak["fold"] for leak in suspected_leaks(folds)] == [1]
    return alarms / num_sets, found / num_sets


def test_honest_folds_are_not_accused() -> None:
    alarms, found = accused(100, 5, 300, 0.3)
    assert (alarms, found > 0.8) == (0.0, True)
    few = {"accuracy": 1.0, "nll": 0.01, "nll_error": 0.01}
    assert suspected_leaks([{"num_rows": 0}, *({"num_rows": 10, **few} for _ in range(4))]) == []


@pytest.mark.slow
@pytest.mark.parametrize("num_folds", [2, 5, 20])
@pytest.mark.parametrize(("skills", "most_alarms", "least_found"), [(0.3, 0.01, 0.95), (1.5, 0.12, 0.6)])
def test_the_level_and_the_power_of_the_leak_test(
    num_folds: int, skills: float, most_alarms: float, least_found: float
) -> None:
    """Skills of 0.3 are accuracies of .91 +- .02, skills of 1.5 run from .70 to .99."""
    alarms, found = accused(400, num_folds, 300, skills)
    assert alarms <= most_alarms
    assert found >= least_found


def test_an_untrained_network_is_a_control(digits: Split, tmp_path: Path) -> None:
    for plan in (None, FoldPlan(num_folds=3)):
        out = tmp_path / f"{plan is None}.zarr"
        teachers = load_teachers(digits, "mlp:32", "random-init", plan=plan)
        encoding = Encoding(kind="dense", num_classes=10, bits=32)
        summary = cache_teacher(NetworkTeacher(digits, teachers, Views()), out, encoding=encoding)
        assert summary["accuracy"] < 0.4
        again = load_teachers(digits, "mlp:32", "random-init", plan=plan)
        assert again.identity() == teachers.identity()
        assert len(set(teachers.identity()["weights_sha256"])) == (1 if plan is None else 3)


@pytest.mark.parametrize("compute", [Compute(precision="bfloat16"), Compute(channels_last=True)])
def test_other_ways_to_compute(digits: Split, compute: Compute) -> None:
    teachers = load_teachers(digits, "cnn", "random-init")
    plain = NetworkTeacher(digits, teachers, Views())
    other = NetworkTeacher(digits, teachers, Views(), compute=compute)
    rows = np.arange(100)
    expected, found = plain(rows, 0), other(rows, 0)
    assert found.dtype == torch.float32
    assert float((expected - found).abs().max()) < 0.05
    exact = compute.precision == "float32"
    assert (other.identity() == plain.identity()) is exact
    assert other.identity()["precision"] == ("float32" if exact else "bfloat16")


@pytest.mark.parametrize(("name", "meant"), [("fp32", "float32"), ("bf16", "bfloat16"), ("float17", "float16")])
def test_an_unknown_precision(name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        Compute(precision=name)


def test_an_error_of_a_reader_is_the_readers_own() -> None:
    def make(job: int) -> int:
        if job == 3:
            raise ValueError("image 3 cannot be decoded")
        return job * job

    for workers in (0, 2):
        made = in_order(make, list(range(6)), workers)
        assert [next(made) for _ in range(3)] == [0, 1, 4]
        with pytest.raises(ValueError, match="image 3"):
            next(made)


def test_probabilities_are_not_taken_for_logits(digits: Split, tmp_path: Path) -> None:
    logits = np.random.default_rng(0).normal(0, 3, (len(digits), 10))
    prob = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.save(tmp_path / "prob.npy", prob.astype(np.float16))
    with pytest.raises(ValueError, match=r"look like probabilities, expected logits: each row adds to 1; .* np\.log"):
        ask_first(ArrayTeacher(tmp_path / "prob.npy", digits, Views()))
    np.save(tmp_path / "log_prob.npy", np.log(prob).astype(np.float32))
    ask_first(ArrayTeacher(tmp_path / "log_prob.npy", digits, Views()))
