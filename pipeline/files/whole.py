"""Files that are there whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from logitbank.stores.files import partial_path, remove_abandoned, short_name


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """An empty file beside ``path`` to write to: the file itself once the block has ended, gone when it has failed."""
    remove_abandoned(path.parent, f".{short_name(path.name)}.")
    beside = partial_path(path)
    beside.touch(exist_ok=False)
    try:
        yield beside
        with beside.open("rb") as file:
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
