"""Does a store hold this teacher's answers: other weights, scaling, rows and data are found, rounding is not."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.pipeline.alignment import describe_examples
from logitbank.pipeline.cache_teacher.recompute import ROUNDING, Recomputed, recompute
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Rows
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.recorded import recorded_teacher
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from logitbank.stores.write.merge import merge_stores, subset_store
from tests.realdata import cifar_root, needs_cifar, weights
from tests.test_cli import fails, run

ENCODINGS = {
    "top 3": Encoding(kind="topk", num_classes=10, top_k=3),
    "top 3 and tail": Encoding(kind="topk+tail", num_classes=10, top_k=3, tail_bits=2, bits=16),
    "dense 8": Encoding(kind="dense", num_classes=10, bits=8),
    "dense 32": Encoding(kind="dense", num_classes=10, bits=32),
}
VIEWS = Views(transform="flip-crop", num_views=2)


def cached(split: Split, weights: Path, out: Path, kind: str = "dense 8", **settings: Any) -> Path:
    answers = NetworkTeacher(split, load_teachers(split, "mlp:32", str(weights)), VIEWS, **settings)
    cache_teacher(answers, out, encoding=ENCODINGS[kind], block_rows=200)
    return out


def checked(path: Path, split: Split, weights: Path, *, pairs: int = 64, **settings: Any) -> Recomputed:
    store = open_store(path)
    again = recorded_teacher(store, store.teacher(), split, str(weights), architecture="mlp:32", **settings)
    return recompute(store, store.teacher(), again, pairs)


@pytest.fixture(scope="module")
def others(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fold teachers of the same architecture, data and folds, from another seed."""
    out = tmp_path_factory.mktemp("others")
    train_teachers(digits, "mlp:32", Training(epochs=3, seed=7), out, plan=FoldPlan(num_folds=3))
    return out


@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_sound_store_passes_whatever_the_batches(
    digits: Split, fold_teachers: Path, others: Path, tmp_path: Path, kind: str
) -> None:
    path = cached(digits, fold_teachers, tmp_path / "s.zarr", kind)
    for pairs, batch_size in ((64, 256), (500, 7)):
        found = checked(path, digits, fold_teachers, pairs=pairs, compute=Compute(batch_size=batch_size))
        assert (found.problems, found.num_pairs) == ([], pairs)
        for name, distance in found.distance.items():
            assert abs(distance - found.encoding_loss[name]) < ROUNDING["float32"] / 10
    assert found.agreement > 0.95
    wrong = checked(path, digits, others)
    assert "weights_sha256 of fold 0" in wrong.problems[0]
    assert "the limit is" in wrong.problems[1]
    assert wrong.distance["4"] > 10 * ROUNDING["float32"] + wrong.encoding_loss["4"]


