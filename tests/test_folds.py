"""Fold assignments, and what is refused about fold teachers."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import STRATEGIES, FoldPlan, fold_digest, group_ids
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.weights import METADATA_KEY, load_state


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("num_folds", [2, 5, 10])
def test_folds_are_even_and_repeatable(digits: Split, strategy: str, num_folds: int) -> None:
    plan = FoldPlan(num_folds=num_folds, strategy=strategy, seed=3)
    folds = plan.assign(digits)
    assert folds.dtype == np.uint16
    counts = np.bincount(folds, minlength=num_folds)
    most = {"kfold": 1, "hash": 6 * np.sqrt(len(digits) / num_folds)}  # a hash fills folds as dice would
    assert counts.max() - counts.min() <= most.get(strategy, 10)
    assert (plan.assign(digits) == folds).all()
    assert (FoldPlan(num_folds=num_folds, strategy=strategy, seed=4).assign(digits) != folds).any()


def test_stratified_folds_hold_every_class_evenly(digits: Split) -> None:
    folds = FoldPlan(num_folds=5).assign(digits)
    table = np.histogram2d(folds, digits.labels, bins=(5, 10))[0]
    assert (table.max(axis=0) - table.min(axis=0) <= 1).all()


@pytest.mark.filterwarnings("error")
def test_few_unlabelled_rows_do_not_hinder_stratified_folds(digits: Split) -> None:
    labels = digits.labels.copy()
    labels[:2] = -1
    folds = FoldPlan(num_folds=5).assign(replace(digits, labels=labels))
    assert np.ptp(np.bincount(folds)) <= 2
    assert len(set(folds[:2])) == 2


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (FoldPlan(num_folds=1), "--folds is 1"),
        (FoldPlan(num_folds=2000), "--folds is 2000"),
        (FoldPlan(num_folds=3, strategy="kfolds"), "did you mean 'kfold'"),
        (FoldPlan(num_folds=200), "use fewer --folds"),
    ],
)
def test_impossible_folds(digits: Split, plan: FoldPlan, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan.assign(digits)


def test_the_digest_follows_examples_not_places(digits: Split) -> None:
    folds = FoldPlan(num_folds=3).assign(digits)
    order = np.random.default_rng(0).permutation(len(digits))
    assert fold_digest(digits.keys[order], folds[order]) == fold_digest(digits.keys, folds)
    changed = folds.copy()
    changed[0] = (changed[0] + 1) % 3
    assert fold_digest(digits.keys, changed) != fold_digest(digits.keys, folds)


def copy_with(source: Path, target: Path, **changes: object) -> None:
    """Copies fold teachers' weights and changes their metadata, or drops it when a change is None."""
    target.mkdir(exist_ok=True)
    for path in source.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()[METADATA_KEY])
        metadata["folds"] = None if changes == {"folds": None} else {**metadata["folds"], **changes}
        save_file(load_state(path), target / path.name, metadata={METADATA_KEY: json.dumps(metadata)})


def test_fold_teachers_prove_themselves(digits: Split, fold_teachers: Path) -> None:
    teachers = load_teachers(digits, "mlp:32", str(fold_teachers))
    assert teachers.proof == "metadata"
    assert len(teachers.teachers) == 3
    assert teachers.folds is not None
    assert (teachers.folds == FoldPlan(num_folds=3).assign(digits)).all()
    pattern = load_teachers(digits, "mlp:32", str(fold_teachers / "fold{fold}.safetensors"))
    assert pattern.identity() == teachers.identity()


