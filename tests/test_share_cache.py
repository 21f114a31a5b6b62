"""The cache of stores from elsewhere: each is fetched once, by one process, and what is there is looked at."""

import http.server
import multiprocessing
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.pipeline.look.card import store_card
from logitbank.pipeline.look.describe import describe_store
from logitbank.stores import StoreError, copy_store, local_store, open_store, verify_store
from logitbank.stores.share.cache import place_of
from tests.sharing import add_teacher, contents, make_store, memory_bucket, web_server


@pytest.fixture
def bucket() -> Iterator[str]:
    with memory_bucket() as url:
        yield url


def rows(requests: list[str]) -> list[str]:
    """Files of arrays that were asked for."""
    return [path for path in requests if "/c/" in path]


def fetch(url: str, cache: str) -> None:
    """In a process of its own."""
    path = local_store(url, Path(cache))
    assert verify_store(path) == []


def test_four_processes_on_an_empty_cache_fetch_a_store_once(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr")
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["tests.test_share_cache"])

    def slow(handler: http.server.BaseHTTPRequestHandler) -> bool:
        time.sleep(0.005)
        return False

    with web_server(tmp_path, slow) as (url, requests):
        processes = [forks.Process(target=fetch, args=(f"{url}/s.zarr", str(tmp_path / "cache"))) for _ in range(4)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
    asked = rows(requests)
    assert len(asked) == len(set(asked)) == sum("/c/" in name for name in contents(store))
    assert {path.suffix for path in (tmp_path / "cache").iterdir()} == {".zarr", ".place"}


def spoil(entry: Path, how: str, other: Path) -> None:
    if how == "emptied":
        shutil.rmtree(entry)
        entry.mkdir()
    elif how == "replaced":
        shutil.rmtree(entry)
        shutil.copytree(other, entry)
    elif how == "lacks a teacher's rows":
        shutil.rmtree(entry / "teachers" / "a" / "index" / "c")
    elif how == "lacks labels":
        shutil.rmtree(entry / "examples" / "label" / "c")
    else:
        shutil.rmtree(entry)
        entry.symlink_to(other)


@pytest.mark.parametrize("part", [{}, {"num_views": 1, "teachers": ["a"]}])
@pytest.mark.parametrize("how", ["emptied", "replaced", "lacks a teacher's rows", "lacks labels", "a link to another"])
def test_an_entry_that_is_not_what_it_was_is_filled_again(
    bucket: str, tmp_path: Path, how: str, part: dict[str, Any]
) -> None:
    other = make_store(tmp_path / "t.zarr", ("a", "b"), labels=np.zeros(300, dtype=np.int64))
    before = contents(other)
    copy_store(make_store(tmp_path / "s.zarr"), bucket)
    entry = local_store(bucket, tmp_path / "cache", **part)
    good = contents(entry)
    spoil(entry, how, other)
    assert local_store(bucket, tmp_path / "cache", **part) == entry
    assert contents(entry) == good
    assert not entry.is_symlink()
    assert {path.name for path in (tmp_path / "cache").iterdir()} == {entry.name, f"{entry.stem}.place"}
    assert contents(other) == before


def test_a_teacher_more_and_a_view_more_are_all_that_is_fetched(tmp_path: Path) -> None:
    """Entries of the same store lend each other their files, and do not change one another."""
    store = make_store(tmp_path / "s.zarr", ("a",))
    cache = tmp_path / "cache"
    with web_server(tmp_path) as (url, requests):
        first = local_store(f"{url}/s.zarr", cache, num_views=1, teachers=["a"])
        before = contents(first)
        requests.clear()
        local_store(f"{url}/s.zarr", cache)
        assert rows(requests)
        assert all("/c/1/" in path for path in rows(requests))
        add_teacher(store, "b")
        requests.clear()
        grown = local_store(f"{url}/s.zarr", cache)
        assert rows(requests)
        assert all("/teachers/b/" in path for path in rows(requests))
    assert contents(grown) == contents(store)
    assert contents(first) == before


def test_damaged_files_that_entries_share_are_not_mended_under_the_other(tmp_path: Path) -> None:
    make_store(tmp_path / "s.zarr", ("a",))
    cache = tmp_path / "cache"
    with web_server(tmp_path) as (url, _):
        first = local_store(f"{url}/s.zarr", cache, num_views=1)
        torn = first / "teachers/a/index/c/0/0/0"
        torn.write_bytes(b"torn")
        whole = local_store(f"{url}/s.zarr", cache)
    assert torn.read_bytes() == b"torn"
    assert verify_store(whole) == []


@pytest.mark.parametrize("kind", ["etag", "last-modified", "neither"])
def test_a_zip_file_on_a_web_server_is_fetched_again_when_it_is_another(tmp_path: Path, kind: str) -> None:
    sent: list[int] = []
    zip_file = tmp_path / "s.zarr.zip"
    copy_store(make_store(tmp_path / "s.zarr", ("a",)), zip_file)

    def answer(handler: http.server.BaseHTTPRequestHandler) -> bool:
        data = zip_file.read_bytes()
        tag = f'"{hash(data)}"' if kind == "etag" else None
        same = tag is not None and handler.headers.get("If-None-Match") == tag
        sent.append(0 if same else len(data))
        handler.send_response(304 if same else 200)
        if tag is not None:
            handler.send_header("ETag", tag)
        handler.send_header("Content-Length", "0" if same else str(len(data)))
        handler.end_headers()
        handler.wfile.write(b"" if same else data)
        return True

    def plain(handler: http.server.BaseHTTPRequestHandler) -> bool:
        sent.append(0 if "If-Modified-Since" in handler.headers else 1)
        return False

    cache = tmp_path / "cache"
    with web_server(tmp_path, plain if kind == "last-modified" else answer) as (url, _):
        address = f"{url}/s.zarr.zip?X-Amz-Signature="
        first = local_store(f"{address}1", cache)
        assert local_store(f"{address}2", cache) == first
        assert [size > 0 for size in sent] == [True, kind == "neither"]
        shutil.rmtree(first)  # the note alone is not enough
        assert local_store(f"{address}3", cache) == first
        assert contents(first) == contents(tmp_path / "s.zarr")
        zip_file.unlink()
        add_teacher(tmp_path / "s.zarr", "b")
        copy_store(tmp_path / "s.zarr", zip_file)
        os.utime(zip_file, (time.time() + 60, time.time() + 60))
        assert open_store(local_store(f"{address}4", cache)).teachers == ("a", "b")


def test_cards_and_descriptions_name_the_address_and_no_secret(tmp_path: Path) -> None:
    copy_store(make_store(tmp_path / "s.zarr", ("a",)), tmp_path / "mine.zarr.zip")
    with web_server(tmp_path) as (url, _):
        entry = local_store(f"{url}/mine.zarr.zip?X-Amz-Signature=S3cr3t", tmp_path / "cache")
        assert describe_store(entry)["path"] == f"{url}/mine.zarr.zip?..."
        card = store_card(entry)
        assert f"{url}/mine.zarr.zip?..." in card.replace("\\", "")
        assert "# mine.zarr.zip" in card
        assert entry.stem not in card
        assert "S3cr3t" not in card
        local_store(f"{url}/s.zarr", tmp_path / "cache")
    assert place_of(entry) == f"{url}/s.zarr"
    assert place_of(tmp_path / "s.zarr") == str(tmp_path / "s.zarr")


@pytest.mark.parametrize("more", [{"num_views": 2, "teachers": ["a"]}, {"num_views": 1}, {}])
def test_a_part_becomes_a_wider_part_by_what_is_new(tmp_path: Path, more: dict[str, Any]) -> None:
    make_store(tmp_path / "s.zarr")
    with web_server(tmp_path) as (url, requests):
        copy_store(f"{url}/s.zarr", tmp_path / "c.zarr", num_views=1, teachers=["a"])
        old = {path for path in rows(requests) if "/committed/" not in path and "/checksum/" not in path}
        requests.clear()
        (tmp_path / "c.zarr" / ".DS_Store").write_bytes(b"x")
        assert not copy_store(f"{url}/s.zarr", tmp_path / "c.zarr", **more).already_there
        assert not old & set(requests)
        copy_store(f"{url}/s.zarr", tmp_path / "fresh.zarr", **more)
        assert copy_store(f"{url}/s.zarr", tmp_path / "c.zarr", **more).already_there
        with pytest.raises(StoreError, match="is there and is not this store"):
            copy_store(f"{url}/s.zarr", tmp_path / "c.zarr", num_views=1, teachers=["a"])
    assert contents(tmp_path / "c.zarr") == contents(tmp_path / "fresh.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.zarr", "fresh.zarr", "s.zarr"]


@pytest.mark.parametrize("change", ["a file of somebody's", "a teacher of one's own", "another store"])
def test_what_is_more_than_a_part_is_not_replaced(tmp_path: Path, change: str) -> None:
    store = make_store(tmp_path / "s.zarr")
    part = tmp_path / "c.zarr"
    copy_store(store, part, num_views=1, teachers=["a"])
    if change == "a file of somebody's":
        (part / "README.md").write_text("mine")
    elif change == "a teacher of one's own":
        add_teacher(part, "c")
    else:
        shutil.rmtree(part)
        copy_store(make_store(tmp_path / "t.zarr", labels=np.zeros(300, dtype=np.int64)), part, num_views=1)
    before = contents(part)
    with pytest.raises(StoreError, match="is there and is not this store"):
        copy_store(store, part, num_views=2, teachers=["a"])
    assert contents(part) == before


def test_a_widening_that_fails_or_is_killed_leaves_the_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "s.zarr", ("a",))
    part = tmp_path / "c.zarr"
    copy_store(store, part, num_views=1)
    before = contents(part)
    row = store / "teachers/a/index/c/1/0/0"
    data = row.read_bytes()
    row.write_bytes(b"damaged")
    with pytest.raises(StoreError):
        copy_store(store, part)
    assert contents(part) == before
    row.write_bytes(data)
    part.rename(tmp_path / ".c.zarr.narrower")  # killed between the two renames
    shutil.copytree(store, tmp_path / ".c.zarr.wider")
    copy_store(store, part)
    assert contents(part) == contents(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.zarr", "s.zarr"]
