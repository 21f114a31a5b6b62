"""Cells that another store has already: their files get one more name instead of being written again."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from logitbank.stores.format.documents import read_document
from logitbank.stores.format.layout import file_name
from logitbank.stores.format.schema import Cell
from logitbank.stores.read.teacher import Teacher

_LAYOUT = ("data_type", "chunk_grid", "chunk_key_encoding", "codecs", "fill_value")  # what files mean


def same_layout(root: Path, teacher: Teacher, out: Path, name: str, arrays: Iterable[str]) -> dict[str, Path]:
    """Folders of those arrays of a teacher whose files mean the same in another store, by array name.

    Args:
        root: The teacher's store, resolved.
        teacher: What is there.
        out: The other store, resolved; the teacher has been begun there.
        name: What it is called there.
        arrays: Those that it has there.
    """
    folders = {}
    for array in set(teacher.arrays) & set(arrays):
        here, there = f"teachers/{name}/{array}", f"teachers/{teacher.name}/{array}"
        ours, theirs = read_document(out, here), read_document(root, there)
        if all(ours.get(key) == theirs.get(key) for key in _LAYOUT):
            folders[array] = root / there
    return folders


def cell_files(folders: Mapping[str, Path], teacher: Teacher, cell: Cell) -> dict[str, Path]:
    """The files of one cell in folders of a teacher's arrays, by array name."""
    return {
        array: folder / file_name((*cell, *(0 for _ in teacher.row_arrays[array].row_shape)))
        for array, folder in folders.items()
    }
