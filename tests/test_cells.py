"""Memory follows the batch: cells are encoded in groups of rows, and the bytes are those of the whole block."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers import answering
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Rows, gathered
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.test_tail_predictor import teacher_logits

N, C = 1500, 60
ENCODINGS = {
    "topk": Encoding(kind="topk", num_classes=C, top_k=5),
    "topk+tail": Encoding(kind="topk+tail", num_classes=C, top_k=5, tail_bits=1),
    "dense": Encoding(kind="dense", num_classes=C),
}


@given(
    sizes=st.lists(st.integers(0, 40), max_size=12), step=st.integers(1, 50), seed=st.integers(0, 100), dims=st.just(3)
)
def test_answers_are_gathered_in_their_order(sizes: list[int], step: int, seed: int, dims: int) -> None:
    order = np.random.default_rng(seed).permutation(sum(sizes))
    logits = torch.from_numpy(order[:, None] * np.ones(dims))
    starts = np.cumsum([0, *sizes])
    batches = [Batch(order[a:b], logits[a:b]) for a, b in pairwise(starts)]
    found = list(gathered(batches, len(order), step))
    assert [len(positions) for positions, _ in found] == [
        min(step, len(order) - start) for start in range(0, len(order), step)
    ]
    for positions, logits_BC in found:
        assert (logits_BC[:, 0].numpy() == positions).all()
    assert np.concatenate([order[:0], *(positions for positions, _ in found)]).tolist() == order.tolist()


class Batched(ArrayTeacher):
    """Answers in batches of another size, and the rows of each fold together, as networks do."""

    size = 64

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        folds = np.zeros(len(rows), int) if self.folds is None else self.folds[rows]
        for fold in np.unique(folds):
            own = np.flatnonzero(folds == fold)
            for start in range(0, len(own), self.size):
                some = own[start : start + self.size]
                yield Batch(some, self(rows[some], view))


@pytest.fixture(scope="module")
def logits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cells") / "logits.npy"
    np.save(path, teacher_logits(N, C).numpy())
    return path


def split() -> Split:
    samples = np.random.default_rng(0).random((N, 3), dtype=np.float32)
    return Split(name="made", split="train", spec="made", samples=samples, labels=np.arange(N) % C, num_classes=C)


def rows_of(teacher: ArrayTeacher, encoding: Encoding, out: Path) -> dict[str, np.ndarray]:
    """What the store holds of every row, and the constants."""
    cache_teacher(teacher, out, encoding=encoding, block_rows=1000)
    stored = open_store(out).teacher()
    return {**stored.slab(0, list(encoding.row_arrays())), **stored.constants()}


def same(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize("folds", [None, 2], ids=["one teacher", "2 folds"])
@pytest.mark.parametrize("kind", ENCODINGS)
def test_bytes_do_not_depend_on_the_batches_of_a_teacher(
    kind: str, folds: int | None, logits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "HELD_BYTES", 4 * C * 96)
    plan = None if folds is None else FoldPlan(num_folds=folds)
    found = []
    for size in (7, 64, 5000):
        teacher = Batched(logits, split(), Views(), plan=plan)
        teacher.size = size
        found.append(rows_of(teacher, ENCODINGS[kind], tmp_path / f"{size}.zarr"))
    same(found[0], found[1])
    same(found[0], found[2])


@pytest.mark.parametrize("kind", ENCODINGS)
def test_a_block_in_groups_is_the_block_at_once(
    kind: str, logits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = rows_of(ArrayTeacher(logits, split(), Views()), ENCODINGS[kind], tmp_path / "whole.zarr")
    monkeypatch.setattr(answering, "HELD_BYTES", 4 * C * 96)
    parts = rows_of(ArrayTeacher(logits, split(), Views()), ENCODINGS[kind], tmp_path / "parts.zarr")
    if kind == "topk+tail":  # a product of matrices may round otherwise: a coefficient on an edge, once in a long while
        assert (whole.pop("tail_code") != parts.pop("tail_code")).mean() < 1e-3
    same(whole, parts)


WIDE, BLOCK = 5000, 16_384


class Wide(Batched):
    """Makes the answers to the rows asked for, and keeps none."""

    def __init__(self) -> None:
        samples = np.random.default_rng(0).random((BLOCK, 3), dtype=np.float32)
        labels = np.arange(BLOCK) % WIDE
        self.split = Split(name="w", split="train", spec="w", samples=samples, labels=labels, num_classes=WIDE)
        self.views, self.seen = Views(), np.zeros(BLOCK, np.int8)
        self.folds = self.fold_attributes = self.groups = None

    def identity(self) -> dict[str, object]:
        return {"architecture": "made", "weights_sha256": ["00"], "precision": "float32"}

    def __call__(self, rows: Rows, view: int) -> Tensor:
        place_BC = torch.from_numpy(rows).float()[:, None] + torch.arange(WIDE) * 0.7
        return torch.sin(place_BC)


def measure_pass(out: Path) -> float:
    """Bytes by which a pass over one block raised this process's memory, over those of the block's logits."""
    torch.set_num_threads(1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    encoding = Encoding(kind="topk", num_classes=WIDE, top_k=5)
    cache_teacher(Wide(), out, encoding=encoding, predictor_rows=0, block_rows=BLOCK)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (4 * WIDE * BLOCK)


def test_a_block_is_never_held_in_full(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from tests.test_cells import measure_pass
print(measure_pass(Path({str(tmp_path / "s.zarr")!r})))
"""
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
    assert float(said.stdout) < 1.3
