"""Files in buckets and on web servers, read like files here: those used last lie in a folder of bounded size."""

import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from logitbank.pipeline.datasets.file_cache import shared_cache
from logitbank.stores.format.address import is_web, shown

_NUMBERS = re.compile(r"\{(\d+)\.\.(\d+)\}")
_MOST_NAMES = 10**6
_TAGS = ("ETag", "etag", "LastModified", "Last-Modified", "md5Hash", "crc32c", "created")
ATTEMPTS, PAUSE = 3, 0.2  # as of stores that are elsewhere


class _State(NamedTuple):
    """What notes compare, as ``Path.stat`` calls it: the version that the place tells stands for inode and device."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int
    st_ino: int
    st_dev: int


class RemoteFile:
    """A file elsewhere, to be read like a ``Path``; it is fetched when it is opened.

    Args:
        fs: fsspec's file system.
        path: Its path there.
        url: How people call it.
    """

    def __init__(self, fs: Any, path: str, url: str) -> None:
        info = fs.info(path)
        size, self._fs, self._path, self._url = info.get("size"), fs, path, shown(url)
        if not isinstance(size, int):
            raise ValueError(f"{self._url}: its server does not say how long it is; fetch it, and name the file")
        self.size = size
        tag = "\0".join(str(info[name]) for name in _TAGS if info.get(name) is not None)
        self._tag = hashlib.sha256(f"{self._url}\0{tag}\0{size}".encode()).hexdigest()
        self._known = bool(tag)

    def __str__(self) -> str:
        return self._url

    def __fspath__(self) -> str:
        return self._url

    @property
    def name(self) -> str:
        """Of its copy here: the same for the same version."""
        return f"{self._tag[:32]}-{self.size}"

    def absolute(self) -> "RemoteFile":
        return self

    def stat(self) -> _State:
        """Notes about it are believed as long as it is of this version; of one without a version, never."""
        return _State(self.size, 0, 0, int(self._known), int(self._tag[:15], 16))

    def open(self, mode: str = "rb") -> BinaryIO:
        """The copy here, which stays as long as it is open."""
        return shared_cache().open(self)

    def fetch(self, target: Path) -> None:
        """Copy it; what is longer than it was said to be, or comes too slowly, is given up, and tried again."""
        from logitbank.stores.share.refusals import client_errors

        for attempt in range(ATTEMPTS):
            try:
                with client_errors(self._url):
                    self._fs.get_file(self._path, str(target), callback=_counting(self.size))
                    if target.stat().st_size != self.size:
                        raise OSError(f"{self.size} bytes were expected, {target.stat().st_size} came")
                return
            except OSError:
                if attempt + 1 == ATTEMPTS:
                    raise
                time.sleep(PAUSE * 2**attempt)


def _counting(most: int) -> Any:
    """fsspec's way to hear of what came; raises when that is too much or too slow."""
    from fsspec.callbacks import Callback

    from logitbank.stores.share.streams import Pace

    pace = Pace()

    came = 0

    class Counting(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            nonlocal came
            pace.add(inc)
            came += inc
            if came > most:
                raise OSError(f"more than {most} bytes came")

    return Counting()


def find_remote(pattern: str) -> list[RemoteFile]:
    """The files that an address names, sorted: ``{000..099}`` counts, and in a bucket ``*``, ``?`` and ``[...]`` match.

    Raises:
        ValueError: The place cannot be read.
    """
    from logitbank.stores.share.refusals import client_errors

    found = []
    try:
        for url in _counted(pattern):
            with client_errors(shown(url)):
                fs, path = _file_system(url)
                paths = fs.glob(path) if not is_web(url) and any(letter in path for letter in "*?[") else [path]
                top = url.removesuffix(path)
                found += [RemoteFile(fs, each, url if is_web(url) else f"{top}{each}") for each in sorted(paths)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ValueError(f"{shown(pattern)}: cannot be read ({error}); check the address") from error
    return found


def _counted(pattern: str) -> Iterator[str]:
    match = _NUMBERS.search(pattern)
    if match is None:
        yield pattern
        return
    first, last = int(match[1]), int(match[2])
    if not first <= last < first + _MOST_NAMES:
        raise ValueError(f"{shown(pattern)}: {match[0]} is no range of files; expected one such as {{000..099}}")
    for number in range(first, last + 1):
        yield from _counted(f"{pattern[: match.start()]}{number:0{len(match[1])}d}{pattern[match.end() :]}")


def _file_system(url: str) -> tuple[Any, str]:
    from logitbank.stores.share.sources import file_system

    if not is_web(url):
        return file_system(url)
    import fsspec

    return fsspec.filesystem("http"), url


class Ahead:
    """Which files come next: the one behind where rows are read in their order, else the next announced group."""

    def __init__(self, files: Sequence[Path | RemoteFile]) -> None:
        self._files = files
        self._groups: list[frozenset[int]] = []
        self._last = (-2, -1)

    def announce(self, groups: Sequence[frozenset[int]]) -> None:
        """Numbers of the files that will be read, group after group."""
        self._groups = list(groups)
        for number in sorted(self._groups[0] if self._groups else ()):
            self._fetch(number)

    def reading(self, row: int, number: int) -> None:
        """A row is read, from a file."""
        behind = row == self._last[0] + 1
        self._last = row, number
        if self._groups:
            if number in self._groups[0] and len(self._groups) > 1:
                for following in sorted(self._groups[1]):
                    self._fetch(following)
                self._groups = self._groups[1:]
        elif behind:
            self._fetch(number + 1)

    def _fetch(self, number: int) -> None:
        if number < len(self._files) and isinstance(file := self._files[number], RemoteFile):
            shared_cache().ahead(file)
