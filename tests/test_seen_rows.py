"""Which rows a teacher was trained on: told by content keys, exactly, and unknown where nothing says it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from logitbank.cli import app
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import LimitedTeacher, build_teacher
from logitbank.pipeline.cache_teacher.teachers.claims import SEEN, UNKNOWN, UNSEEN, Claims
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.folds import STRATEGIES, FoldPlan, apart_from_equals, write_assignment
from logitbank.pipeline.look.card import store_card
from logitbank.pipeline.look.describe import describe_kind, describe_store, format_description
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.weights import METADATA_KEY, load_state, read_training_keys, save_weights
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.students import train

DENSE = Encoding(kind="dense", num_classes=10, bits=8)


def twins(split: Split, num_twins: int) -> Split:
    """A split whose last rows repeat its first ones."""
    rows = np.concatenate([np.arange(len(split)), np.arange(num_twins)])
    return replace(split, samples=split.samples[rows], labels=split.labels[rows])


def some(split: Split, rows: slice) -> Split:
    return replace(split, samples=split.samples[rows], labels=split.labels[rows])


@pytest.fixture(scope="module")
def half_teacher(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the first 700 digits."""
    out = tmp_path_factory.mktemp("half")
    train_teachers(some(digits, slice(700)), "linear", Training(epochs=1), out)
    return out


@pytest.mark.parametrize(
    ("spec", "kind", "num_seen"),
    [
        ("digits", "partly seen", 700),
        ("digits?shuffle=3", "partly seen", 700),
        ("digits?limit=1400", "partly seen", 682),
        ("digits?split=test", "held out", 0),
    ],
)
def test_the_share_of_seen_rows_is_exact(
    digits: Split, half_teacher: Path, spec: str, kind: str, num_seen: int, tmp_path: Path
) -> None:
    split = load_split(spec)
    assert np.isin(split.keys, digits.keys[:700]).sum() == num_seen
    answers = build_teacher(split, "linear", str(half_teacher), Views())
    summary = cache_teacher(answers, tmp_path / "s.zarr", encoding=DENSE)
    assert summary["kind"] == kind
    assert summary["seen"] == {"num_rows": len(split), "num_seen": num_seen, "num_unknown": 0}
    words = "held out" if num_seen == 0 else f"partly seen: {num_seen} of {len(split):,} rows"
    assert describe_kind(summary) == words
    assert f"({words})" in format_description(describe_store(tmp_path / "s.zarr"))
    assert words in store_card(tmp_path / "s.zarr")
    verified = CliRunner().invoke(app, ["verify", str(tmp_path / "s.zarr")])
    assert f"teacher ({words})" in verified.stdout


def test_another_order_or_a_trial_of_the_training_rows_is_seen(digits: Split, plain_teacher: Path) -> None:
    for spec in ("digits?shuffle=3", "digits?limit=1400"):
        assert (load_teachers(load_split(spec), "mlp:32", str(plain_teacher)).seen == SEEN).all()
    answers = build_teacher(digits, "mlp:32", str(plain_teacher), Views())
    assert (LimitedTeacher(answers, 100).seen == SEEN).all()