def test_a_teacher_that_has_seen_its_fold_is_refused(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    copy_with(fold_teachers, tmp_path)
    (tmp_path / "fold0.safetensors").rename(tmp_path / "x")
    (tmp_path / "fold1.safetensors").rename(tmp_path / "fold0.safetensors")
    (tmp_path / "x").rename(tmp_path / "fold1.safetensors")
    with pytest.raises(ValueError, match="left out fold 1 and has seen fold 0"):
        load_teachers(digits, "mlp:32", str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"digest": "0" * 64}, "fold assignment differs"),
        ({"seed": 7}, "fold assignment differs"),
        ({"num_folds": 4}, "3 fold teachers found, expected 4"),
        ({"folds": None}, "do not say how rows were assigned"),
    ],
)
def test_metadata_that_contradicts_is_refused(
    digits: Split, fold_teachers: Path, tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    copy_with(fold_teachers, tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_teachers(digits, "mlp:32", str(tmp_path))


def test_foreign_fold_teachers_are_declared(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    copy_with(fold_teachers, tmp_path, folds=None)
    teachers = load_teachers(digits, "mlp:32", str(tmp_path), plan=FoldPlan(num_folds=3))
    assert teachers.proof == "declared"


def test_one_fold_teacher_alone_is_refused(digits: Split, digits_test: Split, fold_teachers: Path) -> None:
    path = str(fold_teachers / "fold1.safetensors")
    with pytest.raises(ValueError, match="left out fold 1 of 3 and has seen the other rows"):
        load_teachers(digits, "mlp:32", path)
    assert load_teachers(digits_test, "mlp:32", path).folds is None  # it has seen none of these


def test_fold_teachers_answer_their_training_rows_only(digits_test: Split, fold_teachers: Path) -> None:
    with pytest.raises(ValueError, match="cross-fitting answers the training rows only"):
        load_teachers(digits_test, "mlp:32", str(fold_teachers))


def test_weights_of_another_architecture(digits: Split, plain_teacher: Path) -> None:
    with pytest.raises(ValueError, match="weights of 'mlp:32', not 'cnn'; pass --teacher mlp:32"):
        load_teachers(digits, "cnn", str(plain_teacher))


def test_weights_without_scaling_need_mean_and_std(digits: Split, tmp_path: Path) -> None:
    save_file(build_model("mlp:32", digits).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="pass --mean and --std"):
        load_teachers(digits, "mlp:32", str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("weights", ["nowhere", "nowhere/fold{fold}.pt"])
def test_missing_weights(digits: Split, weights: str) -> None:
    with pytest.raises(ValueError, match="no weights at|no such weights"):
        load_teachers(digits, "mlp:32", weights)


def test_hash_folds_stay_when_the_dataset_grows(digits: Split) -> None:
    plan = FoldPlan(num_folds=5, strategy="hash", seed=1)
    kept = np.random.default_rng(0).permutation(len(digits))[:700]
    fewer = replace(digits, samples=digits.samples[kept], labels=digits.labels[kept])
    assert (plan.assign(fewer) == plan.assign(digits)[kept]).all()


def test_groups_stay_together(digits: Split) -> None:
    groups = np.random.default_rng(0).integers(0, 90, len(digits)).astype(np.uint64)
    plan = FoldPlan(num_folds=4, strategy="group", seed=1)
    grouped = replace(digits, groups=groups)
    folds = plan.assign(grouped)
    assert all(len(set(folds[groups == group])) == 1 for group in np.unique(groups))
    assert np.bincount(folds).min() > len(digits) / 4 - 20
    recorded = plan.groups(grouped)
    assert recorded is not None
    assert (recorded == groups).all()
    assert FoldPlan(num_folds=4).groups(digits) is None
    with pytest.raises(ValueError, match="digits.* has 2"):
        plan.assign(replace(digits, groups=groups % np.uint64(2)))


def test_near_duplicates_are_a_group() -> None:
    """A little noise and other brightness change no group; another picture does."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(20, 200, (40, 9, 9, 3))
    images = coarse.repeat(4, axis=1).repeat(4, axis=2)
    same = np.concatenate([images, images + rng.integers(0, 2, images.shape), images + 30]).astype(np.uint8)
    split = Split(name="x", split="train", spec="x", samples=same, labels=np.zeros(120, np.int64), num_classes=2)
    ids = group_ids(split)
    assert (ids[:40] == ids[40:80]).mean() > 0.95
    assert (ids[:40] == ids[80:]).all()
    assert len(np.unique(ids[:40])) == 40
    folds = FoldPlan(num_folds=5, strategy="group").assign(split)
    assert (folds[:40] == folds[80:]).all()
