"""Copies to and from a real S3-compatible server on loopback.

Skipped where `moto[server]` and `s3fs` are missing: they bring some sixty packages, so they are no part of the
"dev" extra. `pip install 'moto[server]' s3fs` runs this test; the rules it checks are those that
`tests/test_share.py` checks against fsspec's store in memory.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stores.share import copy_store
from tests.sharing import add_teacher, contents, make_store

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    address = f"http://127.0.0.1:{server._server.server_port}"
    for name, value in (("ENDPOINT_URL", address), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir("team")
    yield "s3://team"
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_to_a_bucket_and_back(bucket: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", ("a",))
    copy_store(store, f"{bucket}/s.zarr")
    copy_store(f"{bucket}/s.zarr", tmp_path / "back.zarr")
    assert contents(tmp_path / "back.zarr") == contents(store)
    add_teacher(store, "b")
    copy_store(store, f"{bucket}/s.zarr")  # only what is new
    copied = copy_store(f"{bucket}/s.zarr", tmp_path / "part.zarr", num_views=1, teachers=["b"])
    assert (copied.teachers, copied.num_views) == (("b",), 1)
