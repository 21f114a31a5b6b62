"""What a team does: cache, push, pull a part, check it, train, add a teacher, push back, train from all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache_teacher.answers import NetworkAnswers
from pipeline.cache_teacher.run import cache_teacher
from pipeline.cache_teacher.teachers import load_teachers
from pipeline.cache_teacher.train import train_teachers
from pipeline.datasets import Split, load_split
from pipeline.encoding import Encoding
from pipeline.exchange import describe_examples
from pipeline.fit import Training
from pipeline.train_student.losses import parse_objective
from pipeline.train_student.run import train_student
from pipeline.train_student.signal import check_data
from pipeline.views import Views
from stores import copy_store, local_store, open_store, verify_store
from stores.merge import merge_stores
from tests.sharing import memory_bucket, s3_server


@pytest.fixture(params=["memory", "s3"])
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with memory_bucket() if request.param == "memory" else s3_server(monkeypatch) as url:
        yield url


def student(store: Path, split: Split, out: Path, teacher: str) -> dict[str, Any]:
    objective = parse_objective("kd", {})
    test = load_split("digits?split=test")
    return train_student(open_store(store), split, test, "mlp:16", objective, Training(epochs=4), out, teacher=teacher)


def test_a_store_goes_to_a_colleague_and_comes_back_grown(
    bucket: str, digits: Split, plain_teacher: Path, tmp_path: Path
) -> None:
    a, b = tmp_path / "machine-a", tmp_path / "machine-b"
    views = Views(transform="flip-crop", num_views=3, seed=1)
    encoding = Encoding(kind="dense", num_classes=10, bits=8)

    first = NetworkAnswers(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), views)
    cache_teacher(first, a / "own.zarr", encoding=encoding, name="ann")
    copy_store(a / "own.zarr", f"{bucket}/own.zarr")

    mine = load_split("digits")  # B's own copy of the data, and no weights of A's
    copy_store(f"{bucket}/own.zarr", b / "two-views.zarr", num_views=2)
    assert verify_store(b / "two-views.zarr") == []
    check_data(open_store(b / "two-views.zarr"), mine)
    assert student(b / "two-views.zarr", mine, b / "run", "ann")["accuracy"] > 0.6

    train_teachers(mine, "mlp:24", Training(epochs=3, seed=5), b / "weights")
    two = Views(transform="flip-crop", num_views=2, seed=1)
    second = NetworkAnswers(mine, load_teachers(mine, "mlp:24", str(b / "weights")), two)
    cache_teacher(second, b / "own.zarr", encoding=encoding, name="bob")
    merge_stores([b / "two-views.zarr", b / "own.zarr"], b / "both.zarr", describe=describe_examples)
    copy_store(b / "both.zarr", f"{bucket}/both.zarr")

    here = local_store(f"{bucket}/both.zarr", a / "cache")
    store = open_store(here)
    assert (store.teachers, store.num_views) == (("ann", "bob"), 2)
    assert [step["operation"] for step in store.attributes["lineage"]] == ["copy", "merge"]
    check_data(store, digits)
    assert student(here, digits, a / "run", "ann,bob")["accuracy"] > 0.6
