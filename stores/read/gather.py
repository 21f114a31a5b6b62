"""Any rows of a view, in any order, while no more than one block is held beside them.

Shapes: R rows.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from logitbank.stores.read.teacher import Teacher

Rows = npt.NDArray[np.int64]

GROUP_BYTES = 2**26
"""Of rows that are best asked for together, so that rows out of order do not read a block for each of them."""


class RowReader:
    """Rows of a teacher, each block compared with its checksums as it is read; the block used last is kept.

    Args:
        teacher: Whose rows.
        names: The arrays wanted; all when left out.
    """

    def __init__(self, teacher: Teacher, names: Sequence[str] | None = None) -> None:
        self.teacher = teacher
        self.names = tuple(teacher.arrays if names is None else names)
        self._held: tuple[tuple[int, int], dict[str, np.ndarray]] | None = None

    @property
    def group_rows(self) -> int:
        """How many rows are best asked for together."""
        row_bytes = sum(self.teacher.row_arrays[name].row_bytes for name in self.names)
        return max(1, GROUP_BYTES // max(1, row_bytes))

    def take(self, view: int, rows_R: Rows) -> dict[str, np.ndarray]:
        """Arrays [R, *row_shape] by name, of rows in the order given; `Teacher.block` says what is refused."""
        arrays = {name: self.teacher.row_arrays[name] for name in self.names}
        taken = {name: np.empty((len(rows_R), *array.row_shape), array.dtype) for name, array in arrays.items()}
        block_R = rows_R // self.teacher.block_rows
        for block in np.unique(block_R).tolist():
            place = np.flatnonzero(block_R == block)
            start = self.teacher.rows(block).start
            for name, values in self._block(view, block).items():
                taken[name][place] = values[rows_R[place] - start]
        return taken

    def answers(self, view: int, rows_R: Rows) -> dict[str, np.ndarray]:
        """`take`, for those who use what rows mean: refused when a row cannot be an answer to its example."""
        taken = self.take(view, rows_R)
        self.teacher.check_rows(view, rows_R, taken)
        return taken

    def _block(self, view: int, block: int) -> dict[str, np.ndarray]:
        if self._held is None or self._held[0] != (view, block):
            self._held = None  # before the next one takes its memory
            self._held = (view, block), self.teacher.block(view, block, self.names)
        return self._held[1]
