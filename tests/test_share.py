"""Copies of stores: whole, in part, interrupted, and from places that fail or lie."""

import http.server
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.stores import StoreError, copy_store, local_store, open_store, verify_store
from logitbank.stores.share.fetch import CopyProgress
from tests.sharing import add_teacher, contents, make_store, memory_bucket, web_server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("source") / "s.zarr")


@pytest.fixture
def bucket() -> Iterator[str]:
    with memory_bucket() as url:
        yield url


def nothing_beside(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_a_copy_is_the_store_byte_by_byte(store: Path, tmp_path: Path) -> None:
    seen: list[CopyProgress] = []
    copied = copy_store(store, tmp_path / "c.zarr", report=seen.append)
    assert copied.teachers == ("a", "b")
    assert contents(tmp_path / "c.zarr") == contents(store)
    assert len(seen) == seen[-1].num_files == 2 * 2 * 2 * 6
    assert nothing_beside(tmp_path, "c.zarr")
    assert copy_store(store, tmp_path / "c.zarr").already_there


def test_every_way_there_and_back(store: Path, tmp_path: Path, bucket: str) -> None:
    copy_store(store, tmp_path / "c.zarr.zip")
    copy_store(tmp_path / "c.zarr.zip", bucket)
    copy_store(bucket, tmp_path / "d.zarr")
    assert contents(tmp_path / "d.zarr") == contents(store)
    with web_server(tmp_path) as (url, requests):
        copy_store(f"{url}/d.zarr", tmp_path / "e.zarr")
        copy_store(f"{url}/c.zarr.zip", tmp_path / "f.zarr")
    assert contents(tmp_path / "e.zarr") == contents(tmp_path / "f.zarr") == contents(store)
    assert sorted(requests)[0] == "/c.zarr.zip"
    copy_store(store, tmp_path / "g.zarr.zip")
    assert (tmp_path / "g.zarr.zip").read_bytes() == (tmp_path / "c.zarr.zip").read_bytes()
    assert copy_store(bucket, tmp_path / "g.zarr.zip").already_there


def test_a_part_is_a_sound_store_that_says_what_it_was_taken_from(store: Path, tmp_path: Path) -> None:
    copy_store(store, tmp_path / "part.zarr", num_views=1, teachers=["b"])
    whole, part = open_store(store), open_store(tmp_path / "part.zarr")
    assert verify_store(tmp_path / "part.zarr") == []
    assert (part.teachers, part.num_views) == (("b",), 1)
    for name, rows in whole.teacher("b").slab(0).items():
        np.testing.assert_array_equal(part.teacher().slab(0)[name], rows)
    (step,) = part.attributes["lineage"]
    assert step["digest"] == whole.attributes["digest"]
    assert step["num_views"] == [1, 2]
    assert part.attributes["license"] == "CC0-1.0"
    again = copy_store(store, tmp_path / "part.zarr", num_views=1, teachers=["b"])
    assert again.already_there
    for other in ({"teachers": ["a"]}, {"num_views": 1, "teachers": ["a"]}):
        with pytest.raises(StoreError, match="is there and is not this store"):
            copy_store(store, tmp_path / "part.zarr", **other)
    assert nothing_beside(tmp_path, "part.zarr")


def test_only_what_is_asked_for_is_fetched(store: Path, tmp_path: Path) -> None:
    with web_server(store.parent) as (url, requests):
        copy_store(f"{url}/s.zarr", tmp_path / "part.zarr", num_views=1, teachers=["b"])
    rows = [path for path in requests if "/c/" in path and "/log_prob_code/" in path]
    assert sorted(rows) == [f"/s.zarr/teachers/b/log_prob_code/c/0/{block}/0" for block in range(2)]
    assert not [path for path in requests if "/teachers/a/" in path]
    assert not [path for path in requests if path.endswith("/teachers/")]


def test_an_interrupted_copy_goes_on(store: Path, tmp_path: Path) -> None:
    def stop(progress: CopyProgress) -> None:
        if progress.files == 20:
            raise KeyboardInterrupt

    with web_server(store.parent) as (url, requests):
        with pytest.raises(KeyboardInterrupt):
            copy_store(f"{url}/s.zarr", tmp_path / "c.zarr", report=stop, num_threads=1)
        assert not (tmp_path / "c.zarr").exists()
        (partial,) = tmp_path.glob(".c.zarr.*.partial/built")
        torn = partial / "teachers/a/label_rank/c/0/0"
        torn.write_bytes(torn.read_bytes()[:-1])
        (partial / "left-over").write_bytes(b"of another store")
        requests.clear()
        copy_store(f"{url}/s.zarr", tmp_path / "c.zarr")
    assert contents(tmp_path / "c.zarr") == contents(store)
    fetched = [path.removeprefix("/s.zarr/") for path in requests if "/c/" in path]
    assert 48 - 20 <= len(fetched) <= 48 - 20 + 1  # one more was under way
    assert "teachers/a/label_rank/c/0/0" in fetched
    assert nothing_beside(tmp_path, "c.zarr")


def test_a_part_that_was_interrupted_is_nothing_to_the_whole(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("logitbank.stores.write.building.make_durable", lambda folder: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            copy_store(store, tmp_path / "c.zarr", num_views=1, teachers=["b"])
    (left,) = tmp_path.glob(".c.zarr.*.partial")
    copy_store(store, tmp_path / "c.zarr")
    assert contents(tmp_path / "c.zarr") == contents(store)
    assert not left.exists()


@pytest.mark.parametrize(
    "path", ["zarr.json", "examples/key/c/0", "teachers/a/committed/c/0/1", "teachers/a/log_prob_code/c/1/0/0"]
)
def test_damage_under_way_is_fetched_again_and_damage_at_the_source_is_refused(
    store: Path, tmp_path: Path, path: str
) -> None:
    data = bytearray((store / path).read_bytes())
    data[len(data) // 2] ^= 1
    hits: list[int] = []

    def damaged(handler: http.server.BaseHTTPRequestHandler, times: int) -> bool:
        if handler.path != f"/s.zarr/{path}":
            return False
        hits.append(1)
        if len(hits) > times:
            return False
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)
        return True

    if path != "zarr.json":
        with web_server(store.parent, lambda handler: damaged(handler, 1)) as (url, _):
            copy_store(f"{url}/s.zarr", tmp_path / "c.zarr")
        assert contents(tmp_path / "c.zarr") == contents(store)
    with web_server(store.parent, lambda handler: damaged(handler, 99)) as (url, _), pytest.raises(StoreError):
        copy_store(f"{url}/s.zarr", tmp_path / "d.zarr")
    assert not (tmp_path / "d.zarr").exists()


def test_a_server_that_stumbles_is_asked_again(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("logitbank.stores.share.fetch.PAUSE", 0.0)
    asked: dict[str, int] = {}

    def stumble(handler: http.server.BaseHTTPRequestHandler) -> bool:
        asked[handler.path] = asked.get(handler.path, 0) + 1
        if asked[handler.path] > 1 or "/c/" not in handler.path:
            return False
        if "checksum" in handler.path:
            handler.send_error(503)
        else:  # the answer breaks off
            handler.send_response(200)
            handler.send_header("Content-Length", "1000000")
            handler.end_headers()
            handler.wfile.write(b"abc")
        return True

    with web_server(store.parent, stumble) as (url, _):
        copy_store(f"{url}/s.zarr", tmp_path / "c.zarr", num_threads=4)
    assert contents(tmp_path / "c.zarr") == contents(store)


def test_teachers_are_named_where_nothing_can_list_them(store: Path, tmp_path: Path) -> None:
    def no_listing(handler: http.server.BaseHTTPRequestHandler) -> bool:
        if handler.path.endswith("/"):
            handler.send_error(404)
            return True
        return False

    with web_server(store.parent, no_listing) as (url, _):
        with pytest.raises(StoreError, match="--teacher-name NAME"):
            copy_store(f"{url}/s.zarr", tmp_path / "c.zarr")
        copy_store(f"{url}/s.zarr", tmp_path / "c.zarr", teachers=["a"])
        with pytest.raises(StoreError, match="no teacher 'z'"):
            copy_store(f"{url}/s.zarr", tmp_path / "d.zarr", teachers=["z"])
    assert open_store(tmp_path / "c.zarr").teachers == ("a",)
    with pytest.raises(StoreError, match="no teacher 'z', found a, b"):
        copy_store(store, tmp_path / "d.zarr", teachers=["z"])
    assert nothing_beside(tmp_path, "c.zarr")


def test_an_unfinished_teacher_stays_behind(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.zarr", ("a",))
    add_teacher(path, "b", finish=False)
    copied = copy_store(path, tmp_path / "c.zarr")
    assert (copied.teachers, copied.unfinished) == (("a",), ("b",))
    assert verify_store(tmp_path / "c.zarr") == []
    assert not (tmp_path / "c.zarr" / "teachers" / "b").exists()
    with pytest.raises(StoreError, match="unfinished"):
        copy_store(path, tmp_path / "d.zarr", teachers=["b"])


def test_a_bucket_gets_the_root_last_and_the_teachers_that_it_lacks(
    store: Path, tmp_path: Path, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    put: list[str] = []
    fs: Any = fsspec.filesystem("memory")
    original = fs.pipe_file, fs.put_file

    def pipe_file(path: str, value: bytes, **options: str) -> None:
        put.append(path)
        original[0](path, value, **options)

    def put_file(source: str, target: str) -> None:
        put.append(target)
        original[1](source, target)

    monkeypatch.setattr(fs, "pipe_file", pipe_file)
    monkeypatch.setattr(fs, "put_file", put_file)
    copy_store(make_store(tmp_path / "one.zarr", ("a",)), bucket)
    names = [path.removeprefix(bucket.removeprefix("memory:/")).lstrip("/") for path in put]
    assert names[:2] == ["unfinished.txt", "teachers/a/unfinished.txt"]
    assert names[-3:] == ["teachers/a/zarr.json", "teachers.json", "zarr.json"]
    assert not fs.glob(f"{bucket}/**/unfinished.txt")
    with pytest.raises(StoreError, match="is another"):
        copy_store(store, bucket)  # made at another time
    first = tmp_path / "one.zarr"
    add_teacher(first, "c")
    copy_store(first, bucket)
    copy_store(bucket, tmp_path / "back.zarr")
    assert contents(tmp_path / "back.zarr") == contents(first)


def test_a_store_elsewhere_is_opened_through_a_cache(store: Path, tmp_path: Path, bucket: str) -> None:
    assert local_store(store, tmp_path) == store
    copy_store(store, bucket)
    here = local_store(bucket, tmp_path / "cache")
    assert contents(here) == contents(store)
    stamp = here.stat().st_mtime_ns
    assert local_store(bucket, tmp_path / "cache") == here
    assert here.stat().st_mtime_ns == stamp
    copy_store(store, tmp_path / "c.zarr.zip")
    assert local_store(tmp_path / "c.zarr.zip", tmp_path / "cache") == here
    assert local_store(Path(bucket), tmp_path / "cache") == here  # as a command line gives it
    assert local_store(bucket, tmp_path / "cache", num_views=1) != here


def test_the_second_of_two_copies_to_one_place_waits(store: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        copies = [pool.submit(copy_store, store, tmp_path / "c.zarr", num_threads=2) for _ in range(2)]
    assert sorted(copy.result().already_there for copy in copies) == [False, True]
    assert contents(tmp_path / "c.zarr") == contents(store)
    assert nothing_beside(tmp_path, "c.zarr")


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("s.zarr", "http://127.0.0.1/x", "read only"),
        ("s.zarr", "memory://x/a.zarr.zip", "folder's address"),
        ("none.zarr", "c.zarr", "not there"),
        ("none.zarr.zip", "c.zarr", "not there"),
        ("s.zarr/zarr.json.zip", "c.zarr", "not there"),
        ("file:///etc", "c.zarr", "choose one of these"),
        ("simplecache::s3://b/s.zarr", "c.zarr", "choose one of these"),
        ("http://127.0.0.1:9/s.zarr", "c.zarr", "cannot copy"),
        ("memory://nowhere.zarr", "c.zarr", "not there"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    store: Path, tmp_path: Path, source: str, target: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitbank.stores.share.fetch.PAUSE", 0.0)
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    wanted = source if "://" in source else str(store.parent / source)
    with pytest.raises(StoreError, match=message) as raised:
        copy_store(wanted, target)
    assert "\n" not in str(raised.value)
    assert nothing_beside(tmp_path / "out")


def test_a_zip_file_may_hold_the_store_in_its_folder(store: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "s.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in contents(store).items():
            archive.writestr(f"s.zarr/{name}", data)
    copy_store(tmp_path / "s.zip", tmp_path / "c.zarr")
    assert contents(tmp_path / "c.zarr") == contents(store)
