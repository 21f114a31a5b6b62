"""A push to a bucket: in what order, what it refuses, and what it needs on this disk."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest

from logitbank.stores import StoreError, copy_store, open_store
from tests.sharing import add_teacher, contents, make_store, memory_bucket

GOLDEN = Path(__file__).parent / "golden" / "topk.zarr"


@pytest.fixture
def bucket() -> Iterator[str]:
    with memory_bucket() as url:
        yield url


@pytest.fixture
def fs() -> Any:
    return fsspec.filesystem("memory")


def break_at(monkeypatch: pytest.MonkeyPatch, fs: Any, name: str) -> None:
    """Let the bucket refuse every file of a name, as when a token expires."""
    original = fs.pipe_file

    def pipe_file(path: str, value: bytes, **options: str) -> None:
        if path.endswith(name):
            raise PermissionError("The provided token has expired.")
        original(path, value, **options)

    monkeypatch.setattr(fs, "pipe_file", pipe_file)


@pytest.mark.parametrize("last", ["s.zarr/zarr.json", "teachers.json", "teachers/a/zarr.json"])
def test_after_a_failed_push_others_are_refused_and_the_same_goes_on(
    bucket: str, fs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: str
) -> None:
    """Two data sets with the same N, C and V: without the mark, a pull would have given both teachers."""
    url = f"{bucket}/s.zarr"
    mine = make_store(tmp_path / "a.zarr", ("a",))
    other = make_store(tmp_path / "b.zarr", ("b",), labels=np.zeros(300, dtype=np.int64))
    with monkeypatch.context() as patch:
        break_at(patch, fs, last)
        with pytest.raises(StoreError, match="access is refused"):
            copy_store(mine, url)
    before = {path: fs.cat_file(path) for path in fs.find(url)}
    with pytest.raises(StoreError, match="unfinished copy of another store.*finish it.*another address.*remove"):
        copy_store(other, url)
    assert {path: fs.cat_file(path) for path in fs.find(url)} == before
    copy_store(mine, url)
    assert not fs.glob(f"{url}/**/unfinished.txt")
    copy_store(url, tmp_path / "back.zarr")
    assert contents(tmp_path / "back.zarr") == contents(mine)
    with pytest.raises(StoreError, match="is there and is another"):
        copy_store(other, url)


def test_a_teacher_that_an_older_program_left_is_not_believed(bucket: str, fs: Any, tmp_path: Path) -> None:
    other = make_store(tmp_path / "b.zarr", ("b",), labels=np.zeros(300, dtype=np.int64))
    fs.put(str(other / "teachers"), f"{bucket}/teachers", recursive=True)
    with pytest.raises(StoreError, match="a teacher 'b' of other examples.*remove"):
        copy_store(make_store(tmp_path / "a.zarr", ("a",)), bucket)
    assert not fs.glob(f"{bucket}/**/unfinished.txt")
    shutil.rmtree(other / "teachers" / "b")
    shutil.copytree(GOLDEN / "teachers" / "golden", other / "teachers" / "old")
    fs.rm(bucket, recursive=True)
    fs.put(str(other / "teachers"), f"{bucket}/teachers", recursive=True)
    with pytest.raises(StoreError, match="a teacher 'old' of other examples"):
        copy_store(tmp_path / "a.zarr", bucket)


def test_a_mix_that_an_older_program_made_is_refused(bucket: str, fs: Any, tmp_path: Path) -> None:
    copy_store(make_store(tmp_path / "a.zarr", ("a",)), bucket)
    other = make_store(tmp_path / "b.zarr", ("b",), labels=np.zeros(300, dtype=np.int64))
    fs.put(str(other / "teachers" / "b"), f"{bucket}/teachers/b", recursive=True)
    with pytest.raises(StoreError, match="teachers/b answers other examples.*--teacher-name"):
        copy_store(bucket, tmp_path / "back.zarr")
    assert copy_store(bucket, tmp_path / "back.zarr", teachers=["a"]).teachers == ("a",)


def test_an_old_store_is_bound_on_its_way(bucket: str, tmp_path: Path) -> None:
    for _ in range(2):
        copy_store(GOLDEN, bucket)
    copy_store(bucket, tmp_path / "back.zarr")
    changed = {name for name, data in contents(GOLDEN).items() if contents(tmp_path / "back.zarr")[name] != data}
    assert changed == {"teachers/golden/zarr.json"}
    bound = contents(tmp_path / "back.zarr")["teachers/golden/zarr.json"].decode()
    assert open_store(GOLDEN).examples_sha256 in bound


def test_another_teacher_of_the_name_is_refused_before_anything_is_sent(bucket: str, fs: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", ())
    shutil.copytree(store, tmp_path / "t.zarr")
    add_teacher(store, "a")
    add_teacher(tmp_path / "t.zarr", "a", "dense-8")
    copy_store(store, bucket)
    before = {path: fs.cat_file(path) for path in fs.find(bucket)}
    with pytest.raises(StoreError, match="teachers/a/zarr.json is there and is another"):
        copy_store(tmp_path / "t.zarr", bucket)
    assert {path: fs.cat_file(path) for path in fs.find(bucket)} == before


def test_a_store_on_this_disk_is_sent_from_where_it_lies(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is put anywhere on the way, so that a killed push leaves nothing."""
    store = make_store(tmp_path / "s.zarr")
    before = contents(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "there-is-none"))
    copy_store(store, f"{bucket}/whole")
    copy_store(store, f"{bucket}/part", num_views=1, teachers=["b"])
    assert contents(tmp_path) == before
    monkeypatch.undo()
    copy_store(f"{bucket}/whole", tmp_path / "back.zarr")
    assert contents(tmp_path / "back.zarr") == contents(store)
    copy_store(store, tmp_path / "part.zarr", num_views=1, teachers=["b"])
    copy_store(f"{bucket}/part", tmp_path / "part-back.zarr")
    assert contents(tmp_path / "part-back.zarr") == contents(tmp_path / "part.zarr")


def test_of_a_store_elsewhere_a_few_files_at_a_time_lie_here(
    bucket: str, fs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_store(make_store(tmp_path / "s.zarr"), tmp_path / "s.zarr.zip")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    most: list[int] = []
    original = fs.put_file

    def put_file(source: str, target: str) -> None:
        most.append(sum(1 for path in scratch.rglob("*") if path.is_file() and "/index/c/" in path.as_posix()))
        original(source, target)

    monkeypatch.setattr(fs, "put_file", put_file)
    copy_store(tmp_path / "s.zarr.zip", bucket, num_threads=2)
    assert 1 <= max(most) <= 2
    assert not list(scratch.iterdir())


def test_a_damaged_row_is_never_published(bucket: str, fs: Any, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", ("a",))
    row = store / "teachers" / "a" / "logsumexp" / "c" / "1" / "1"
    data = bytearray(row.read_bytes())
    data[len(data) // 2] ^= 1
    row.write_bytes(data)
    with pytest.raises(StoreError, match="does not hold the rows committed"):
        copy_store(store, bucket)
    assert not fs.exists(f"{bucket}/zarr.json")
    assert row.read_bytes() == bytes(data)
