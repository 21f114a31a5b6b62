"""Names that one process at a time has: a lock beside each, and folders that are one process's own.

A lock is an empty file `.NAME.lock` beside `NAME`. It is never renamed over, the system lets go of it when its process
dies, and whoever releases it removes it.
"""

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from logitbank.stores.files import make_folders, short_name, writing
from logitbank.stores.format.schema import StoreError
from logitbank.stores.waiting import Waiting

_LOCK = ".lock"
_SCRATCH = "logitbank-"


@contextlib.contextmanager
def locked(target: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a name alone among all processes; yields False, without `wait`, when another one has it.

    The lock says nothing about what lies there, and needs nothing to lie there. Threads of one process exclude each
    other too.

    Raises:
        StoreError: The folder cannot be written to.
    """
    path = lock_path(target)
    with writing(str(target)):
        make_folders(path.parent)
        lock = _acquire(path, target, wait)
    try:
        yield lock is not None
    finally:
        if lock is not None:
            with contextlib.suppress(OSError):
                path.unlink()  # who waits for this very file sees that it lost its name, and makes another
            lock.release()


def _acquire(path: Path, target: Path, wait: bool) -> FileLock | None:
    """The lock, held; None, without `wait`, when another process has it."""
    found: list[os.stat_result] = []
    # empty, and open to all: whoever may write to the folder may wait here
    lock = FileLock(path, mode=0o666, on_acquired=lambda handle: found.append(os.fstat(handle)))
    advice = f"one that is stopped keeps its lock: let it go on, or end it (fuser {path} names it)"
    waiting = Waiting(f"another process that writes {target}", advice)
    while True:
        try:
            lock.acquire(timeout=waiting.quiet_seconds if wait else 0.0)
        except Timeout:
            if not wait:
                return None
            waiting.say()
            continue
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            raise StoreError(
                f"cannot lock {target}: its file system has no locks; write to another disk, then move it"
            ) from error
        with contextlib.suppress(FileNotFoundError):  # on some network drives a file that lost its name lives on
            if os.path.samestat(path.lstat(), found[-1]):
                return lock
        lock.release()


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A folder for this process alone in the system's temporary folder; those of killed processes are removed."""
    parent = Path(tempfile.gettempdir())
    for name in sorted(_scratch_names(parent)):
        with contextlib.suppress(StoreError), locked(parent / name, wait=False) as abandoned:
            if abandoned:
                shutil.rmtree(parent / name, ignore_errors=True)
    folder = parent / f"{_SCRATCH}{secrets.token_hex(8)}"
    with locked(folder):
        try:
            folder.mkdir(mode=0o700)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _scratch_names(parent: Path) -> set[str]:
    """Names of scratch folders of this user, of their locks too."""
    pattern = re.compile(rf"\.?({_SCRATCH}[0-9a-f]{{16}})(?:{re.escape(_LOCK)})?")
    matches = [(entry, pattern.fullmatch(entry.name)) for entry in os.scandir(parent)]
    return {match[1] for entry, match in matches if match and is_own(entry)}


def lock_path(target: Path) -> Path:
    """Where the lock of a target lies."""
    place = resolved(target)
    return place.with_name(f".{short_name(place.name)}{_LOCK}")


def resolved(target: Path) -> Path:
    """The one path of a target, whatever links lead to its folder; the target itself is not followed."""
    return target.resolve() if target.name in ("", "..") else target.parent.resolve() / target.name


def is_own(entry: os.DirEntry[str], *, folder: bool = False) -> bool:
    """Whether an entry is this user's own, and no link; systems without users have but one."""
    try:
        status = entry.stat(follow_symlinks=False)
    except OSError:  # gone meanwhile
        return False
    kind = stat.S_ISDIR(status.st_mode) or (stat.S_ISREG(status.st_mode) and not folder)
    return kind and (not hasattr(os, "geteuid") or status.st_uid == os.geteuid())
