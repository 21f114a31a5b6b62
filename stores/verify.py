"""Looking at every byte of a store that a reader could be given."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from stores.blocks import REMEDY
from stores.reader import open_store
from stores.schema import StoreError
from stores.teacher import Teacher


class Problem(NamedTuple):
    """One thing that is wrong, and where: array, view and block are None where the fault is not in one."""

    array: str | None
    view: int | None
    block: int | None
    message: str


def verify_store(path: str | Path) -> list[Problem]:
    """Compare every document, array and block of a store with its checksums.

    Args:
        path: Folder of the store.

    Returns:
        What is wrong; empty when the store is sound. An unfinished teacher is not sound.
    """
    return list(_store_problems(Path(path)))


def _store_problems(path: Path) -> Iterator[Problem]:
    try:
        store = open_store(path, allow_incomplete=True)
        teachers = store.teachers
    except StoreError as error:
        yield Problem(error.array, None, None, str(error))
        return
    for folder in store.static_arrays:
        try:
            store.static_array(folder)
        except StoreError as error:
            yield Problem(folder, None, None, str(error))
    for name in teachers:
        try:
            teacher = store.teacher(name)
        except StoreError as error:
            yield Problem(error.array or f"teachers/{name}", None, None, str(error))
        else:
            yield from _teacher_problems(teacher)


def _teacher_problems(teacher: Teacher) -> Iterator[Problem]:
    prefix = f"teachers/{teacher.name}"
    for name in teacher.constant_names:
        try:
            teacher.constant(name)
        except StoreError as error:
            yield Problem(f"{prefix}/{name}", None, None, str(error))
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
            if (view, block) in missing:
                if teacher.complete:
                    yield Problem(f"{prefix}/committed", view, block, f"commit of the cell is missing; {REMEDY}")
                continue
            for name in teacher.arrays:
                try:
                    teacher.block(view, block, [name])
                except StoreError as error:
                    yield Problem(f"{prefix}/{name}", view, block, str(error))
