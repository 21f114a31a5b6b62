"""Copies to and from a real S3-compatible server on loopback: the rules of `tests/test_share.py` over the wire."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from logitbank.stores.share.copy import copy_store
from tests.sharing import add_teacher, contents, make_store, s3_server


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with s3_server(monkeypatch) as url:
        yield url


def test_to_a_bucket_and_back(bucket: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", ("a",))
    copy_store(store, f"{bucket}/s.zarr")
    copy_store(f"{bucket}/s.zarr", tmp_path / "back.zarr")
    assert contents(tmp_path / "back.zarr") == contents(store)
    add_teacher(store, "b")
    copy_store(store, f"{bucket}/s.zarr")  # only what is new
    copied = copy_store(f"{bucket}/s.zarr", tmp_path / "part.zarr", num_views=1, teachers=["b"])
    assert (copied.teachers, copied.num_views) == (("b",), 1)
