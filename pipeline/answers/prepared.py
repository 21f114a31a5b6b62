"""A teacher's rows as records, with everything computed that does not depend on the batch.

Shapes: N examples, R rows of a block.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.records import Records, fill_records, record_dtype
from logitbank.pipeline.answers.slab_file import map_slab
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.files.versions import library_versions
from logitbank.stores import StoreError
from logitbank.stores.read.memory import check_memory, machine_memory


class PreparedTeacher:
    """Reads a teacher's rows as records, with everything computed that does not depend on the batch.

    Args:
        decoder: Whose rows, and what decodes them.
        digest: Of the store that its labels and folds are from.
    """

    def __init__(self, decoder: TeacherRows, *, digest: str) -> None:
        self.decoder, self.teacher, self._digest = decoder, decoder.teacher, digest
        rows = self.teacher.row_arrays.items()
        nothing = {name: np.empty((0, *row.row_shape), row.dtype) for name, row in rows if name in decoder.names}
        self.dtype = record_dtype(decoder.prepared(nothing, slice(0, 0)))
        self.num_bytes = self.teacher.num_examples * self.dtype.itemsize

    def block(self, view: int, block: int) -> Records:
        """The records [R] of one block of one view, checked against its checksums."""
        rows = self.teacher.rows(block)
        prepared = self.decoder.prepared(self.teacher.answers(view, block, self.decoder.names), rows)
        records = np.zeros(rows.stop - rows.start, self.dtype)
        fill_records(records, prepared)
        return records

    def grouping(self, memory_budget: int, num_slabs: int) -> Grouping | None:
        """How many blocks the budget holds; None when it holds as many whole slabs.

        Raises:
            StoreError: The budget does not even hold two blocks and what reading one takes.
        """
        block_rows = self.teacher.block_rows
        stored = sum(row.row_bytes for row in self.teacher.row_arrays.values())
        reading = 3 * stored * block_rows  # a block's arrays, and what is decoded on the way
        if num_slabs * self.num_bytes + reading <= memory_budget:
            return None
        per_block = self.dtype.itemsize * block_rows
        num_blocks = (memory_budget - reading) // (2 * per_block)
        if num_blocks < 1:
            raise StoreError(
                f"--memory-budget is {memory_budget / 1e9:.3g} GB, but two blocks of teacher {self.teacher.name!r} and"
                f" reading them take {(reading + 2 * per_block) / 1e9:.3g} GB; raise it"
            )
        return Grouping(block_rows=block_rows, num_blocks=num_blocks)

    def whole(self, view: int, shared: Path) -> Records:
        """All records [N] of a view: mapped from a file in ``shared``, or in this process's own where that fails."""

        def pieces() -> Iterator[npt.NDArray[np.uint8]]:
            for block in range(self.teacher.num_blocks):
                yield self.block(view, block).view(np.uint8)

        try:
            raw = map_slab(shared, self._file_name(view), self.num_bytes, pieces)
        except OSError:
            check_memory(self.num_bytes, f"a view of teacher {self.teacher.name!r}")
            raw = np.empty(self.num_bytes, np.uint8)
            start = 0
            for piece in pieces():
                raw[start : start + len(piece)] = piece
                start += len(piece)
        return raw.view(self.dtype)

    def _file_name(self, view: int) -> str:
        """The same for the same answers, prepared by the same versions."""
        said = (self._digest, self.teacher.digest, view, self.dtype.descr, library_versions())
        return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


def default_budget() -> int:
    """Half of the machine's memory, in bytes: what is free at the moment must not decide in which order rows come."""
    return machine_memory() // 2
