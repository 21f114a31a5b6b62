"""Stores with positions that are damaged, or mean harm: one line, and no memory that is not there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.encoding import Encoding
from logitbank.stores import RowArray, StoreError, TeacherWriter, create_store, open_store, verify_store
from logitbank.stores.format.schema import MAX_BLOCK_ROWS, check_row_arrays, default_block_rows
from tests.positions import write_files, write_store
from tests.test_stores_faults import everything, one_line
from tests.test_stores_hostile import edit

N, L, C, K = 10, 7, 12, 4
INDEX = "teachers/teacher/index"
HOSTILE: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "no position": ("", lambda d: d["attributes"]["dataset"].update(num_positions=0)),
    "endless positions": ("", lambda d: d["attributes"]["dataset"].update(num_positions=2**40)),
    "very many positions": ("", lambda d: d["attributes"]["dataset"].update(num_positions=2**20)),
    "a position less": ("", lambda d: d["attributes"]["dataset"].update(num_positions=L - 1)),
    "positions that are no number": ("", lambda d: d["attributes"]["dataset"].update(num_positions=True)),
    "positions that are not said": ("", lambda d: d["attributes"]["dataset"].pop("num_positions")),
    "positions of the first version": ("", lambda d: d["attributes"].update(version=1)),
    "labels of examples": ("examples/label", lambda d: d.update(shape=[N])),
    "labels of more positions": ("examples/label", lambda d: d.update(shape=[N, L + 1])),
    "endless labels": ("examples/label", lambda d: d.update(shape=[N, 2**50])),
    "keys of positions": ("examples/key", lambda d: d.update(shape=[N, L])),
    "rows of more positions": (INDEX, lambda d: d.update(shape=[1, N, L + 1, K])),
    "rows without positions": (INDEX, lambda d: d.update(shape=[1, N, K], dimension_names=["view", "example", "kept"])),
    "positions in another place": (INDEX, lambda d: d.update(dimension_names=["view", "example", "kept", "position"])),
    "a row of more positions": (
        "teachers/teacher",
        lambda d: d["attributes"]["arrays"]["index"].update(row_shape=[L + 1, K]),
    ),
    "a row of endless positions": (
        "teachers/teacher",
        lambda d: d["attributes"]["arrays"]["index"].update(row_shape=[2**30, K]),
    ),
    "a mask of examples": ("teachers/teacher", lambda d: d["attributes"]["arrays"]["mask"].update(row_shape=[])),
}


def made(folder: Path) -> Path:
    data, _ = write_files(folder, N, L, C, ragged=True)
    return write_store(folder, data, Encoding(kind="topk", num_classes=C, top_k=K), predictor_rows=0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made(tmp_path_factory.mktemp("positions"))


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_positions_are_refused(case: str, tmp_path: Path) -> None:
    path = made(tmp_path)
    folder, change = HOSTILE[case]
    edit(path, change, folder)
    one_line(lambda: everything(path))
    assert verify_store(path)


def test_an_answer_that_lies_is_named_with_its_position(store: Path, tmp_path: Path) -> None:
    there = open_store(store)
    teacher = there.teacher()
    slab = {name: array.copy() for name, array in teacher.slab(0).items()}
    row, position = (int(place[0]) for place in np.nonzero(slab["mask"] & (there.labels >= 0)))
    slab["index"][row, position] = slab["index"][row, position][::-1]
    slab["index"][~slab["mask"]] = 0  # what is not served may hold anything
    create_store(tmp_path / "s", dataset=there.dataset, views=there.views, keys=there.keys, labels=there.labels)
    writer = TeacherWriter(
        tmp_path / "s",
        "teacher",
        identity={},
        encoding=teacher.encoding,
        arrays=teacher.row_arrays,
    )
    writer.write(writer.pending()[0], slab)
    writer.finish(fidelity={})
    (problem,) = verify_store(tmp_path / "s")
    assert problem.message.startswith(f"view 0 row {row} position {position} contradicts its example's label")
    answers = StoredAnswers(open_store(tmp_path / "s"))
    with pytest.raises(StoreError, match=f"view 0 row {row} position {position} contradicts"):
        answers.logits(torch.tensor([row]), 0)


def test_labels_and_rows_must_have_the_positions_that_the_data_has(store: Path, tmp_path: Path) -> None:
    there = open_store(store)
    given: dict[str, Any] = {"dataset": there.dataset, "views": there.views, "keys": there.keys}
    for labels in (there.labels[:, 0], there.labels[:, 1:], there.labels[..., None]):
        with pytest.raises(StoreError, match=f"each of {N} examples and each of {L} positions"):
            create_store(tmp_path / "s", labels=labels, **given)
    with pytest.raises(StoreError, match="version 1 has no positions"):
        create_store(tmp_path / "s", labels=there.labels, **given, version=1)
    with pytest.raises(StoreError, match="num_positions must be 1 to"):
        create_store(tmp_path / "s", labels=there.labels, **{**given, "dataset": {**there.dataset, "num_positions": 0}})
    create_store(tmp_path / "s", labels=there.labels, **given)
    for shape in ((K,), (L + 1, K), (L, K, 1)):
        arrays = {"index": RowArray(dtype="uint8", row_shape=shape)}
        with pytest.raises(StoreError, match="array index must have"):
            TeacherWriter(tmp_path / "s", "t", identity={}, encoding={"top_k": K}, arrays=arrays)
    mixed = {"index": RowArray(dtype="uint8", row_shape=(6, K))}
    with pytest.raises(StoreError, match="7 per position"):
        check_row_arrays(mixed, num_classes=C, encoding={"top_k": K}, positions=7)


@pytest.mark.parametrize("length", [1, 7, 128, 1024, 2**20])
def test_blocks_are_counted_in_answers(length: int) -> None:
    slim = {"index": RowArray(dtype="uint16", row_shape=(10,)).at(length)}
    plain = {"index": RowArray(dtype="uint16", row_shape=(10,))}
    for num_examples in (100, 50_000, 1_281_167):
        rows = default_block_rows(num_examples, slim, positions=length)
        assert 1 <= rows <= num_examples
        assert rows == 1 or rows * length <= MAX_BLOCK_ROWS
        assert rows * length >= min(num_examples * length, 512)
        if length == 1:
            assert rows == default_block_rows(num_examples, plain)
