"""Tar shards in a bucket or on a web server, of which only some lie here at a time."""

import io
import multiprocessing
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.file_cache import hold, make_room, shared_cache
from logitbank.pipeline.datasets.remote_files import RemoteFile, find_remote
from logitbank.pipeline.train_student.order import _held_together
from tests.sharing import memory_bucket, web_server

SHARDS, ROWS = 6, 5
FETCHED: list[str] = []
PROCESSES = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six shards of five pictures, all of one size."""
    folder = tmp_path_factory.mktemp("shards")
    for number in range(SHARDS):
        with tarfile.open(folder / f"s-{number}.tar", "w") as archive:
            for row in range(ROWS):
                pixels = np.random.default_rng(number * ROWS + row).integers(0, 255, (30, 30, 3), np.uint8)
                picture = io.BytesIO()
                Image.fromarray(pixels).save(picture, "BMP")
                for name, data in ((f"{row}.bmp", picture.getvalue()), (f"{row}.cls", b"%d" % (row % 2))):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


@pytest.fixture
def bucket(here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Their address, and room for four of them."""
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / "cache"))
    size = (here / "s-0.tar").stat().st_size
    monkeypatch.setenv("LOGITBANK_SHARDS_GB", str(4.5 * size / 1e9))
    fetch = RemoteFile.fetch

    def counted(self: RemoteFile, target: Path) -> None:
        FETCHED.append(str(self))
        fetch(self, target)
        assert sum(map(size_of, target.parent.iterdir())) <= shared_cache().limit

    monkeypatch.setattr(RemoteFile, "fetch", counted)
    FETCHED.clear()
    with memory_bucket() as url:
        fsspec.filesystem("memory").put(f"{here}/", url, recursive=True)
        yield url


def size_of(path: Path) -> int:
    """Of a file that another thread may remove at the moment."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def pixels(split: Split, row: int) -> np.ndarray:
    assert split.originals is not None
    return np.asarray(split.originals.source.original(row))


def idle() -> None:
    """Until nothing is fetched any more."""
    for coming in list(shared_cache()._coming.values()):
        coming.result()


def test_rows_are_those_of_the_files_and_few_shards_lie_here(bucket: str, here: Path) -> None:
    near, far = load_split(f"webdataset:{here}/s-*.tar"), load_split(f"webdataset:{bucket}/s-*.tar")
    assert (near.keys == far.keys).all()
    assert near.fingerprint == far.fingerprint
    idle()
    assert len(FETCHED) <= 2 * SHARDS + 1  # for the index, for the keys; threads read across a border
    for row in (29, 0, 13, 7, 22):
        assert np.array_equal(pixels(near, row), pixels(far, row))
    idle()
    FETCHED.clear()
    again = load_split(f"webdataset:{bucket}/s-{{0..5}}.tar")
    assert (again.keys == far.keys).all()
    assert not FETCHED  # index and keys are kept
    fsspec.filesystem("memory").put(str(here / "s-1.tar"), f"{bucket}/s-0.tar")  # another version of a shard
    assert not (load_split(f"webdataset:{bucket}/s-*.tar").keys == far.keys).all()


def test_rows_in_order_find_the_next_shard_already_there(bucket: str) -> None:
    split = load_split(f"webdataset:{bucket}/s-*.tar")
    _ = split.keys
    idle()
    for path in shared_cache().folder.iterdir():
        path.unlink()
    FETCHED.clear()
    pixels(split, 0)
    pixels(split, 1)
    idle()
    assert [name[-7:] for name in FETCHED] == ["s-0.tar", "s-1.tar"]


def test_shuffled_groups_fetch_each_shard_once_an_epoch(bucket: str) -> None:
    split = load_split(f"webdataset:{bucket}/s-*.tar")
    _ = split.keys
    assert split.near == (ROWS, 1)
    grouping = _held_together(None, split.near)
    assert grouping == Grouping(block_rows=ROWS, num_blocks=1)
    assert _held_together(Grouping(block_rows=2, num_blocks=9), split.near) == Grouping(block_rows=2, num_blocks=2)
    idle()
    FETCHED.clear()
    groups = grouping.groups(torch.arange(len(split)), torch.Generator().manual_seed(1))
    split.announce([group.numpy() for group in groups])
    for row in torch.cat(groups).tolist():
        pixels(split, row)
    idle()
    assert len(FETCHED) <= SHARDS
    assert len(FETCHED) == len(set(FETCHED))


def test_a_shard_that_is_read_is_never_removed(bucket: str) -> None:
    cache, files = shared_cache(), find_remote(f"{bucket}/s-*.tar")
    with cache.open(files[0]) as held:
        for file in files[1:]:
            cache.open(file).close()
        here = {path.name for path in cache.folder.iterdir()}
        assert files[0].name in here
        assert files[1].name not in here
        assert files[5].name in here
        assert len(held.read()) == files[0].size


def test_copies_of_tables_make_room_for_others_unless_they_are_used(
    tmp_path: Path,
) -> None:
    for number in range(3):
        (tmp_path / f"{number}.pictures").write_bytes(b"x" * 100)
        os.utime(tmp_path / f"{number}.pictures", ns=(number, number))
    hold(tmp_path / "1.pictures")  # also counts as used now
    os.utime(tmp_path / "1.pictures", ns=(1, 1))
    assert not make_room(tmp_path, 250, 300)
    assert [path.name for path in tmp_path.iterdir()] == ["1.pictures"]
    assert make_room(tmp_path, 200, 300)


def test_places_and_bounds_that_cannot_be(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("0", "-1", "many", "nan", "inf"):
        monkeypatch.setenv("LOGITBANK_SHARDS_GB", text)
        with pytest.raises(ValueError, match=f"LOGITBANK_SHARDS_GB is '{text}'; expected gigabytes"):
            load_split(f"webdataset:{bucket}/s-*.tar")
    monkeypatch.setenv("LOGITBANK_SHARDS_GB", "0.000001")
    with pytest.raises(ValueError, match="may lie in .*raise LOGITBANK_SHARDS_GB"):
        load_split(f"webdataset:{bucket}/s-*.tar")
    with pytest.raises(ValueError, match="nothing is at memory://.*none"):
        load_split(f"webdataset:{bucket}/none-*.tar")


def _read_all(spec: str, seed: int, cache: str, limit: str) -> int:
    os.environ |= {"LOGITBANK_CACHE": cache, "LOGITBANK_SHARDS_GB": limit}
    split = load_split(spec)
    rows = np.random.default_rng(seed).permutation(len(split))
    with ThreadPoolExecutor(2) as pool:
        return sum(int(part.astype(np.int64).sum()) for part in pool.map(lambda row: pixels(split, int(row)), rows))


def test_processes_share_what_lies_here(here: Path, tmp_path: Path) -> None:
    near = load_split(f"webdataset:{here}/s-*.tar")
    wanted = sum(int(pixels(near, row).astype(np.int64).sum()) for row in range(len(near)))
    limit = str(4.5 * (here / "s-0.tar").stat().st_size / 1e9)
    with web_server(here) as (url, _), PROCESSES.Pool(2) as pool:
        jobs = [(f"webdataset:{url}/s-{{0..5}}.tar", seed, str(tmp_path / "cache"), limit) for seed in range(2)]
        assert pool.starmap(_read_all, jobs) == [wanted] * 2
