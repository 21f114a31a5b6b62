"""Zip files as people make them, and as disks and networks damage them; what file managers leave in a store."""

import os
import random
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest

from logitbank.stores import StoreError, copy_store, local_store, open_store, verify_store
from logitbank.stores.share.cache import fresh_store
from tests.sharing import contents, make_store, memory_bucket

NOISE = (".DS_Store", "._zarr.json", "Thumbs.db", "desktop.ini", ".nfs000000000000001")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("source") / "s.zarr", ("a",))


def zip_by_hand(
    store: Path, path: Path, prefix: str = "", separator: str = "/", method: int = zipfile.ZIP_DEFLATED
) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in contents(store).items():
            entry = zipfile.ZipInfo("x")
            entry.filename = (prefix + name).replace("/", separator)  # as it is, unlike the constructor's
            archive.writestr(entry, data, method)
    return path


@pytest.mark.parametrize(("prefix", "separator"), [("", "/"), ("s.zarr/", "/"), ("./s.zarr/", "/"), ("s.zarr\\", "\\")])
def test_a_store_zipped_by_hand(store: Path, tmp_path: Path, prefix: str, separator: str) -> None:
    path = zip_by_hand(store, tmp_path / "s.zip", prefix, separator)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("__MACOSX/s.zarr/._zarr.json", b"x")
        archive.writestr(f"{prefix}.DS_Store", b"x")
    copy_store(path, tmp_path / "c.zarr")
    assert contents(tmp_path / "c.zarr") == contents(store)


def test_two_stores_in_one_zip_file_are_refused(store: Path, tmp_path: Path) -> None:
    path = zip_by_hand(store, tmp_path / "s.zip", "one.zarr/")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("two.zarr/zarr.json", b"{}")
    with pytest.raises(StoreError, match="must hold a store, found 2 side by side"):
        copy_store(path, tmp_path / "c.zarr")


def test_a_method_that_may_take_gigabytes_of_memory_is_refused(store: Path, tmp_path: Path) -> None:
    path = zip_by_hand(store, tmp_path / "s.zip", method=zipfile.ZIP_LZMA)
    with pytest.raises(StoreError, match="must be stored or deflated.*zip it anew"):
        copy_store(path, tmp_path / "c.zarr")


def damage(data: bytes, rng: random.Random) -> bytes:
    """Some bytes changed, a piece cut out, doubled or zeroed, or the end missing."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at, length = rng.randrange(len(changed) or 1), rng.randrange(1, 200)
        if rng.random() < 0.3:  # the list of entries at the end
            at = max(0, len(changed) - 1 - rng.randrange(min(len(changed), 9000) or 1))
        kind = rng.choice(("flip", "flip", "flip", "flip", "cut", "double", "zero", "zero", "end"))
        if kind == "flip" and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del changed[at : at + length]
        elif kind == "double":
            changed[at:at] = changed[at : at + length]
        elif kind == "zero":
            changed[at : at + length] = bytes(len(changed[at : at + length]))
        elif len(changed) > 2:
            del changed[max(at, 1) :]
    return bytes(changed)


def damaged_files(store: Path, folder: Path, number: int, seed: int) -> None:
    rng = random.Random(seed)
    methods = (*[zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED] * 3, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    whole = [zip_by_hand(store, folder / f"{method}.zip", method=method).read_bytes() for method in methods]
    path, refused = folder / "damaged.zip", 0
    for _ in range(number):
        path.write_bytes(damage(rng.choice(whole), rng))
        try:
            copy_store(path, folder / "c.zarr", num_threads=2)
        except StoreError as error:
            message = str(error)
            refused += 1
            assert "\n" not in message
        else:
            assert contents(folder / "c.zarr") == contents(store)
            shutil.rmtree(folder / "c.zarr")
        for left in folder.glob(".c.zarr*"):
            shutil.rmtree(left)
    print(f"{number} damaged files: {refused} refused in one line, the others gave the store, 0 tracebacks")


def test_damaged_zip_files_are_refused_in_one_line(store: Path, tmp_path: Path) -> None:
    damaged_files(store, tmp_path, 30, seed=0)


@pytest.mark.slow
def test_many_damaged_zip_files_are_refused_in_one_line(store: Path, tmp_path: Path) -> None:
    damaged_files(store, tmp_path, 400, seed=1)


def test_what_file_managers_leave_in_a_store_is_as_if_not_there(store: Path, tmp_path: Path) -> None:
    noisy = tmp_path / "noisy.zarr"
    shutil.copytree(store, noisy)
    for folder in [noisy, *(path for path in noisy.rglob("*") if path.is_dir())]:
        for name in NOISE:
            (folder / name).write_bytes(b"x")
    for name in ("@eaDir", ".Spotlight-V100", "__MACOSX"):
        (noisy / "teachers" / name).mkdir()
    assert open_store(noisy).teachers == ("a",)
    assert verify_store(noisy) == []
    copy_store(noisy, tmp_path / "c.zarr")
    copy_store(noisy, tmp_path / "c.zarr.zip")
    copy_store(tmp_path / "c.zarr.zip", tmp_path / "d.zarr")
    with memory_bucket() as bucket:
        copy_store(noisy, bucket)
        copy_store(bucket, tmp_path / "e.zarr")
    for name in "cde":
        assert contents(tmp_path / f"{name}.zarr") == contents(store)


def test_a_damaged_zip_file_is_not_sound_because_a_sound_copy_is_in_the_cache(store: Path, tmp_path: Path) -> None:
    local_store(zip_by_hand(store, tmp_path / "s.zip"), tmp_path / "cache")
    folder = shutil.copytree(store, tmp_path / "d.zarr")
    rows = next((folder / "teachers" / "a" / "logsumexp" / "c").rglob("0"))
    rows = next(file for file in [rows, *rows.rglob("*")] if file.is_file())
    rows.write_bytes(bytes([rows.read_bytes()[0] ^ 1]) + rows.read_bytes()[1:])
    damaged = zip_by_hand(folder, tmp_path / "d.zip")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGITBANK_CACHE", str(tmp_path / "cache"))
        with pytest.raises(StoreError, match="does not hold the rows committed"), fresh_store(damaged):
            pass
        with fresh_store(tmp_path / "s.zip") as sound:
            assert verify_store(sound) == []
        assert not sound.exists()


@pytest.mark.parametrize("as_zip", [False, True])
def test_a_damaged_source_is_named_and_not_where_it_was_copied_to(store: Path, tmp_path: Path, as_zip: bool) -> None:
    source = shutil.copytree(store, tmp_path / "d.zarr")
    label = next(file for file in (source / "examples" / "label" / "c").rglob("*") if file.is_file())
    other = make_store(tmp_path / "o.zarr", ("a",), labels=np.zeros(300, dtype=np.int64))
    shutil.copyfile(other / label.relative_to(source), label)
    if as_zip:
        source = zip_by_hand(source, tmp_path / "d.zip")
    with pytest.raises(StoreError, match="values do not match") as refusal:
        copy_store(source, tmp_path / "c.zarr")
    assert str(source / "examples" / "label") in str(refusal.value)
    assert "partial" not in str(refusal.value)


@pytest.mark.skipif(os.name != "posix", reason="limits of a process")
def test_a_copy_to_a_full_disk_says_so(store: Path, tmp_path: Path) -> None:
    import resource

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(StoreError, match="cannot write .*c.zarr: File too large; .* free space") as refusal:
            copy_store(store, tmp_path / "c.zarr")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "partial" not in str(refusal.value)
