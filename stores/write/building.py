"""How every command that builds something builds it: alone, out of sight, and once.

While `NAME` is being built there lie beside it

    .NAME.lock                   empty; the process that holds it is the only one that builds `NAME`
    .NAME.<16 hex>.partial/      nobody else's to read: `request.json`, and in `built` what becomes `NAME`

The lock is never renamed over, and the system lets go of it when its process dies. Whoever holds it knows that every
such folder is abandoned: one that was made for the very same request is gone on with, the others are removed. What
was built appears under its name when it is whole, and replaces nothing.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.stores.files import PARTIAL, make_durable, short_name, sync_folder, writing
from logitbank.stores.format.schema import StoreError
from logitbank.stores.locks import is_own, lock_path, locked, resolved

_REQUEST, _BUILT = "request.json", "built"


def build(
    target: Path,
    make: Callable[[Path], object],
    *,
    request: Mapping[str, Any] | None = None,
    same: Callable[[Path], bool] | None = None,
) -> bool:
    """Build a file or folder whole, unless it is there already.

    A second process that builds the same target waits for the first; then the target is there.

    Args:
        target: The file or folder.
        make: Makes it at the path that it is given. With a `request`, that path may hold what a killed process made
            for this very request.
        request: All that decides what is made, fit for JSON. Without one, nothing unfinished is gone on with.
        same: Whether what lies at the target is what would be made. Without it that is found out by making it and
            comparing bytes.

    Returns:
        False when it was there already.

    Raises:
        StoreError: Something else is there, or the place cannot be written to.
    """
    place = resolved(target)
    if same is not None and os.path.lexists(place) and not _beside(place):
        _accept(target, same(target))
        return False
    with locked(target), _workplace(place, request) as built:
        if same is not None and os.path.lexists(place):
            _accept(target, same(target))
            return False
        make(built)
        if os.path.lexists(place):
            _accept(target, _same_bytes(built, place))
            return False
        _publish(built, target)
        return True


def build_files(folder: Path, names: Sequence[str], make: Callable[[Path], object]) -> bool:
    """Build several files of one folder, which may hold others, the last one last; equal ones may be there already.

    Args:
        folder: Where they go.
        names: Their names.
        make: Makes them, under these names, in the folder that it is given.

    Returns:
        False when all of them were there already.

    Raises:
        StoreError: Another file of one of the names is there, or the place cannot be written to.
    """
    target = folder / names[-1]
    with locked(target), _workplace(resolved(target), None) as built:
        built.mkdir()
        make(built)
        there = [name for name in names if os.path.lexists(folder / name)]
        for name in there:
            _accept(folder / name, _same_bytes(built / name, folder / name))
        for name in names:
            if name not in there:
                _publish(built / name, folder / name)
    return len(there) < len(names)


def _accept(target: Path, same: bool) -> None:
    if not same:
        raise _taken(target)


def _taken(target: Path) -> StoreError:
    return StoreError(f"{target} is there and is something else; remove it or choose another path")


def _beside(target: Path) -> bool:
    """Whether a process builds the target, or left something behind."""
    return bool(_abandoned(target)) or os.path.lexists(lock_path(target))


def _abandoned(target: Path) -> list[Path]:
    """Work on a target that this user began, and that nobody goes on with if its lock is ours."""
    pattern = re.compile(rf"\.{re.escape(short_name(target.name))}\.[0-9a-f]{{16}}{re.escape(PARTIAL)}", re.DOTALL)
    try:
        return [Path(e.path) for e in os.scandir(target.parent) if pattern.fullmatch(e.name) and is_own(e, folder=True)]
    except OSError:
        return []


@contextlib.contextmanager
def _workplace(target: Path, request: Mapping[str, Any] | None) -> Iterator[Path]:
    """Where to build; what is there already was made for the same request.

    After a failure it stays when it holds rows of a store, so that the same command goes on.
    """
    text = None if request is None else json.dumps(request, sort_keys=True)
    folder = None
    for found in _abandoned(target):
        if folder is None and text is not None and _asked_for(found) == text:
            folder = found
            _tidy(found)
        else:
            shutil.rmtree(found, ignore_errors=True)
    if folder is None:
        folder = target.with_name(f".{short_name(target.name)}.{secrets.token_hex(8)}{PARTIAL}")
        with writing(str(target)):
            folder.mkdir(mode=0o700)
            if text is not None:
                (folder / _REQUEST).write_text(text)
    keep = False
    try:
        yield folder / _BUILT
    except BaseException as error:
        keep = text is not None and any(folder.glob("*/teachers/*/*/c"))
        if isinstance(error, StoreError):  # it may name what is gone when it is read
            said = str(error).replace(str(folder / _BUILT), str(target)).replace(str(folder), str(target))
            raise StoreError(said) from error
        if isinstance(error, OSError) and str(error.filename or folder).startswith(str(folder)):
            with writing(str(target)):
                raise
        raise
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def _asked_for(folder: Path) -> str | None:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return (folder / _REQUEST).read_text()
    return None


def _tidy(folder: Path) -> None:
    """Remove what a killed process was writing when it died; nobody else writes there."""
    for path in sorted(folder.rglob(f".*{PARTIAL}"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _same_bytes(made: Path, there: Path) -> bool:
    """Whether two files, or two folders with all that is below them, are equal; links are followed in neither."""
    if made.is_dir():
        if not there.is_dir() or {p.name for p in made.iterdir()} != {p.name for p in there.iterdir()}:
            return False
        return all(_same_bytes(path, there / path.name) for path in made.iterdir())
    if not there.is_file() or made.stat().st_size != there.stat().st_size:
        return False
    with made.open("rb") as one, there.open("rb") as other:
        while piece := one.read(1 << 20):
            if piece != other.read(1 << 20):
                return False
    return True


def _publish(built: Path, target: Path) -> None:
    """Give what was built its name, durably; whatever lies there is not replaced."""
    make_durable(built)
    try:
        if built.is_dir():
            built.rename(target)  # the system refuses to put a folder over anything but an empty one
        else:
            _name_file(built, target)
    except OSError as error:
        if os.path.lexists(target):
            raise _taken(target) from error
        raise
    sync_folder(target.parent)


def _name_file(built: Path, target: Path) -> None:
    try:
        target.hardlink_to(built)  # fails where a file is; renaming would replace it
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        if os.path.lexists(target):
            raise
        built.rename(target)
