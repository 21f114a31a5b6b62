"""What a team does: cache, push, pull a part, check it, train, add a teacher, push back, train from all."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from logitbank.pipeline.alignment import check_data, describe_examples
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.views import Views
from logitbank.stores import copy_store, local_store, open_store, verify_store
from logitbank.stores.write.merge import merge_stores
from tests.sharing import memory_bucket, s3_server
from tests.students import train
from tests.test_cli import run


@pytest.fixture
def bucket() -> Iterator[str]:
    with memory_bucket() as url:
        yield url


def student(store: Path, split: Split, out: Path, teacher: str) -> dict[str, Any]:
    return train(open_store(store), split, load_split("digits?split=test"), out, epochs=4, teacher=teacher)


def test_a_store_goes_to_a_colleague_and_comes_back_grown(
    bucket: str, digits: Split, plain_teacher: Path, tmp_path: Path
) -> None:
    a, b = tmp_path / "machine-a", tmp_path / "machine-b"
    views = Views(transform="flip-crop", num_views=3, seed=1)
    encoding = Encoding(kind="dense", num_classes=10, bits=8)

    first = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), views)
    cache_teacher(first, a / "own.zarr", encoding=encoding, name="ann")
    copy_store(a / "own.zarr", f"{bucket}/own.zarr")

    mine = load_split("digits")  # B's own copy of the data, and no weights of A's
    copy_store(f"{bucket}/own.zarr", b / "two-views.zarr", num_views=2)
    assert verify_store(b / "two-views.zarr") == []
    check_data(open_store(b / "two-views.zarr"), mine)
    assert student(b / "two-views.zarr", mine, b / "run", "ann")["accuracy"] > 0.6

    train_teachers(mine, "mlp:24", Training(epochs=3, seed=5), b / "weights")
    two = Views(transform="flip-crop", num_views=2, seed=1)
    second = NetworkTeacher(mine, load_teachers(mine, "mlp:24", str(b / "weights")), two)
    cache_teacher(second, b / "own.zarr", encoding=encoding, name="bob")
    merge_stores([b / "two-views.zarr", b / "own.zarr"], b / "both.zarr", describe=describe_examples)
    copy_store(b / "both.zarr", f"{bucket}/both.zarr")

    here = local_store(f"{bucket}/both.zarr", a / "cache")
    store = open_store(here)
    assert (store.teachers, store.num_views) == (("ann", "bob"), 2)
    assert [step["operation"] for step in store.attributes["lineage"]] == ["copy", "merge"]
    check_data(store, digits)
    assert student(here, digits, a / "run", "ann,bob")["accuracy"] > 0.6


def test_the_same_in_commands_over_a_bucket_on_a_server(
    monkeypatch: pytest.MonkeyPatch, plain_teacher: Path, tmp_path: Path
) -> None:
    """Two machines that share nothing but an S3 server: every step is a process of its own."""
    a, b = tmp_path / "machine-a", tmp_path / "machine-b"
    a.mkdir()
    b.mkdir()
    few = ("--data", "digits?limit=600")
    passes = (*few, "--transform", "flip-crop", "--encoding", "dense")
    pupil = ("--student", "mlp:16", "--epochs", "15")

    def on(machine: Path, *arguments: str) -> str:
        monkeypatch.setenv("LOGITBANK_CACHE", str(machine / "cache"))
        done = run(*arguments, cwd=machine)
        assert (done.returncode, "Warning" in done.stderr) == (0, False), (arguments, done.stderr)
        return done.stdout

    with s3_server(monkeypatch) as url:
        own = ("--teacher", "mlp:32", "--weights", str(plain_teacher), "--teacher-name", "ann")
        on(a, "cache-teacher", *own, *passes, "--views", "3", "--out", "own.zarr")
        assert "3 views, teachers: ann" in on(a, "copy", "own.zarr", f"{url}/own.zarr")

        on(b, "copy", f"{url}/own.zarr", "two-views.zarr", "--views", "2")
        assert "sound: 600 rows x 2 views" in on(b, "verify", "two-views.zarr", *few)
        on(b, "train-student", "--store", "two-views.zarr", *few, *pupil, "--out", "run")
        on(b, "train-teacher", "--teacher", "mlp:24", *few, "--epochs", "3", "--seed", "5", "--out", "weights")
        mine = ("--teacher", "mlp:24", "--weights", "weights", "--teacher-name", "bob")
        on(b, "cache-teacher", *mine, *passes, "--views", "2", "--out", "own.zarr")
        on(b, "merge", "two-views.zarr", "own.zarr", "--out", "both.zarr")
        on(b, "copy", "both.zarr", f"{url}/both.zarr")

        both = ("--store", f"{url}/both.zarr", "--teacher-name", "ann,bob")
        on(a, "train-student", *both, *few, *pupil, "--out", "run")
    (cached,) = (a / "cache").glob("*.zarr")
    assert (open_store(cached).teachers, open_store(cached).num_views) == (("ann", "bob"), 2)
    heard = json.loads((a / "run" / "result.json").read_text())["store"]["path"]
    assert heard == f"{url}/both.zarr"  # and not the file of the cache
    for machine in (a, b):
        assert json.loads((machine / "run" / "result.json").read_text())["accuracy"] > 0.5
    assert not list(b.glob("**/*own.zarr/teachers/ann"))  # nothing of A's but the two views
