"""Notes about files: a second command reads none of them again, and never believes what does not hold."""

import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.file_notes import FEWEST, Notes
from logitbank.pipeline.datasets.image_files import ImageFiles

N = FEWEST + 4
OPENED: list[str] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith(".png"):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_listen)


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that nobody has changed for two seconds."""
    folder = tmp_path_factory.mktemp("pictures") / "d"
    for number in range(N):
        (folder / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2), (number % 256, number // 256, 7)).save(folder / "ab"[number % 2] / f"{number}.png")
    time.sleep(2.1)
    return folder


@pytest.fixture
def noted(settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path, Split]:
    """A folder, its notes, and the split as it was read first."""
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / "cache"))
    split = load_split(f"imagefolder:{settled}")
    assert len(split.keys) == N
    (notes,) = (tmp_path / "cache" / "files").iterdir()
    return settled, notes, split


def opened(spec: str) -> tuple[Split, int]:
    """A split with its keys, and how many pictures were opened for it."""
    OPENED.clear()
    split = load_split(spec)
    assert len(split.keys) == len(split)
    return split, len(OPENED)


def test_a_second_command_opens_no_picture(noted: tuple[Path, Path, Split]) -> None:
    folder, _, first = noted
    again, count = opened(f"imagefolder:{folder}")
    assert count == 0
    assert (again.keys == first.keys).all()
    assert again.fingerprint == first.fingerprint
    some, count = opened(f"imagefolder:{folder}?limit=9")
    assert count == 0
    assert np.isin(some.keys, first.keys).all()
    _, count = opened(f"imagefolder:{folder}?on_error=skip")  # decodes them all, once
    assert count >= N
    assert opened(f"imagefolder:{folder}?on_error=skip")[1] == 0
    small, count = opened(f"imagefolder:{folder}?size=2")  # keys of another space
    assert count >= N
    assert not np.isin(small.keys, first.keys).any()


def rewritten(path: Path) -> None:
    """Another picture of the same size, with the old time of modification."""
    before = path.stat()
    size = len(path.read_bytes())
    Image.new("RGB", (3, 2), (9, 9, 9)).save(path)
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def replaced(path: Path) -> None:
    other = path.with_name("other")
    Image.new("RGB", (3, 2), (8, 8, 8)).save(other, "PNG")
    other.replace(path)


def test_a_changed_file_gets_a_new_key(settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "d"
    shutil.copytree(settled, folder)
    time.sleep(2.1)
    first, _ = opened(f"imagefolder:{folder}")
    for change in (rewritten, replaced):
        change(folder / "a" / "0.png")
        again, count = opened(f"imagefolder:{folder}")
        assert 0 < count <= 2
        assert (again.keys != first.keys).sum() == 1
        assert (again.keys == ImageFiles(again_paths(again)).content_keys()).all()
        first = again
    (folder / "a" / "0.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="1 files cannot be decoded"):
        load_split(f"imagefolder:{folder}")


def again_paths(split: Split) -> list[Path]:
    source: Any = split.samples
    return list(source.source.paths)


def test_files_that_were_just_changed_are_not_believed(tmp_path: Path, settled: Path) -> None:
    folder = tmp_path / "new"
    shutil.copytree(settled, folder)
    load_split(f"imagefolder:{folder}").keys  # noqa: B018
    assert opened(f"imagefolder:{folder}")[1] >= N


def flipped(blob: bytes) -> bytes:
    return blob[:-30] + bytes([blob[-30] ^ 1]) + blob[-29:]


@pytest.mark.parametrize("damage", [flipped, lambda blob: blob[:-1], lambda blob: b"", lambda blob: b"x" * len(blob)])
def test_damaged_notes_are_no_notes(damage: Callable[[bytes], bytes], noted: tuple[Path, Path, Split]) -> None:
    folder, notes, first = noted
    notes.write_bytes(damage(notes.read_bytes()))
    again, count = opened(f"imagefolder:{folder}")
    assert count >= N
    assert (again.keys == first.keys).all()
    assert opened(f"imagefolder:{folder}")[1] == 0


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="only root gives files away")
def test_files_that_changed_as_they_were_looked_at_are_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "file"
    file.write_bytes(b"1")
    notes = Notes([file], "age")
    time.sleep(2.1)  # a long pass: a change after the look, within one tick of the clock, would leave the times
    notes.write(b"")
    recalled = Notes([file], "age").recall()
    assert recalled is not None
    assert not recalled[0].any()
    Notes([file], "age").write(b"")
    recalled = Notes([file], "age").recall()
    assert recalled is not None
    assert recalled[0].all()


def test_notes_of_another_user_are_no_notes(noted: tuple[Path, Path, Split]) -> None:
    folder, notes, _ = noted
    os.chown(notes, 12345, 12345)
    assert opened(f"imagefolder:{folder}")[1] >= N


def test_a_cache_that_cannot_be_written_costs_time_alone(
    settled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / "file"))
    for _ in range(2):
        assert opened(f"imagefolder:{settled}")[1] >= N