def test_other_scaling_is_found(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    path = cached(digits, plain_teacher, tmp_path / "s.zarr")
    assert checked(path, digits, plain_teacher).problems == []
    found = checked(path, digits, plain_teacher, preprocessing=Preprocessing(mean=(0.29,), std=(0.33,)))
    assert "'mean': [0.29], 'std': [0.33]} here" in found.problems[0]
    assert "the limit is" in found.problems[1]


def test_half_precision_is_repeated_in_half_precision(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    path = cached(digits, plain_teacher, tmp_path / "s.zarr", compute=Compute(precision="bfloat16"))
    assert checked(path, digits, plain_teacher, compute=Compute(batch_size=5)).problems == []


class Shifted(NetworkTeacher):
    """Says that it is the teacher, and gives some rows the answers of their neighbours."""

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        return super().batches(np.where(rows % 10 == 0, rows - 1, rows), view)


def test_a_store_that_lies_about_some_rows(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    answers = Shifted(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), VIEWS)
    cache_teacher(answers, tmp_path / "s.zarr", encoding=ENCODINGS["dense 8"])
    found = checked(tmp_path / "s.zarr", digits, plain_teacher)
    assert found.agreement > 0.8
    assert "the limit is" in found.problems[0]


def test_a_store_that_boasts_of_its_fidelity(
    digits: Split, plain_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cached(digits, plain_teacher, tmp_path / "s.zarr", "top 3")
    store = open_store(path)
    teacher = store.teacher()
    monkeypatch.setattr(teacher, "fidelity", {"1": 1e-6, "4": 1e-6, "num_rows": 300, "9" * 400: 1.0, "²": 0.0})
    again = recorded_teacher(store, teacher, digits, str(plain_teacher), architecture="mlp:32")
    (problem,) = recompute(store, teacher, again).problems
    assert "the store says 1e-06" in problem


def test_rows_of_a_part_are_answered_by_the_teacher_of_their_fold(
    digits: Split, fold_teachers: Path, tmp_path: Path
) -> None:
    """A part has the folds of the whole, which its own rows no longer give."""
    cached(digits, fold_teachers, tmp_path / "s.zarr")
    rows = np.random.default_rng(0).permutation(1437)[:400]
    subset_store(tmp_path / "s.zarr", tmp_path / "part.zarr", rows, describe=describe_examples)
    np.savez(tmp_path / "part.npz", x=digits.samples[rows], y=digits.labels[rows])
    assert checked(tmp_path / "part.zarr", load_split(f"npz:{tmp_path}/part.npz"), fold_teachers).problems == []


def test_only_rows_that_a_teacher_serves_are_compared(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    cached(digits, plain_teacher, tmp_path / "s.zarr")
    for name, rows in (("a", slice(0, 900)), ("b", slice(800, 1437))):
        chosen = np.arange(1437)[rows]
        subset_store(tmp_path / "s.zarr", tmp_path / f"{name}.zarr", chosen, describe=describe_examples)
    both = [tmp_path / "a.zarr", tmp_path / "b.zarr"]
    merge_stores(both, tmp_path / "both.zarr", describe=describe_examples, names=["a", "b"])
    store = open_store(tmp_path / "both.zarr")
    for name, num_pairs in (("a", 1800), ("b", 1274)):
        again = recorded_teacher(store, store.teacher(name), digits, str(plain_teacher), architecture="mlp:32")
        found = recompute(store, store.teacher(name), again, 10**6)
        assert (found.problems, found.num_pairs) == ([], num_pairs)


def test_folds_that_are_not_the_rows_are_refused(
    digits: Split, fold_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(cached(digits, fold_teachers, tmp_path / "s.zarr"))
    teacher = store.teacher()
    for num_folds in (2, "3", None, True):
        monkeypatch.setattr(teacher, "folds", {"num_folds": num_folds})
        with pytest.raises(ValueError, match="in other folds|its folds are not those of the examples"):
            recorded_teacher(store, teacher, digits, str(fold_teachers), architecture="mlp:32")


def test_what_a_store_says_never_decides_what_is_built(
    digits: Split, plain_teacher: Path, fold_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = cached(digits, plain_teacher, tmp_path / "s.zarr")
    store = open_store(path)
    teacher = store.teacher()
    for architecture in ("mlp:99999x99", "os.path:join", "evil.py:factory", "timm:eva_giant", "array:x.npy"):
        monkeypatch.setitem(teacher.identity, "architecture", architecture)
        with pytest.raises(ValueError, match="pass --teacher"):
            recorded_teacher(store, teacher, digits, str(plain_teacher))
    identity = {**teacher.identity, "architecture": "mlp:32"}
    for damage, message in (
        ({"precision": "float8"}, "precision 'float8'"),
        ({"preprocessing": "none"}, "no input scaling"),
        ({"preprocessing": [{"mean": [0.1], "std": [0.1], "size": 10**6}]}, "at most 1024 pixels"),
    ):
        monkeypatch.setattr(teacher, "identity", {**identity, **damage})
        with pytest.raises(ValueError, match=message):
            recorded_teacher(store, teacher, digits, str(plain_teacher), architecture="mlp:32")
    monkeypatch.setattr(teacher, "identity", identity)
    with pytest.raises(ValueError, match="found weights of 3 teachers, the store was answered by 1"):
        recorded_teacher(store, teacher, digits, str(fold_teachers), architecture="mlp:32")
    with pytest.raises(ValueError, match="--weights is missing"):
        recorded_teacher(store, teacher, digits, "", architecture="mlp:32")
    with pytest.raises(ValueError, match="expected at least 1"):
        checked(path, digits, plain_teacher, pairs=-1)


def test_answers_of_an_array_cannot_be_repeated(digits: Split, tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.random.default_rng(0).normal(size=(1437, 10)).astype(np.float32))
    answers = ArrayTeacher(tmp_path / "logits.npy", digits, Views())
    cache_teacher(answers, tmp_path / "s.zarr", encoding=ENCODINGS["dense 8"])
    store = open_store(tmp_path / "s.zarr")
    with pytest.raises(ValueError, match="compare them with cli diff"):
        recorded_teacher(store, store.teacher(), digits, "weights")


def test_the_command(digits: Split, plain_teacher: Path, others: Path, tmp_path: Path) -> None:
    cached(digits, plain_teacher, tmp_path / "s.zarr")
    again = ("verify", "s.zarr", "--recompute", "64", "--teacher", "mlp:32")
    done = run(*again, "--data", "digits", "--weights", str(plain_teacher), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("recomputed 64 answers: top-1 agreement 1.0000")
    assert "sound: 1437 rows x 2 views" in done.stdout
    assert "pass --data" in fails(*again, "--weights", str(plain_teacher), cwd=tmp_path)
    other = run(*again, "--data", "digits", "--weights", str(others / "fold0.safetensors"), cwd=tmp_path)
    assert other.returncode == 2
    assert other.stderr.startswith("error: s.zarr: teacher 'teacher' is not the one that runs here: weights_sha256")
    assert "sound" not in other.stdout


@needs_cifar(20, 32)
def test_a_real_teacher_and_its_sister(tmp_path: Path) -> None:
    """ResNet-20 on CIFAR-10 images, in batches of another size; ResNet-32 is another network altogether."""
    from tests.test_real_cifar import SCALING

    split = load_split(f"torchvision:CIFAR10?root={cifar_root(tmp_path)}&split=test&limit=400")
    views = Views(transform="flip-crop", num_views=2)
    teachers = load_teachers(split, "resnet20", weights(20), preprocessing=SCALING)
    cache_teacher(NetworkTeacher(split, teachers, views), tmp_path / "s.zarr", encoding=ENCODINGS["top 3"])
    store = open_store(tmp_path / "s.zarr")
    teacher = store.teacher()

    def found(file: str, **settings: Any) -> Recomputed:
        return recompute(
            store, teacher, recorded_teacher(store, teacher, split, file, compute=Compute(batch_size=5), **settings)
        )

    sound = found(weights(20))  # scaling and architecture are the store's
    assert sound.problems == []
    assert sound.distance == pytest.approx(sound.encoding_loss, abs=1e-4)
    scaled = found(weights(20), preprocessing=Preprocessing(mean=(0.5,), std=(0.25,)))
    assert [problem.split()[0] for problem in scaled.problems] == ["preprocessing", "its"]
    sister = found(weights(32), architecture="resnet32")
    assert len(sister.problems) >= 3
    assert sister.distance["4"] > 0.1
