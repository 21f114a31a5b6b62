"""A teacher's documents name the examples they answer: put beside others, however it came there, it is refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.stores import StoreError, copy_store, create_store, open_store, verify_store
from logitbank.stores.format.documents import examples_sha256, sealed
from logitbank.stores.read.reader import load_root
from tests.golden.make import C, N, V
from tests.sharing import add_teacher

GOLDEN = Path(__file__).parent / "golden" / "topk.zarr"
KEYS = np.arange(N, dtype=np.uint64)
BASE: dict[str, Any] = {
    "dataset": {"name": "toy", "split": "train", "num_examples": N, "num_classes": C, "fingerprint": "00"},
    "views": {"num_views": V, "transform": "none", "seed": 0, "versions": {}},
    "keys": KEYS,
    "labels": np.arange(N) % C,
}
OTHERS: dict[str, dict[str, Any]] = {
    "another order of the rows": {"keys": KEYS[::-1]},
    "another label": {"labels": (np.arange(N) + 1) % C},
    "folds": {"folds": np.arange(N) % 2},
    "groups": {"groups": KEYS},
    "another split": {"dataset": {**BASE["dataset"], "split": "test"}},
    "other views": {"views": {**BASE["views"], "seed": 1}},
    "other pixels in a view": {"probes": {"row": np.arange(2, dtype=np.uint32)}},
}


def store_of(path: Path, name: str, **changes: Any) -> Path:
    create_store(path, **{**BASE, **changes})
    add_teacher(path, name)
    return path


@pytest.mark.parametrize("change", OTHERS)
def test_a_teacher_of_other_examples_is_refused_everywhere(change: str, tmp_path: Path) -> None:
    """Same N, C and V: nothing but the binding tells them apart."""
    store = store_of(tmp_path / "a.zarr", "a")
    other = store_of(tmp_path / "b.zarr", "b", **OTHERS[change])
    shutil.copytree(other / "teachers" / "b", store / "teachers" / "b")
    assert [problem.array for problem in verify_store(store)] == ["teachers/b"]
    with pytest.raises(StoreError, match=r"teachers/b answers other examples.*--teacher-name"):
        open_store(store).teacher("b")
    with pytest.raises(StoreError, match="answers other examples"):
        copy_store(store, tmp_path / "c.zarr")
    with pytest.raises(StoreError, match="answers other examples"):
        add_teacher(store, "b")
    assert copy_store(store, tmp_path / "c.zarr", teachers=["a"]).teachers == ("a",)
    assert verify_store(tmp_path / "c.zarr") == []


def test_a_teacher_may_move_to_the_same_examples(tmp_path: Path) -> None:
    store, other = store_of(tmp_path / "a.zarr", "a"), store_of(tmp_path / "b.zarr", "b")
    shutil.copytree(other / "teachers" / "b", store / "teachers" / "b")
    assert verify_store(store) == []


def test_an_old_store_is_read_and_a_part_of_it_is_bound(tmp_path: Path) -> None:
    copy_store(GOLDEN, tmp_path / "whole.zarr")
    assert "examples_sha256" not in attributes_of(tmp_path / "whole.zarr", "golden")
    copy_store(GOLDEN, tmp_path / "part.zarr", num_views=1)
    bound = attributes_of(tmp_path / "part.zarr", "golden")["examples_sha256"]
    assert (
        bound
        == examples_sha256(load_root(tmp_path / "part.zarr"))
        == open_store(tmp_path / "part.zarr").examples_sha256
    )


def test_an_old_unfinished_teacher_is_bound_when_it_is_finished(tmp_path: Path) -> None:
    store = store_of(tmp_path / "a.zarr", "a")
    add_teacher(store, "b", finish=False)
    where = store / "teachers" / "b"
    documents = {"": json.loads((where / "zarr.json").read_text())}
    for name in documents[""]["attributes"]["documents"]:
        documents[name] = json.loads((where / name / "zarr.json").read_text())
    del documents[""]["attributes"]["examples_sha256"]
    (where / "zarr.json").write_text(json.dumps(sealed(documents)[""]))
    add_teacher(store, "b")
    assert attributes_of(store, "b")["examples_sha256"] == open_store(store).examples_sha256


def attributes_of(store: Path, teacher: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((store / "teachers" / teacher / "zarr.json").read_text())["attributes"]
    return found