def test_weights_that_are_silent_are_unknown(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    """Older weights name their dataset alone: the very same is seen, anything else is not called held out."""
    path = plain_teacher / "teacher.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = json.loads(file.metadata()[METADATA_KEY])
    save_file(load_state(path), tmp_path / "old.safetensors", metadata={METADATA_KEY: json.dumps(metadata)})
    old = Claims.read(tmp_path / "old.safetensors")
    assert (old.seen(digits) == SEEN).all()
    assert (old.seen(load_split("digits?shuffle=3")) == UNKNOWN).all()
    torch.save(load_state(path), tmp_path / "foreign.pt")
    assert (Claims.read(tmp_path / "foreign.pt").seen(digits) == UNKNOWN).all()
    assert describe_kind({"kind": "held out"}) == "training rows unknown"  # a store that compared datasets
    assert describe_kind({"kind": "seen"}) == "seen"


def test_unlabelled_rows_are_not_seen_unless_they_have_a_labelled_equal(digits: Split, tmp_path: Path) -> None:
    split = twins(some(digits, slice(60)), 10)
    labels = split.labels.copy()
    labels[:30] = -1
    labels[60:65] = digits.labels[:5]
    split = replace(split, labels=labels)
    train_teachers(split, "linear", Training(epochs=1), tmp_path)
    seen = load_teachers(split, "linear", str(tmp_path)).seen
    assert (seen[:10] == SEEN).all()
    assert (seen[10:30] == UNSEEN).all()
    assert (seen[30:] == SEEN).all()


def test_a_student_knows_what_it_was_trained_on(
    digits: Split, plain_teacher: Path, half_teacher: Path, tmp_path: Path
) -> None:
    """Its own rows without those of validation, and those of the weights that it started from."""
    answers = build_teacher(digits, "mlp:32", str(plain_teacher), Views())
    cache_teacher(answers, tmp_path / "s.zarr", encoding=DENSE)
    store = open_store(tmp_path / "s.zarr")
    foreign = tmp_path / "foreign.pt"
    torch.save(build_model("linear", digits).state_dict(), foreign)
    seen = {}
    for name, init in (("own", ""), ("after", half_teacher / "teacher.safetensors"), ("foreign", foreign)):
        out, asked = tmp_path / name, {"student": "linear", "epochs": 1, "val_share": 0.5, "init": str(init)}
        train(store, digits, None, out, asked=asked)
        seen[name] = Claims.read(out / "student.safetensors").seen(digits)
    own, after, other = seen["own"], seen["after"], seen["foreign"]
    assert 700 < (own == SEEN).sum() < 740
    assert (own == UNSEEN).sum() == len(digits) - (own == SEEN).sum()
    assert (after[:700] == SEEN).all()
    assert (after[700:] == own[700:]).all()
    assert (other[own == SEEN] == SEEN).all()
    assert (other[own == UNSEEN] == UNKNOWN).all()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_equal_rows_share_a_fold(digits: Split, strategy: str) -> None:
    split, plan = twins(digits, 300), FoldPlan(num_folds=5, strategy=strategy, seed=1)
    folds = plan.assign(split)
    assert (folds[:300] == folds[-300:]).all()
    assert apart_from_equals(split.keys, folds) == 0
    assert np.bincount(folds).min() > 250
    grouped = replace(split, groups=np.arange(len(split), dtype=np.uint64) // np.uint64(2))
    assert apart_from_equals(split.keys, plan.assign(grouped)) == 0
    with pytest.raises(ValueError, match="different examples"):
        FoldPlan(num_folds=4, strategy=strategy).assign(replace(split, samples=split.samples[[0] * len(split)]))


def test_groups_that_hold_equal_rows_are_one(digits: Split) -> None:
    split = twins(some(digits, slice(90)), 10)
    groups = np.arange(len(split), dtype=np.uint64) // np.uint64(10)
    plan = FoldPlan(num_folds=3, strategy="group")
    folds = plan.assign(replace(split, groups=groups))
    assert len(set(folds[np.r_[:10, 90:100]])) == 1
    recorded = plan.groups(replace(split, groups=groups))
    assert recorded is not None
    assert (recorded[90:] == recorded[:10]).all()


def test_assigned_folds_keep_equal_rows_together(digits: Split, tmp_path: Path) -> None:
    split = twins(digits, 50)
    folds, _ = write_assignment(split, FoldPlan(num_folds=5), tmp_path / "folds")
    assert (folds[:50] == folds[-50:]).all()


def test_answers_whose_folds_part_equal_rows_are_refused(digits: Split, tmp_path: Path) -> None:
    split, plan = twins(some(digits, slice(100)), 20), FoldPlan(num_folds=3)
    answers = build_teacher(split, "mlp:4", "random-init", Views(), plan=plan)
    assert answers.folds is not None
    answers.folds = answers.folds.copy()
    answers.folds[-5:] = (answers.folds[-5:] + 1) % 3
    with pytest.raises(ValueError, match="10 of 120 rows have an equal in another fold"):
        cache_teacher(answers, tmp_path / "s.zarr", encoding=DENSE)
    assert not list(tmp_path.iterdir())


def test_a_fold_teacher_that_saw_an_equal_row_is_refused(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    """Its metadata is right, its keys are not: three rows of its own fold were among its training rows."""
    folds = FoldPlan(num_folds=3).assign(digits)
    for fold in range(3):
        path = fold_teachers / f"fold{fold}.safetensors"
        keys = read_training_keys(path)
        assert keys is not None
        assert set(keys) == set(digits.keys[folds != fold])
        with safe_open(path, framework="pt") as file:
            metadata = json.loads(file.metadata()[METADATA_KEY])
        model = build_model("mlp:32", digits)
        model.load_state_dict(load_state(path))
        if fold == 1:
            keys = np.concatenate([keys, digits.keys[folds == 1][:3]])
        save_weights(tmp_path / path.name, model, metadata, keys)
    with pytest.raises(ValueError, match=r"fold1.* was trained on 3 of the 479 rows of fold 1"):
        load_teachers(digits, "mlp:32", str(tmp_path))


@pytest.fixture
def declared(digits: Split, tmp_path: Path) -> Callable[..., NetworkTeacher]:
    def load(paths: dict[int, Path], plan: FoldPlan) -> NetworkTeacher:
        for fold, path in paths.items():
            torch.save(load_state(path), tmp_path / f"fold{fold}.pt")
        teachers = load_teachers(
            digits, "mlp:32", str(tmp_path / "fold{fold}.pt"), plan=plan, preprocessing=fit_preprocessing(digits)
        )
        return NetworkTeacher(digits, teachers, Views())

    return load


def test_out_of_fold_is_said_with_its_proof(
    digits: Split, fold_teachers: Path, declared: Callable[..., NetworkTeacher], tmp_path: Path
) -> None:
    plan = FoldPlan(num_folds=3)
    proven = build_teacher(digits, "mlp:32", str(fold_teachers), Views())
    summary = cache_teacher(proven, tmp_path / "a.zarr", encoding=DENSE)
    assert describe_kind(summary) == "out-of-fold"
    assert [(said["num_seen"], said["num_unknown"]) for said in summary["per_fold"]] == [(0, 0)] * 3
    paths = {fold: fold_teachers / f"fold{fold}.safetensors" for fold in range(3)}
    summary = cache_teacher(declared(paths, plan), tmp_path / "b.zarr", encoding=DENSE)
    assert describe_kind(summary) == "out-of-fold as declared"
    assert "as its author declares" in store_card(tmp_path / "b.zarr")


def test_examples_that_come_out_otherwise_are_not_called_held_out(tmp_path: Path) -> None:
    """The same pictures in another size, and the same table scaled by other rows, have other keys."""
    rng = np.random.default_rng(0)
    for number in range(12):
        folder = tmp_path / "photos" / f"class{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    rows = "".join(f"{number % 7},{number % 2}\n" for number in range(60))
    (tmp_path / "table.csv").write_text(f"size,bought\n{rows}")
    photos, table = f"imagefolder:{tmp_path}/photos?size=", f"csv:{tmp_path}/table.csv?test_share="
    for trained, asked, model in ((f"{photos}8", f"{photos}12", "cnn"), (f"{table}0.5", f"{table}0", "linear")):
        out = tmp_path / f"{model}-teacher"
        train_teachers(load_split(trained), model, Training(epochs=1), out)
        assert (load_teachers(load_split(trained), model, str(out)).seen == SEEN).all()
        assert (load_teachers(load_split(asked), model, str(out)).seen != UNSEEN).all()
