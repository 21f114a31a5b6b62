"""Creating, resuming and finishing, and what is refused on the way."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.stores import Cell, StoreError, create_store, open_store
from tests.test_stores import ARRAYS, C, K, N, V, description, finished, rows, writer


def test_creating_again_is_the_same_or_an_error(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, **description())
    before = (path / "zarr.json").read_bytes()
    create_store(path, **description())
    assert (path / "zarr.json").read_bytes() == before
    with pytest.raises(StoreError, match="license is null in the store"):
        create_store(path, **description(attributes={"license": "MIT"}))
    other = description()["dataset"] | {"fingerprint": "9a", "split": "test"}
    with pytest.raises(StoreError, match=r"3f.*9a"):
        create_store(path, **description(dataset=other))
    with pytest.raises(StoreError, match=r"views\.seed is 0 in the store and 1 here"):
        create_store(path, **description(views=description()["views"] | {"seed": 1}))
    keys = description()["keys"].copy()
    keys[-1] += np.uint64(1)
    with pytest.raises(StoreError, match="examples/key"):
        create_store(path, **description(keys=keys))
    with pytest.raises(StoreError, match="examples/fold"):
        create_store(path, **description(folds=np.zeros(N, dtype=np.uint16)))


def test_a_wrong_description_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    for change in (
        {"keys": np.zeros(N - 1, dtype=np.uint64)},
        {"keys": np.zeros(N, dtype=np.int64)},
        {"labels": np.full(N, C)},
        {"labels": np.zeros(N, dtype=np.float32)},
        {"folds": np.full(N, 70_000)},
        {"dataset": description()["dataset"] | {"num_examples": 0}},
        {"views": {"num_views": True}},
        {"views": {"num_views": 1, "seed": float("nan")}},
        {"attributes": {"digest": "x"}},
        {"probes": {"../x": np.zeros(1)}},
        {"probes": {"x": np.array(["text"])}},
        {"probes": {"x": np.array([object()])}},
    ):
        with pytest.raises(StoreError):
            create_store(path, **description(**change))
    assert list(tmp_path.iterdir()) == []


def test_resume_goes_on_and_refuses_another_teacher(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, **description())
    first = writer(path)
    cells = first.pending()
    assert cells == [Cell(view, block) for view in range(V) for block in range(3)]
    first.write(cells[2], rows(first, cells[2]))
    again = writer(path)
    assert again.pending() == [cell for cell in cells if cell != cells[2]]
    assert [cell for cell in again.cells() if again.is_committed(cell)] == [cells[2]]
    with pytest.raises(StoreError, match="cannot finish, 5 of 6 cells"):
        again.finish(fidelity={})
    others: list[dict[str, Any]] = [
        {"identity": {"architecture": "other"}},
        {"encoding": {"kind": "topk", "top_k": K, "bits": 16}},
        {"arrays": {"index": ARRAYS["index"]}},
        {"folds": {"num_folds": 2}},
        {"constants": {}},
        {"constants": {"tail_bias": np.zeros(C, dtype=np.float32)}},
        {"block_rows": 256},
    ]
    for changes in others:
        with pytest.raises(StoreError, match="another teacher"):
            writer(path, **changes)
    writer(path, name="u", block_rows=None)
    assert open_store(path, allow_incomplete=True).teachers == ("t", "u")
    with pytest.raises(StoreError, match="found t, u"):
        open_store(path, allow_incomplete=True).teacher()


def test_unfinished_rows_are_never_returned(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, **description())
    teacher = writer(path)
    teacher.write(Cell(0, 1), rows(teacher, Cell(0, 1)))
    with pytest.raises(StoreError, match="unfinished \\(5 of 6 cells"):
        open_store(path)
    with pytest.raises(StoreError, match="unfinished"):
        open_store(path).teacher("t")
    read = open_store(path, allow_incomplete=True).teacher("t")
    assert not read.complete
    assert len(read.block(0, 1)["index"]) == 512
    with pytest.raises(StoreError, match="not committed"):
        read.slab(0)
    for view, block in ((0, 0), (V, 0), (0, 3), (-1, 1)):
        with pytest.raises(StoreError):
            read.block(view, block)
    finished(tmp_path / "other.zarr")
    writer(tmp_path / "other.zarr", name="later")
    assert open_store(tmp_path / "other.zarr").teachers == ("t",)
    with pytest.raises(StoreError, match="unfinished"):
        open_store(tmp_path / "other.zarr").teacher("later")


def test_a_cell_takes_only_its_own_shape_and_dtype(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, **description())
    teacher = writer(path)
    good = rows(teacher, Cell(0, 0))
    for bad in (
        {"index": good["index"]},
        good | {"logsumexp": good["logsumexp"].astype(np.float64)},
        good | {"logsumexp": good["logsumexp"][1:]},
        good | {"mask": good["logsumexp"]},
    ):
        with pytest.raises(StoreError):
            teacher.write(Cell(0, 0), bad)
    assert len(teacher.pending()) == 6
    fortran = good | {"index": np.asfortranarray(good["index"])}
    teacher.write(Cell(0, 0), fortran)
    np.testing.assert_array_equal(open_store(path, allow_incomplete=True).teacher().block(0, 0)["index"], good["index"])
