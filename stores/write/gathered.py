"""A teacher of one store out of the rows of others: whole cells are linked, other rows are gathered group by group.

Shapes: N examples of the result, M of a source, G rows of some cells.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitbank.stores.format.schema import Cell, RowArray
from logitbank.stores.read.gather import RowReader
from logitbank.stores.read.reader import Store
from logitbank.stores.read.teacher import Teacher
from logitbank.stores.write.link import cell_files, same_layout
from logitbank.stores.write.writer import TeacherWriter

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SourceRows:
    """Rows of a source for a teacher of the result: `rows` int64 [N], -1 where the source has none."""

    store: Store
    teacher: Teacher
    rows: Rows

    @cached_property
    def served(self) -> npt.NDArray[np.bool_]:
        """Those that the teacher answers in some view, at some position, bool [N]."""
        served_N = self.rows >= 0
        if "mask" in self.teacher.arrays:
            masks = [self.teacher.slab(view, ["mask"])["mask"] for view in range(self.teacher.num_views)]
            served = np.any(masks, axis=0)
            served_N &= served.reshape(len(served), -1).any(axis=1)[self.rows]
        return served_N


class Gathered:
    """What several sources say of one teacher; each row is the first source's that serves it, else that has it.

    Args:
        parts: The sources.
    """

    def __init__(self, parts: Sequence[SourceRows]) -> None:
        self._parts = parts
        self._choice_N = np.full(len(parts[0].rows), -1, np.int64)
        numbered = list(enumerate(parts))[::-1]
        for number, part in numbered:
            self._choice_N[part.rows >= 0] = number
        for number, part in numbered:
            self._choice_N[part.served] = number

    @property
    def arrays(self) -> dict[str, RowArray]:
        """Arrays of a row: with `mask` where some rows are not served, or a source has one.

        Without `tail_shift` where a source is of version 1 and has none: readers compute it.
        """
        sources = [part.teacher.row_arrays for part in self._parts]
        masked = (self._choice_N < 0).any() or any("mask" in arrays for arrays in sources)
        shifted = all("tail_shift" in arrays for arrays in sources)
        arrays = {name: array for name, array in sources[0].items() if shifted or name != "tail_shift"}
        mask = RowArray(dtype="bool").at(self._parts[0].teacher.positions)
        return arrays | ({"mask": mask} if masked else {})

    @property
    def block_rows(self) -> int | None:
        """Rows of a block with which all files are the first source's; None where there is no such number."""
        first = self._parts[0]
        whole = len(self._choice_N) == first.teacher.num_examples and not self._choice_N.any()
        return first.teacher.block_rows if whole and np.array_equal(first.rows, np.arange(len(first.rows))) else None

    def write(self, writer: TeacherWriter, out: Path) -> None:
        """Writes the cells that are not there yet.

        Args:
            writer: Of a teacher with these `arrays`.
            out: Its store.
        """
        same = [
            same_layout(part.store.path.resolve(), part.teacher, out.resolve(), writer.name, writer.arrays)
            for part in self._parts
        ]
        readers = [RowReader(part.teacher, _shared(part.teacher, writer)) for part in self._parts]
        for view, cells in groupby(writer.pending(), key=lambda cell: cell.view):
            others = [cell for cell in cells if not self._link(writer, cell, same)]
            for some in _groups(others, writer.block_rows, min(reader.group_rows for reader in readers)):
                self._gather(writer, view, some, readers)

    def _link(self, writer: TeacherWriter, cell: Cell, same: Sequence[Mapping[str, Path]]) -> bool:
        """Whether all rows of a cell are one of a source's cells, which are then given to the writer."""
        rows = writer.rows(cell.block)
        number = int(self._choice_N[rows.start])
        if number < 0 or (self._choice_N[rows] != number).any():
            return False
        part = self._parts[number]
        block = int(part.rows[rows.start]) // writer.block_rows
        if part.teacher.block_rows != writer.block_rows:
            return False
        there = part.teacher.rows(block)
        if not np.array_equal(part.rows[rows], np.arange(there.start, there.stop)):
            return False
        arrays = part.teacher.block(cell.view, block, _shared(part.teacher, writer))
        if "mask" in writer.arrays:
            shape = there.stop - there.start, *writer.arrays["mask"].row_shape
            arrays.setdefault("mask", np.ones(shape, np.bool_))
        files = cell_files(same[number], part.teacher, Cell(cell.view, block))
        writer.write(cell, arrays, same_files=files)
        return True

    def _gather(self, writer: TeacherWriter, view: int, cells: Sequence[Cell], readers: Sequence[RowReader]) -> None:
        """Writes cells whose rows lie anywhere; a row that nobody has is a copy of another, behind the mask."""
        slices = [writer.rows(cell.block) for cell in cells]
        rows_G = np.concatenate([np.arange(rows.start, rows.stop) for rows in slices])
        choice_G = self._choice_N[rows_G]
        values = {name: np.empty((len(rows_G), *a.row_shape), a.dtype) for name, a in writer.arrays.items()}
        for number in np.unique(choice_G).tolist():
            own_G = np.flatnonzero(choice_G == number)
            source = self._parts[number].rows  # of those that nobody has (-1), the last source's last
            rows = source[rows_G[own_G]] if number >= 0 else np.array([source.max()])
            taken = readers[number].take(view, rows)
            if number < 0 or "mask" not in taken:
                shape = writer.arrays["mask"].row_shape if "mask" in writer.arrays else ()
                taken["mask"] = np.full((len(rows), *shape), number >= 0)
            for name in values:
                values[name][own_G] = taken[name]
        start = 0
        for cell, rows in zip(cells, slices, strict=True):
            stop = start + rows.stop - rows.start
            writer.write(cell, {name: array[start:stop] for name, array in values.items()})
            start = stop


def _shared(teacher: Teacher, writer: TeacherWriter) -> list[str]:
    """Arrays of a source that the result has too."""
    return [name for name in teacher.arrays if name in writer.arrays]


def _groups(cells: Sequence[Cell], block_rows: int, group_rows: int) -> Iterator[Sequence[Cell]]:
    """Cells that are gathered together."""
    step = max(1, group_rows // block_rows)
    for start in range(0, len(cells), step):
        yield cells[start : start + step]
