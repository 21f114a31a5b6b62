"""A slab as a file that processes map: students of one store read the same pages of memory.

A file lives as long as some process maps it: who maps one holds a shared lock on it, which the system releases
whatever happens to the process, and files that nobody holds are removed by whoever comes next. Everything happens
under the folder's lock, so that of students who start together one decodes and the others wait and map.
"""

import mmap
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
_CRC_BYTES = 4


def map_slab(folder: Path, name: str, num_bytes: int, pieces: Callable[[], Iterable[Bytes]]) -> Bytes:
    """The bytes of a slab, mapped from a file that is written first when no process has it.

    Args:
        folder: Where the files of this user are; made when missing.
        name: Says what the slab holds: the same name, the same bytes.
        num_bytes: How many bytes the pieces have.
        pieces: Makes the slab, uint8 [n] after uint8 [n].

    Returns:
        uint8 [num_bytes], read-only, compared with its checksum. The file is in use as long as the array lives.

    Raises:
        OSError: The system cannot share files in this folder, or there is no space left.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = folder / f"{name}.slab"
    with _lock(folder):
        found = _mapped(path, num_bytes) if path.exists() else None
        if found is None:
            _remove_unused(folder)
            _write(path, pieces())
            found = _mapped(path, num_bytes)
    if found is None:
        raise OSError(f"{path} does not hold what was written to it")
    return found


def remove_unused(folder: Path) -> None:
    """Removes the files that no process maps."""
    if folder.is_dir():
        with _lock(folder):
            _remove_unused(folder)


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        _flock(handle, exclusive=True, wait=True)
        yield
    finally:
        _unlock(handle)  # also for a process that was forked meanwhile and holds the same handle
        os.close(handle)


def _flock(handle: int, *, exclusive: bool, wait: bool) -> None:
    try:
        import fcntl
    except ImportError as error:  # not on every system
        raise OSError("this system has no locks on files") from error
    fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | (0 if wait else fcntl.LOCK_NB))


def _unlock(handle: int) -> None:
    with suppress(ImportError):
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_UN)


def _mapped(path: Path, num_bytes: int) -> Bytes | None:
    """The file's bytes, or None when they are damaged."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if os.fstat(handle).st_size != num_bytes + _CRC_BYTES:
            return None
        _flock(handle, exclusive=False, wait=True)
        # The mapping keeps a duplicate of the handle, and with it the lock, as long as an array reads from it.
        whole = np.frombuffer(mmap.mmap(handle, 0, access=mmap.ACCESS_READ), np.uint8)
    finally:
        os.close(handle)
    crc = int.from_bytes(whole[num_bytes:].tobytes(), "little")
    return whole[:num_bytes] if google_crc32c.value(whole[:num_bytes]) == crc else None


def _write(path: Path, pieces: Iterable[Bytes]) -> None:
    partial = path.with_name(f"{uuid.uuid4().hex}.partial")
    crc = 0
    try:
        with partial.open("xb") as file:
            for piece in pieces:
                file.write(piece.data)
                crc = google_crc32c.extend(crc, piece)
            file.write(crc.to_bytes(_CRC_BYTES, "little"))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)  # a full disk gets its space back


def _remove_unused(folder: Path) -> None:
    for path in (*folder.glob("*.slab"), *folder.glob("*.partial")):
        handle = os.open(path, os.O_RDONLY)
        try:
            _flock(handle, exclusive=True, wait=False)
            path.unlink()
        except BlockingIOError:
            pass  # somebody maps it
        finally:
            os.close(handle)
