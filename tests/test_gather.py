"""Rows asked for in any order: the same as of the whole view, and held a block at a time."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from logitbank.pipeline.alignment import describe_examples
from logitbank.pipeline.answers import teacher_rows
from logitbank.pipeline.look.diff import diff_teachers
from logitbank.stores import Cell, RowArray, StoreError, TeacherWriter, create_store, open_store
from logitbank.stores.read import gather
from logitbank.stores.read.gather import RowReader
from logitbank.stores.write.merge import subset_store
from tests import test_rows_hostile
from tests.test_stores import N, finished

NUM_ROWS, BLOCK_ROWS = 40_000, 1000


@pytest.mark.parametrize("names", [None, ["logsumexp"]])
def test_rows_are_those_of_the_view(tmp_path: Path, names: list[str] | None) -> None:
    teacher = open_store(finished(tmp_path / "s.zarr", block_rows=100)).teacher()
    reader = RowReader(teacher, names)
    for wanted in (np.arange(N), np.arange(N)[::-1], np.random.default_rng(0).integers(0, N, 2 * N), np.arange(0)):
        slab, taken = teacher.slab(1, names), reader.take(1, wanted)
        assert taken.keys() == slab.keys()
        for name, values in slab.items():
            np.testing.assert_array_equal(taken[name], values[wanted])


def test_no_more_than_a_block_is_held_beside_the_rows(tmp_path: Path) -> None:
    """A view of 10 MB, in 40 blocks, is gone through in less than a fifth of that."""
    dataset = {"name": "toy", "split": "train", "num_examples": NUM_ROWS, "num_classes": 2}
    keys, labels = np.arange(NUM_ROWS, dtype=np.uint64), np.zeros(NUM_ROWS, np.int64)
    create_store(tmp_path / "s.zarr", dataset=dataset, views={"num_views": 1}, keys=keys, labels=labels)
    arrays = {"embedding": RowArray(dtype="float32", row_shape=(64,))}
    writer = TeacherWriter(tmp_path / "s.zarr", "t", identity={}, encoding={}, arrays=arrays, block_rows=BLOCK_ROWS)
    for cell in writer.pending():
        writer.write(Cell(*cell), {"embedding": np.full((BLOCK_ROWS, 64), cell.block, np.float32)})
    writer.finish(fidelity={})
    reader = RowReader(open_store(tmp_path / "s.zarr").teacher())
    reader.take(0, np.arange(1))
    tracemalloc.start()
    for start in range(0, NUM_ROWS, 700):
        wanted = np.arange(start, min(start + 700, NUM_ROWS))
        assert (reader.take(0, wanted)["embedding"][:, 0] == wanted // BLOCK_ROWS).all()
    assert tracemalloc.get_traced_memory()[1] < NUM_ROWS * 64 * 4 / 5
    tracemalloc.stop()


def test_teachers_differ_by_the_same_whatever_the_order_and_the_size_of_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = test_rows_hostile.make(tmp_path / "a.zarr", np.random.default_rng(11), 0)
    second = test_rows_hostile.make(tmp_path / "b.zarr", np.random.default_rng(3), 0)
    order = np.random.default_rng(0).permutation(test_rows_hostile.N)
    subset_store(second, tmp_path / "c.zarr", order, describe=describe_examples)
    expected = diff_teachers((open_store(first), None), (open_store(second), None), temperature=2.0)
    monkeypatch.setattr(gather, "GROUP_BYTES", 1)
    monkeypatch.setattr(teacher_rows, "DECODED_BYTES", 1)
    found = diff_teachers((open_store(first), None), (open_store(tmp_path / "c.zarr"), None), temperature=2.0)
    assert not found["same_order"]
    assert found["num_rows"] == expected["num_rows"]
    for name in ("agreement", "kl", "kl_reverse", "accuracy"):
        assert found[name] == pytest.approx(expected[name], rel=1e-5)
    for one, other in zip(found["per_class"], expected["per_class"], strict=True):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert value == other[name] if name == "name" else value == pytest.approx(other[name], rel=1e-4, abs=1e-8)


def test_a_row_that_cannot_be_an_answer_is_refused_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    dataset = {"name": "toy", "split": "train", "num_examples": 30, "num_classes": 3}
    keys, labels = np.arange(30, dtype=np.uint64), np.zeros(30, np.int64)
    create_store(path, dataset=dataset, views={"num_views": 1}, keys=keys, labels=labels)
    writer = TeacherWriter(
        path, "t", identity={}, encoding={}, arrays={"logsumexp": RowArray(dtype="float32")}, block_rows=8
    )
    values = np.where(np.arange(30) == 21, np.nan, 1).astype(np.float32)
    for cell in writer.pending():
        writer.write(cell, {"logsumexp": values[writer.rows(cell.block)]})
    writer.finish(fidelity={})
    reader = RowReader(open_store(path).teacher())
    assert len(reader.answers(0, np.array([29, 20, 22]))["logsumexp"]) == 3
    with pytest.raises(StoreError, match="row 21 holds NaN"):
        reader.answers(0, np.array([29, 21, 3]))
