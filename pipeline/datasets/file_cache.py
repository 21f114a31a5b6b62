"""A folder of bounded size with copies of files that lie elsewhere.

It is shared by all processes of a user on a machine. A file is fetched once, whoever wants it; before that, those not
used for the longest make room, but never one that somebody reads. Every name in the folder ends in its file's size, so
that what is on its way counts too.
"""

import os
import re
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO, Protocol

from logitbank.stores.files import partial_path, remove_abandoned
from logitbank.stores.folders import local_folder
from logitbank.stores.locks import locked

LIMIT = "LOGITBANK_SHARDS_GB"
_DEFAULT_GB = 20.0
_TRIES = 5
_THREADS = 2
_PATIENCE, _POLL = 600.0, 0.05  # seconds, for others to read to the end


class Elsewhere(Protocol):
    """A file that can be fetched."""

    size: int

    @property
    def name(self) -> str:
        """32 hex digits, and the size behind a dash: the same for the same version."""
        ...

    def fetch(self, target: Path) -> None:
        """Copies it."""
        ...


class FileCache:
    """A folder with copies of remote files.

    Args:
        folder: Its own; made when missing.
        limit: Bytes that they may have together.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._coming: dict[str, Future[None]] = {}
        self._lock = Lock()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="shards")

    def open(self, file: Elsewhere) -> BinaryIO:
        """Open a copy for reading, fetched first when it is not here.

        Raises:
            ValueError: It is larger than the folder may be.
            OSError: It cannot be fetched.
        """
        path = self.folder / file.name
        for _ in range(_TRIES):
            with suppress(FileNotFoundError):
                return _held(path)
            self.ahead(file).result()
        raise OSError(f"{file} was fetched {_TRIES} times and removed by others; raise {LIMIT}")

    def ahead(self, file: Elsewhere) -> "Future[None]":
        """Fetch a file in the background, unless that is under way."""
        with self._lock:
            coming = self._coming.get(file.name)
            if coming is None or coming.done():
                coming = self._coming[file.name] = self._threads.submit(self._fetch, file)
            return coming

    def _fetch(self, file: Elsewhere) -> None:
        path = self.folder / file.name
        with locked(path):
            if path.exists():
                return
            partial = partial_path(path)
            until = time.monotonic() + _PATIENCE
            while not self._reserved(file, partial):
                if file.size > self.limit or time.monotonic() > until:
                    size, most = (f"{number / 1e9:.3g} GB" for number in (file.size, self.limit))
                    raise ValueError(
                        f"{file} has {size}, {most} may lie in {self.folder} beside what is being read; raise {LIMIT}"
                    )
                time.sleep(_POLL)
            try:
                file.fetch(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def _reserved(self, file: Elsewhere, partial: Path) -> bool:
        """Makes a name that stands for the file's bytes, when there is room for them."""
        with locked(self.folder / "room"):
            if make_room(self.folder, file.size, self.limit):
                partial.touch(exist_ok=False)
                return True
        return False


def make_room(folder: Path, wanted: int, limit: int) -> bool:
    """Remove files that were not used for the longest, but none that is held, until more bytes fit into a folder.

    Args:
        folder: Of files whose time of change is that of their last use.
        wanted: Bytes that are to be written.
        limit: Bytes that all may have.

    Returns:
        Whether they fit.
    """
    remove_abandoned(folder)
    whole, taken = [], wanted
    for entry in os.scandir(folder):
        named = re.fullmatch(r"\.?[0-9a-f]{32}-(\d+)(?:\..*)?", entry.name)
        if entry.name.endswith(".lock"):
            continue
        with suppress(FileNotFoundError):
            status = entry.stat()
            size = int(named[1]) if named else status.st_size
            taken += size
            if not entry.name.startswith("."):
                whole.append((status.st_mtime_ns, size, Path(entry.path)))
    for _, size, path in sorted(whole):
        if taken > limit and _remove_unless_read(path):
            taken -= size
    return taken <= limit


_HELD: dict[Path, int] = {}  # handles; the system closes them with the process


def hold(path: Path) -> None:
    """Keep a file from being removed as long as this process lives, and count it as used now."""
    before = _HELD.pop(path, None)
    with _held(path) as handle:
        _HELD[path] = os.dup(handle.fileno())  # the lock is of both
    if before is not None:
        os.close(before)


def _held(path: Path) -> BinaryIO:
    import fcntl

    handle = path.open("rb")
    try:
        fcntl.flock(handle, fcntl.LOCK_SH)
        os.utime(path)
    except BaseException:
        handle.close()
        raise
    return handle


def _remove_unless_read(path: Path) -> bool:
    import fcntl

    with suppress(OSError), path.open("rb") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False


_CACHES: dict[tuple[Path, int, int], FileCache] = {}  # by process too: threads do not survive a fork


def bound() -> int:
    """Bytes that copies of data may have on this machine: LOGITBANK_SHARDS_GB, or 20 GB.

    Raises:
        ValueError: It is no number above 0.
    """
    text = os.environ.get(LIMIT, str(_DEFAULT_GB))
    try:
        limit = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise ValueError(f"{LIMIT} is {text!r}; expected gigabytes, such as 100")
    return limit


def shared_cache() -> FileCache:
    """The folder of this user on this machine, ``shards`` in ``local_folder``, within ``bound``."""
    key = local_folder("shards"), bound(), os.getpid()
    if key not in _CACHES:
        _CACHES[key] = FileCache(*key[:2])
        key[0].mkdir(parents=True, exist_ok=True, mode=0o700)
    return _CACHES[key]
