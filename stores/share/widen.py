"""A part of a store that is here becomes a wider part: only what is new is fetched."""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from logitbank.stores.files import short_name, sync_folder, writing
from logitbank.stores.locks import locked
from logitbank.stores.write.building import build

NOISE = ("Thumbs.db", "desktop.ini")  # and whatever begins with a dot: what file managers leave behind


def link_files(there: Path, here: Path) -> None:
    """Give files of arrays below `there` names below `here` too, where there are none; a fetch looks at each of them.

    No file of a store is ever changed in place, so stores may share them.
    """
    for file in there.rglob("*"):
        target = here / file.relative_to(there)
        if "c" not in file.parts or file.is_symlink() or not file.is_file() or os.path.lexists(target):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(file, target)
        except OSError:  # another disk, or no hard links
            shutil.copyfile(file, target)


def widen(
    path: Path, make: Callable[[Path], object], request: Mapping[str, Any], is_narrower: Callable[[], bool]
) -> bool:
    """Put what `make` makes in the place of the part at `path`, whose files it finds already where it is to make it.

    Killed, the same command goes on; until the end the part is there as it was.

    Returns:
        False, and nothing done, when no narrower part is there.
    """
    wider, old = _beside(path, "wider"), _beside(path, "narrower")
    with locked(path):
        if not is_narrower():
            return False

        def make_from_part(built: Path) -> None:
            link_files(path, built)
            make(built)

        remove(wider)  # whole, and for nobody knows what
        build(wider, make_from_part, request=request)
        with writing(str(path)):
            path.rename(old)
            wider.rename(path)
            sync_folder(path.absolute().parent)
            remove(old)
    return True


def settle(path: Path) -> None:
    """Put a part back whose replacement was killed between its two renames."""
    wider, old = _beside(path, "wider"), _beside(path, "narrower")
    if os.path.lexists(old) or os.path.lexists(wider):
        with locked(path), writing(str(path)):
            if os.path.lexists(old) and not os.path.lexists(path):
                old.rename(path)
            remove(old)
            remove(wider)


def remove(path: Path) -> None:
    """Remove a folder, or a link, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _beside(path: Path, what: str) -> Path:
    return path.absolute().with_name(f".{short_name(path.name)}.{what}")
