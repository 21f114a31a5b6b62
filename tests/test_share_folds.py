"""Folds without answers: a colleague trains fold teachers of their own on exactly these folds."""

from pathlib import Path

import numpy as np
import pytest

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.look.describe import describe_store, format_description
from logitbank.pipeline.views import Views
from logitbank.stores import StoreError, copy_store, open_store, verify_store
from tests.sharing import contents, make_store, memory_bucket, web_server

DENSE = Encoding(kind="dense", num_classes=10, bits=8)


@pytest.fixture(scope="module")
def store(digits: Split, fold_teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("folds") / "s.zarr"
    cache_teacher(
        NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(fold_teachers)), Views()), out, encoding=DENSE
    )
    return out


def test_a_copy_of_the_folds_is_a_store(store: Path, digits: Split, tmp_path: Path) -> None:
    copied = copy_store(store, tmp_path / "folds.zarr", folds_only=True)
    assert (copied.teachers, copied.num_views) == ((), 1)
    assert verify_store(tmp_path / "folds.zarr") == []
    bare, whole = open_store(tmp_path / "folds.zarr"), open_store(store)
    check_data(bare, digits)
    assert bare.folds is not None
    assert np.array_equal(bare.folds, np.asarray(whole.folds))
    assert np.array_equal(bare.keys, whole.keys)
    assert not list((tmp_path / "folds.zarr" / "teachers").glob("*/"))
    said = describe_store(tmp_path / "folds.zarr")
    assert (said["num_folds"], said["folds"]["strategy"], said["folds"]["seed"]) == (3, "stratified", 0)
    assert "proof" not in said["folds"]  # that is a teacher's
    assert "folds     3 (stratified, seed 0)" in format_description(said)
    assert "no teacher has answered yet" in format_description(said)
    assert copy_store(store, tmp_path / "folds.zarr", folds_only=True).already_there
    with pytest.raises(StoreError, match="is there and is not this store"):
        copy_store(store, tmp_path / "folds.zarr")


def test_by_every_way_and_without_a_row(store: Path, tmp_path: Path) -> None:
    copy_store(store, tmp_path / "f.zarr", folds_only=True)
    with memory_bucket() as bucket, web_server(store.parent) as (url, requests):
        copy_store(f"{url}/s.zarr", tmp_path / "f.zarr.zip", folds_only=True)
        assert not any("/teachers/teacher/" in path and "/c/" in path for path in requests)
        copy_store(tmp_path / "f.zarr.zip", bucket)
        copy_store(bucket, tmp_path / "g.zarr")
    assert contents(tmp_path / "g.zarr") == contents(tmp_path / "f.zarr")


def test_teachers_of_ones_own_answer_into_it(store: Path, digits: Split, tmp_path: Path) -> None:
    copy_store(store, tmp_path / "f.zarr", folds_only=True)
    plan = open_store(tmp_path / "f.zarr").attributes["folds"]
    same = FoldPlan(num_folds=plan["num_folds"], strategy=plan["strategy"], seed=plan["seed"])
    for name, folds in (("same", same), ("other", FoldPlan(num_folds=3, seed=1))):
        train_teachers(digits, "linear", Training(epochs=1), tmp_path / name, plan=folds)
    other = NetworkTeacher(digits, load_teachers(digits, "linear", str(tmp_path / "other")), Views())
    with pytest.raises(StoreError, match="examples/fold"):
        cache_teacher(other, tmp_path / "f.zarr", encoding=DENSE)
    own = NetworkTeacher(digits, load_teachers(digits, "linear", str(tmp_path / "same")), Views())
    assert cache_teacher(own, tmp_path / "f.zarr", encoding=DENSE)["kind"] == "out-of-fold"
    assert open_store(tmp_path / "f.zarr").teacher().folds == {**plan, "proof": "metadata"}


def test_there_must_be_folds(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="has no folds.*leave out --folds"):
        copy_store(make_store(tmp_path / "s.zarr"), tmp_path / "f.zarr", folds_only=True)
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


def test_what_a_stranger_calls_folds_is_refused(tmp_path: Path) -> None:
    cases = [
        ("many", "folds must be an object"),
        (["a"], "folds must be an object"),
        ({"num_folds": {"a": 1}}, "num_folds"),
    ]
    for number, (folds, reason) in enumerate(cases):
        path = make_store(tmp_path / f"{number}.zarr", (), attributes={"folds": folds})
        with pytest.raises(StoreError, match=reason):
            describe_store(path)
