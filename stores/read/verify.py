"""Looking at every byte of a store that a reader could be given, and at what its rows say."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from logitbank.stores.format.schema import StoreError
from logitbank.stores.read.blocks import REMEDY
from logitbank.stores.read.reader import open_store
from logitbank.stores.read.teacher import Teacher


class Problem(NamedTuple):
    """One thing that is wrong, and where: array, view and block are None where the fault is not in one."""

    array: str | None
    view: int | None
    block: int | None
    message: str


def verify_store(path: str | Path, *, rows: bool = True) -> list[Problem]:
    """Compare every document, array and block of a store with its checksums, and every row with itself.

    Args:
        path: Folder of the store.
        rows: Also ask whether rows can be answers to their examples.

    Returns:
        What is wrong; empty when the store is sound. An unfinished teacher is not sound.
    """
    return list(_store_problems(Path(path), rows))


def _store_problems(path: Path, rows: bool) -> Iterator[Problem]:
    try:
        store = open_store(path, allow_incomplete=True)
        teachers = store.teachers
    except StoreError as error:
        yield Problem(error.array, None, None, str(error))
        return
    problems = 0
    for folder in store.static_arrays:
        try:
            store.static_array(folder)
        except StoreError as error:
            problems += 1
            yield Problem(folder, None, None, str(error))
    for name in teachers:
        try:
            teacher = store.teacher(name)
        except StoreError as error:
            yield Problem(error.array or f"teachers/{name}", None, None, str(error))
        else:
            yield from _teacher_problems(teacher, store.labels if rows and not problems else None)


def _teacher_problems(teacher: Teacher, labels: np.ndarray | None) -> Iterator[Problem]:
    prefix = f"teachers/{teacher.name}"
    damaged = False
    for name in teacher.constant_names:
        try:
            teacher.constant(name)
        except StoreError as error:
            damaged = True
            yield Problem(f"{prefix}/{name}", None, None, str(error))
    try:
        _ = teacher.row_folds, None if damaged or labels is None else teacher.tails
    except StoreError as error:
        damaged = True
        yield Problem(prefix, None, None, str(error))
    labels = None if damaged else labels
    try:
        faults = teacher.commit_faults()
    except StoreError as error:
        yield Problem(f"{prefix}/committed", None, None, str(error))
        return
    for array, at_view, at_block, message in faults:
        yield Problem(f"{prefix}/{array}", at_view, at_block, message)
    if faults:
        return
    missing = set(teacher.uncommitted())
    if not teacher.complete:
        total = teacher.num_views * teacher.num_blocks
        rest = f"({len(missing)} of {total} cells to go); run the command that writes it again"
        yield Problem(prefix, None, None, f"{prefix} is unfinished {rest}")
    for view in range(teacher.num_views):
        for block in range(teacher.num_blocks):
            if (view, block) not in missing:
                yield from _cell_problems(teacher, view, block, labels)
            elif teacher.complete:
                yield Problem(f"{prefix}/committed", view, block, f"commit of the cell is missing; {REMEDY}")


def _cell_problems(teacher: Teacher, view: int, block: int, labels: np.ndarray | None) -> Iterator[Problem]:
    prefix = f"teachers/{teacher.name}"
    arrays = {}
    for name in teacher.arrays:
        try:
            values = teacher.block(view, block, [name])[name]
        except StoreError as error:
            yield Problem(f"{prefix}/{name}", view, block, str(error))
        else:
            if labels is not None:
                arrays[name] = values
    if labels is None or len(arrays) < len(teacher.arrays):
        return
    rows = np.arange(teacher.rows(block).start, teacher.rows(block).stop)
    answers = "rows" if teacher.positions is None else "answers"
    for words, places in teacher.broken_rows(rows, arrays):
        first = teacher.place(view, rows, int(places[0]))
        total = len(rows) * (teacher.positions or 1)
        others = f" (and {len(places) - 1} more of its {total} {answers})" if len(places) > 1 else ""
        yield Problem(prefix, view, block, f"{first}{others} {words}; do not use this store")
