"""Places that a store can be read from: a folder, a zip file, a web server, anything fsspec knows.

A source copies single files whose names the store's own documents give: no listing is needed, no path comes from
the other side, and nothing longer than the format allows is taken. Clients with threads of their own are used in
the calling process only, and never by whoever reads rows.
"""

import contextlib
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from logitbank.stores.files import regular_file
from logitbank.stores.format.address import is_url, is_web, is_zip, shown, spelled
from logitbank.stores.format.schema import StoreError, safe_names
from logitbank.stores.locks import scratch
from logitbank.stores.read.reader import teacher_names
from logitbank.stores.share.refusals import check_address, client_errors
from logitbank.stores.share.streams import Pace, too_long
from logitbank.stores.share.web import WebSource
from logitbank.stores.share.zip_file import open_zip

EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
ATTEMPTS = 3
PAUSE = 0.2  # seconds before the second attempt, twice that before the third
PROTOCOLS = (*EXTRAS, "memory")


class Source(Protocol):
    """Where a store's files come from."""

    name: str

    @property
    def root(self) -> Path | None:
        """The folder that it is, if it is one on this disk."""
        ...

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Copies one file; FileNotFoundError when it is not there, StoreError when it is longer than `limit`."""
        ...

    def teachers(self) -> list[str] | None:
        """Names in the folder of teachers; None when the place cannot say."""
        ...


@contextlib.contextmanager
def open_source(place: str | Path) -> Iterator[Source]:
    """The source behind a path or URL, a folder or a single .zip file."""
    text = spelled(place).rstrip("/")
    if not is_zip(text):
        if not is_url(text):
            yield FolderSource(Path(text))
        else:
            yield WebSource(text) if is_web(text) else ObjectSource(text)
    elif not is_url(text):
        with open_zip(Path(text), text) as source:
            yield source
    else:
        with scratch() as folder:
            fetch_zip(text, folder / "store.zip", {})
            with open_zip(folder / "store.zip", shown(text)) as source:
                yield source


def fetch_zip(url: str, target: Path, known: Mapping[str, str]) -> dict[str, str] | None:
    """Copy a zip file that is elsewhere, unless it is the version that is `known`.

    Returns:
        What tells this version from others; None, and nothing copied, when it is `known`.
    """
    source = WebSource(url) if is_web(url) else ObjectSource(url)
    for attempt in range(ATTEMPTS):
        try:
            return source.fetch_whole(target, shutil.disk_usage(target.parent).free, known)
        except FileNotFoundError as error:
            raise StoreError(f"{source.name} is not there; check the address") from error
        except OSError as error:
            if attempt + 1 == ATTEMPTS:
                raise StoreError(f"cannot fetch {source.name}: {error}; run the command again") from error
            time.sleep(PAUSE * 2**attempt)
    raise AssertionError


class FolderSource:
    """A store on a disk."""

    def __init__(self, path: Path) -> None:
        self.name, self.root = str(path), path.resolve()

    def fetch(self, path: str, target: Path, limit: int) -> None:
        status = regular_file(self.root, self.root / path)
        if status is None:
            raise FileNotFoundError(path)
        if status.st_size > limit:
            raise too_long(self.name, path, limit)
        if target != self.root / path:
            shutil.copyfile(self.root / path, target)

    def teachers(self) -> list[str] | None:
        return list(teacher_names(self.root))


class ObjectSource:
    """The source of a store in a bucket or on a hub, through fsspec."""

    root = None

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        self.fs, self.top = file_system(url)

    def fetch(self, path: str, target: Path, limit: int) -> None:
        self._get(f"{self.top}/{path}", target, limit, path)

    def fetch_whole(self, target: Path, limit: int, known: Mapping[str, str]) -> dict[str, str] | None:
        """As `WebSource.fetch_whole`."""
        with client_errors(self.name):
            self.fs.invalidate_cache()
            found = self.fs.info(self.top)
        version = {name: str(found[name]) for name in ("ETag", "LastModified", "size", "blob_id") if name in found}
        if known == version and len(version) > 1:
            return None
        self._get(self.top, target, limit, "")
        return version

    def teachers(self) -> list[str] | None:
        try:
            with client_errors(self.name):
                entries = self.fs.ls(f"{self.top}/teachers", detail=False, refresh=True)
        except FileNotFoundError:
            return []
        found = safe_names(str(entry).rstrip("/").rpartition("/")[2] for entry in entries)
        with client_errors(self.name):
            return [name for name in found if self.fs.exists(f"{self.top}/teachers/{name}/zarr.json")]

    def _size(self, whole: str) -> int:
        try:
            return int(self.fs.info(whole)["size"])
        except OSError as error:
            if not isinstance(error, FileNotFoundError):
                self.fs.cat_file(whole, start=0, end=1)  # other than the one to `info`, this answer says why
            raise

    def _get(self, whole: str, target: Path, limit: int, what: str) -> None:
        from fsspec.callbacks import Callback

        pace = Pace()

        class Paced(Callback):  # type: ignore[misc]
            def relative_update(self, inc: int = 1) -> None:
                pace.add(inc)

        with client_errors(self.name):
            if self._size(whole) > limit:
                raise too_long(self.name, what, limit)
            self.fs.get_file(whole, str(target), callback=Paced())


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it; only the protocols of `PROTOCOLS`, and no chains of them."""
    protocol = url.partition("://")[0]
    if protocol not in PROTOCOLS or "::" in url:
        raise StoreError(
            f"{shown(url)}: stores are copied from and to folders, .zarr.zip files, s3://, gs:// and hf://, and from"
            " http(s)://; choose one of these"
        )
    check_address(url)
    import fsspec

    try:
        fs, root = fsspec.url_to_fs(url)
    except ImportError as error:
        wanted = EXTRAS.get(protocol, protocol)
        raise StoreError(f"{shown(url)} needs another package: pip install 'logitbank[{wanted}]'") from error
    return fs, str(root).rstrip("/")
