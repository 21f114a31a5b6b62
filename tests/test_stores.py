"""The store's everyday life: create, write, finish, open, read."""

from pathlib import Path

import numpy as np
import pytest

from stores import Cell, RowArray, StoreError, TeacherWriter, create_store, open_store, verify_store

N, V, C, K = 2500, 2, 100, 10
ARRAYS = {
    "index": RowArray(dtype="uint8", row_shape=(K,)),
    "log_prob": RowArray(dtype="float16", row_shape=(K,)),
    "logsumexp": RowArray(dtype="float32"),
}


def create(path: Path) -> None:
    rng = np.random.default_rng(0)
    create_store(
        path,
        dataset={"name": "toy", "split": "train", "num_examples": N, "num_classes": C, "fingerprint": "3f"},
        views={"num_views": V, "transform": "none", "seed": 0, "versions": {}},
        keys=rng.integers(0, 2**64, N, dtype=np.uint64),
        labels=rng.integers(0, C, N),
    )


def writer(path: Path, name: str = "t") -> TeacherWriter:
    return TeacherWriter(path, name, identity={"a": 1}, encoding={"kind": "topk", "top_k": K}, arrays=ARRAYS)


def rows(teacher: TeacherWriter, cell: Cell) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([cell.view, cell.block])
    where = teacher.rows(cell.block)
    num = where.stop - where.start
    return {
        "index": rng.integers(0, C, (num, K), dtype=np.uint8),
        "log_prob": -rng.exponential(size=(num, K)).astype(np.float16),
        "logsumexp": rng.normal(size=num).astype(np.float32),
    }


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create(path)
    teacher = writer(path)
    for cell in teacher.pending():
        teacher.write(cell, rows(teacher, cell))
    assert writer(path).pending() == []
    teacher.finish(fidelity={"1": 0.1})
    read = open_store(path).teacher()
    assert read.complete
    for view in range(V):
        slab = read.slab(view)
        for block in range(read.num_blocks):
            for name, values in rows(teacher, Cell(view, block)).items():
                np.testing.assert_array_equal(slab[name][teacher.rows(block)], values)
    assert verify_store(path) == []


def test_unfinished_is_refused(tmp_path: Path) -> None:
    create(tmp_path / "s.zarr")
    writer(tmp_path / "s.zarr")
    with pytest.raises(StoreError, match="unfinished"):
        open_store(tmp_path / "s.zarr")
