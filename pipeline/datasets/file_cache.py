"""A folder of bounded size with copies of files that lie elsewhere.

It is shared by all processes of a user on a machine. A file is fetched once, whoever wants it; before that, those not
used for the longest make room, but never one that somebody reads. Every name in the folder ends in its file's size, so
that what is on its way counts too.
"""

import os
import re
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
            with locked(self.folder / "room"):
                self._make_room(file)
                partial.touch(exist_ok=False)
            try:
                file.fetch(partial)
                partial.replace(path)
            finally:
                partial.unlink(missing_ok=True)

    def _make_room(self, file: Elsewhere) -> None:
        remove_abandoned(self.folder)
        whole, taken = [], file.size
        for entry in os.scandir(self.folder):
            match = re.fullmatch(r"\.?[0-9a-f]{32}-(\d+)(\..*\.partial)?", entry.name)
            if match:
                taken += int(match[1])
                if not match[2]:
                    whole.append((entry.stat().st_mtime_ns, int(match[1]), Path(entry.path)))
        for _, size, path in sorted(whole):
            if taken > self.limit and _remove_unless_read(path):
                taken -= size
        if taken > self.limit:
            raise ValueError(
                f"{file}: {taken / 1e9:.3g} GB are wanted at the same time, {self.limit / 1e9:.3g} GB may lie in"
                f" {self.folder}; raise {LIMIT}"
            )


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


def shared_cache() -> FileCache:
    """The folder of this user on this machine, ``shards`` in ``local_folder``; LOGITBANK_SHARDS_GB bounds it.

    Raises:
        ValueError: The bound is no number above 0.
    """
    text = os.environ.get(LIMIT, str(_DEFAULT_GB))
    try:
        limit = int(float(text) * 1e9)
    except (ValueError, OverflowError):
        limit = 0
    if limit <= 0:
        raise ValueError(f"{LIMIT} is {text!r}; expected gigabytes, such as 100")
    key = local_folder("shards"), limit, os.getpid()
    if key not in _CACHES:
        _CACHES[key] = FileCache(*key[:2])
        key[0].mkdir(parents=True, exist_ok=True, mode=0o700)
    return _CACHES[key]
