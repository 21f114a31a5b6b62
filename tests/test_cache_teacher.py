"""Stage one: every row is answered by the right teacher, from the right pixels, and only once."""

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.asked import Budget
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.load import TeacherSet, load_teachers
from logitbank.pipeline.cache_teacher.teachers.networks import TeacherNetwork
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.split import content_keys
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.views import Views
from logitbank.stores import StoreError, open_store, verify_store

LOSSLESS = Encoding(kind="dense", num_classes=10, bits=32)
AS_IS = Preprocessing(mean=(0.0,), std=(1.0,))


def test_the_store_holds_what_the_teacher_answers(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    views = Views(transform="flip-crop", num_views=2, seed=3)
    summary = cache_teacher(NetworkTeacher(digits, teachers, views), tmp_path / "s.zarr", encoding=LOSSLESS)
    assert verify_store(tmp_path / "s.zarr") == []
    store = open_store(tmp_path / "s.zarr")
    assert store.dataset["fingerprint"] == digits.fingerprint
    model, scaling = teachers.teachers[0].model, teachers.teachers[0].preprocessing
    correct = []
    for view in range(2):
        with torch.inference_mode():
            samples = torch.from_numpy(views.samples(digits, slice(None), view))
            logits = model(scaling(samples))
        torch.testing.assert_close(torch.from_numpy(store.teacher().slab(view)["logit"]), logits, rtol=1e-5, atol=1e-5)
        correct.append((logits.argmax(dim=1).numpy() == digits.labels).mean())
    assert summary["kind"] == "seen"
    assert summary["accuracy"] == pytest.approx(np.mean(correct), abs=1e-6)


class Spy(nn.Module):
    """Stands where a fold teacher stands and writes down every image that it is asked about."""

    def __init__(self, seen: list[int]) -> None:
        super().__init__()
        self.seen = seen

    def forward(self, x: Tensor) -> Tensor:
        pixels = (x * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        self.seen.extend(int(key) for key in content_keys(pixels))
        return torch.zeros(len(x), 10)


def test_no_row_is_answered_by_a_teacher_that_has_seen_it(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    """The fold proof, over the whole pass and every view: what each teacher is asked is exactly its own fold."""
    proven = load_teachers(digits, "mlp:32", str(fold_teachers))
    assert proven.folds is not None
    asked: dict[int, list[int]] = defaultdict(list)
    spies = tuple(
        TeacherNetwork(model=Spy(asked[fold]), preprocessing=AS_IS, identity=teacher.identity)
        for fold, teacher in enumerate(proven.teachers)
    )
    spied = TeacherSet(
        teachers=spies,
        seen=proven.seen,
        folds=proven.folds,
        plan=proven.plan,
        proof=proven.proof,
        fold_attributes=proven.fold_attributes,
    )
    views = Views(transform="flip-crop", num_views=2)
    cache_teacher(
        NetworkTeacher(digits, spied, views, compute=Compute(batch_size=100)), tmp_path / "s.zarr", encoding=LOSSLESS
    )
    keys = [content_keys(views.samples(digits, slice(None), view)) for view in range(2)]
    for fold in range(3):
        own = {int(key) for view in range(2) for key in keys[view][proven.folds == fold]}
        assert set(asked[fold]) == own
    stored = open_store(tmp_path / "s.zarr").folds
    assert stored is not None
    assert (stored == proven.folds).all()


def test_each_fold_is_answered_by_its_own_weights(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    teachers = load_teachers(digits, "mlp:32", str(fold_teachers))
    summary = cache_teacher(NetworkTeacher(digits, teachers, Views()), tmp_path / "s.zarr", encoding=LOSSLESS)
    store = open_store(tmp_path / "s.zarr")
    assert store.folds is not None
    for fold, teacher in enumerate(teachers.teachers):
        rows = np.flatnonzero(store.folds == fold)
        with torch.inference_mode():
            expected = teacher.model(teacher.preprocessing(torch.from_numpy(digits.samples[rows])))
        torch.testing.assert_close(torch.from_numpy(store.teacher().slab(0)["logit"][rows]), expected)
    assert summary["kind"] == "out-of-fold"
    assert [fold["num_rows"] for fold in summary["per_fold"]] == np.bincount(store.folds).tolist()


def test_answers_do_not_depend_on_who_asks_in_what_order(digits: Split, fold_teachers: Path) -> None:
    teachers = load_teachers(digits, "mlp:32", str(fold_teachers))
    views = Views(transform="flip-crop", num_views=1)
    answer = NetworkTeacher(digits, teachers, views, compute=Compute(batch_size=64))
    rows = np.random.default_rng(0).permutation(len(digits))[:300]
    torch.testing.assert_close(answer(rows, 0), answer(np.arange(len(digits)), 0)[torch.from_numpy(rows)])


def test_a_second_run_of_the_same_command_changes_nothing(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    out = tmp_path / "s.zarr"
    first = cache_teacher(NetworkTeacher(digits, teachers, Views()), out, encoding=LOSSLESS)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert cache_teacher(NetworkTeacher(digits, teachers, Views()), out, encoding=LOSSLESS) == first
    after = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert {path for path in before if "zarr.json" not in path.name and before[path] != after[path]} == set()


@pytest.mark.parametrize("change", ["data", "encoding", "views", "teacher"])
def test_a_store_of_something_else_is_not_written_to(
    digits: Split, digits_test: Split, plain_teacher: Path, fold_teachers: Path, tmp_path: Path, change: str
) -> None:
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    out = tmp_path / "s.zarr"
    cache_teacher(NetworkTeacher(digits, teachers, Views()), out, encoding=LOSSLESS)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    split = digits_test if change == "data" else digits
    encoding = Encoding(kind="dense", num_classes=10, bits=16) if change == "encoding" else LOSSLESS
    views = Views(transform="flip-crop", num_views=2) if change == "views" else Views()
    if change == "teacher":
        teachers = load_teachers(digits_test, "mlp:32", str(fold_teachers / "fold0.safetensors"))
    with pytest.raises(StoreError) as caught:
        cache_teacher(NetworkTeacher(split, teachers, views), out, encoding=encoding)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_views_that_do_not_fit(plain_teacher: Path, digits: Split) -> None:
    table = Split(
        name="t",
        split="train",
        spec="t",
        samples=digits.samples.reshape(len(digits), -1).astype(np.float32),
        labels=digits.labels,
        num_classes=10,
    )
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    with pytest.raises(ValueError, match="needs images"):
        NetworkTeacher(table, teachers, Views(transform="flip-crop", num_views=2))
    with pytest.raises(ValueError, match="one view only"):
        NetworkTeacher(digits, teachers, Views(num_views=2))


def test_mixed_views_would_show_a_fold_teacher_what_it_has_seen(fold_teachers: Path, digits: Split) -> None:
    teachers = load_teachers(digits, "mlp:32", str(fold_teachers))
    with pytest.raises(ValueError, match="may have seen the other one"):
        NetworkTeacher(digits, teachers, Views(transform="flip-crop+mixup", num_views=2))


CACHED = {
    "topk": Encoding(kind="topk", num_classes=10, top_k=3),
    "topk+tail": Encoding(kind="topk+tail", num_classes=10, top_k=3, tail_bits=2),
    "dense8": Encoding(kind="dense", num_classes=10, bits=8),
}


@pytest.mark.parametrize("folds", [False, True])
@pytest.mark.parametrize("kind", CACHED)
def test_stage_two_decodes_what_stage_one_measured(
    digits: Split, plain_teacher: Path, fold_teachers: Path, tmp_path: Path, kind: str, folds: bool
) -> None:
    """The fidelity in the store is the distance of stage two's logits from the teacher's, for every encoding."""
    answers = NetworkTeacher(
        digits, load_teachers(digits, "mlp:32", str(fold_teachers if folds else plain_teacher)), Views()
    )
    cache_teacher(answers, tmp_path / "s.zarr", encoding=CACHED[kind])
    store = open_store(tmp_path / "s.zarr")
    stored = StoredAnswers(store)
    rows = torch.arange(len(digits))
    teacher, decoded = answers(rows.numpy(), 0), stored.logits(rows, 0)
    assert (teacher.argmax(dim=1) == decoded.argmax(dim=1)).double().mean() > 0.999
    fidelity = store.teacher().fidelity or {}
    for temperature in (1.0, 2.0, 4.0):
        p, q = (torch.log_softmax(logits / temperature, dim=1) for logits in (teacher, decoded))
        whole = float((p.exp() * (p - q)).sum(dim=1).mean()) * temperature**2
        assert fidelity[f"{temperature:g}"] == pytest.approx(whole, rel=0.5, abs=2e-4)  # a sample of the rows


def test_a_budget_chooses_the_smallest_encoding_within_it(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    sizes = []
    for number, kl in enumerate((1.0, 1e-3, 1e-9)):
        cache_teacher(answers, tmp_path / f"{number}.zarr", encoding=Budget(kl=kl))
        teacher = open_store(tmp_path / f"{number}.zarr").teacher()
        assert all((teacher.fidelity or {})[temperature] <= 2 * kl + 1e-9 for temperature in ("1", "4"))
        sizes.append(teacher.bytes_on_disk())
    assert sizes[0] < sizes[1] < sizes[2]


@pytest.mark.parametrize("num_views", [1, 2])
def test_a_teacher_that_has_already_spoken(digits: Split, tmp_path: Path, num_views: int) -> None:
    logits = np.random.default_rng(0).normal(size=(num_views, len(digits), 10)).astype(np.float64)
    np.save(tmp_path / "logits.npy", logits if num_views > 1 else logits[0])
    answers = ArrayTeacher(tmp_path / "logits.npy", digits, Views(num_views=num_views))
    cache_teacher(answers, tmp_path / "s.zarr", encoding=LOSSLESS)
    teacher = open_store(tmp_path / "s.zarr").teacher()
    for view in range(num_views):
        assert (teacher.slab(view)["logit"] == logits[view].astype(np.float32)).all()
    assert teacher.identity["architecture"] == "array:logits.npy"


@pytest.mark.parametrize("shape", [(10, 10), (1437, 11), (2, 1437, 10), (1437,)])
def test_an_array_of_another_shape_is_refused(digits: Split, tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "logits.npy", np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"expected floats \[1, 1437, 10\]"):
        ArrayTeacher(tmp_path / "logits.npy", digits, Views())


def test_an_array_is_never_unpickled(digits: Split, tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="not a readable"):
        ArrayTeacher(tmp_path / "logits.npy", digits, Views())
