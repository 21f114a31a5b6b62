"""Durable files: every write is temp file, fsync, rename, fsync of the folder, and stays inside the store."""

import asyncio
import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore

from logitbank.stores.format.schema import StoreError

PARTIAL = ".partial"
STALE_SECONDS = 6 * 3600
_LONG_NAME = 150  # bytes; file systems take 255
_PARTIAL_NAME = re.compile(r"\..+\.([0-9a-f]{12})-([0-9]{1,10})-(?:[0-9a-f]{8}){1,2}\.partial", re.DOTALL)


@functools.cache
def _machine() -> str:
    """Short id of the machine (and process namespace) whose process ids we can check."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:12]


def short_name(name: str) -> str:
    """A name to make longer ones of: itself, or a digest of it where those would be too long for the disk."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= _LONG_NAME else hashlib.sha256(encoded).hexdigest()


def partial_path(path: Path) -> Path:
    """A new name beside `path` for building it; says which process on which machine is doing so."""
    return path.with_name(f".{short_name(path.name)}.{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:16]}{PARTIAL}")


def is_abandoned(partial: Path) -> bool:
    """True when the process that was building `partial` is gone, or (elsewhere) has been silent for hours."""
    match = _PARTIAL_NAME.fullmatch(partial.name)
    if match is None:
        return False
    try:
        if match[1] == _machine():
            os.kill(int(match[2]), 0)
            return False
        return time.time() - partial.lstat().st_mtime > STALE_SECONDS
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:
        return False


def remove_abandoned(folder: Path, prefix: str = ".") -> None:
    """Remove what killed writers left in `folder` (not below it); never what a live writer is building."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if entry.name.startswith(prefix) and is_abandoned(Path(entry.path)):
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path, ignore_errors=True)
                else:
                    Path(entry.path).unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def make_durable(path: Path) -> None:
    """Put a file, or all files below a folder and their names, on the disk."""
    if os.name != "posix":
        return
    for each in (*path.rglob("*"), path):
        if not each.is_symlink():
            handle = os.open(each, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)


def make_folders(folder: Path) -> None:
    """Create `folder` and what is missing above it, durably."""
    missing = []
    while not folder.exists():
        missing.append(folder)
        folder = folder.parent
    for child in reversed(missing):
        child.mkdir(exist_ok=True)
        sync_folder(child.parent)


def write_file(path: Path, data: Any) -> None:
    """Replace `path` by `data` so that a crash leaves the old file or the new one, never a torn one."""
    with _written(path, data) as partial:
        partial.replace(path)


def claim_file(path: Path, data: bytes) -> bool:
    """Write `path` if nobody has; False, and nothing written, when it is there already."""
    with _written(path, data) as partial:
        try:
            path.hardlink_to(partial)
        except FileExistsError:
            return False
        except OSError:  # a file system without hard links
            if path.exists():
                return False
            partial.replace(path)
    return True


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """An empty file beside `path` to write to: the file itself once the block has ended, gone when it has failed."""
    remove_abandoned(path.parent, f".{short_name(path.name)}.")
    with _beside(path) as partial:
        partial.touch(exist_ok=False)
        yield partial
        make_durable(partial)
        partial.replace(path)


@contextlib.contextmanager
def _written(path: Path, data: Any) -> Iterator[Path]:
    """A durable file with `data` beside `path`, to be renamed."""
    with _beside(path) as partial:
        with partial.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        yield partial


@contextlib.contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A name beside `path`, which is gone afterwards; then the folder is made durable."""
    make_folders(path.parent)
    partial = partial_path(path)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_document(folder: Path, document: Mapping[str, Any]) -> None:
    """Write the zarr.json of `folder`."""
    text = json.dumps(document, indent=2, allow_nan=False)
    write_file(folder / "zarr.json", text.encode())


def regular_file(root: Path, path: Path) -> os.stat_result | None:
    """Status of `path`; None when it is missing; StoreError when it is no plain file inside `root`."""
    text, end = str(path), len(str(root))
    try:
        while (end := text.find(os.sep, end + 1)) > 0:
            if stat.S_ISLNK(os.lstat(text[:end]).st_mode):
                return _outside(root, path)
        status = os.lstat(text)
        return status if stat.S_ISREG(status.st_mode) else _outside(root, path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, RuntimeError) as error:
        raise StoreError(f"cannot read {path}: {error}; check the path and its permissions") from error


def _outside(root: Path, path: Path) -> os.stat_result:
    """Status of a file behind a link that stays in `root`; StoreError when it leaves or is something else."""
    target = path.resolve(strict=True)
    status = target.stat()
    if not target.is_relative_to(root) or not stat.S_ISREG(status.st_mode):
        raise StoreError(
            f"{path} must be a plain file inside the store, found {_kind(status.st_mode)} {target}; "
            "do not use this store unless you trust its source"
        )
    return status


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "a link to"
    return "the folder" if stat.S_ISDIR(mode) else "the special file"


@contextlib.contextmanager
def writing(what: str) -> Iterator[None]:
    """Turn the operating system's refusals while writing into one clear line."""
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot write {what}: {error.strerror or error}; nothing committed is lost: free space or "
            "fix the folder's permissions, then run the same command again"
        ) from error


class DurableStore(LocalStore):
    """zarr's own local store whose writes survive a crash and never leave the store's folder."""

    async def set(self, key: str, value: Buffer) -> None:
        """Write one file durably."""
        self._check_writable()
        await asyncio.to_thread(self._put, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        """Write one file durably (newer zarr calls this from its own threads)."""
        self._check_writable()
        self._put(key, value)

    def _put(self, key: str, value: Buffer) -> None:
        path = self.root / key
        make_folders(path.parent)
        if not path.parent.resolve().is_relative_to(self.root.resolve()):
            raise StoreError(
                f"{path} must lie inside the store, found {path.parent.resolve()}; do not write through links"
            )
        write_file(path, value.as_buffer_like())


def open_storage(root: Path) -> ZarrStore:
    """zarr's storage over the folder of a store, for writing."""
    return DurableStore(root)
