"""A store in one zip file: written from a folder, and read entry by entry, never extracted."""

import contextlib
import errno
import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from logitbank.stores.format.schema import StoreError, safe_names
from logitbank.stores.share.streams import save, too_long

_EPOCH = (1980, 1, 1, 0, 0, 0)
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # others may need gigabytes of memory
_DAMAGE = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, ValueError, RuntimeError, OSError)


def write_zip(folder: Path, path: Path) -> None:
    """Write all files below `folder` into one zip file, not compressed again; equal stores give equal files."""
    with path.open("xb") as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as data, archive.open(entry, "w") as out:
                while piece := data.read(1 << 20):
                    out.write(piece)


class ZipSource:
    """A store in one zip file, at its top or in its only folder, whoever zipped it."""

    root = None

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.name, self._archive = name, archive
        self._entries = {_plain(entry.filename): entry for entry in archive.infolist()}
        tops = [path.removesuffix("zarr.json") for path in self._entries if f"/{path}".endswith("/zarr.json")]
        depth = min((top.count("/") for top in tops), default=0)
        tops = sorted(top for top in tops if top.count("/") == depth)
        if len(tops) != 1:
            found = f"{len(tops)} side by side, {tops[0]} first" if tops else "no zarr.json in it"
            raise StoreError(f"{name} must hold a store, found {found}; check the file")
        self._prefix = tops[0]

    def fetch(self, path: str, target: Path, limit: int) -> None:
        entry = self._entries.get(self._prefix + path)
        if entry is None:
            raise FileNotFoundError(path)
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
            raise StoreError(f"{self.name}: {path} must be a plain file, found a link or encryption; do not use it")
        if entry.compress_type not in _METHODS:
            raise StoreError(f"{self.name}: {path} must be stored or deflated, found another method; zip it anew")
        if entry.file_size > limit:
            raise too_long(self.name, path, limit)
        with _damage(self.name, path), self._archive.open(entry) as file:
            save(file.read, target, limit, f"{self.name}: {path}")

    def teachers(self) -> list[str] | None:
        prefix = f"{self._prefix}teachers/"
        below = (name.removeprefix(prefix) for name in self._entries if name.startswith(prefix))
        return safe_names(name.removesuffix("/zarr.json") for name in below if name.endswith("/zarr.json"))


@contextlib.contextmanager
def open_zip(path: Path, name: str) -> Iterator[ZipSource]:
    """The store in a zip file that lies at `path` and is called `name`."""
    with contextlib.ExitStack() as stack:
        try:
            with _damage(name, ""):
                archive = stack.enter_context(zipfile.ZipFile(path))
                source = ZipSource(archive, name)
        except FileNotFoundError as error:
            raise StoreError(f"{name} is not there; check the path") from error
        yield source


@contextlib.contextmanager
def _damage(name: str, path: str) -> Iterator[None]:
    """Whatever a damaged file makes the reader say, as one line."""
    try:
        yield
    except (StoreError, FileNotFoundError):
        raise
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # this disk's
        said = " ".join(str(error).split())[:200] or type(error).__name__
        what = f"{path} in it" if path else "it"
        raise StoreError(f"{name} must be a sound zip file, {what} is damaged ({said}); fetch it again") from error


def _plain(name: str) -> str:
    """An entry's name as the format spells it; some programs write backslashes, or `./` in front."""
    return name.replace("\\", "/").removeprefix("./")
