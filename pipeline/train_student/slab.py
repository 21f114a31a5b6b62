"""The rows of one view as records that are ready to decode: whole, or a few blocks at a time.

Shapes: N examples, B batch, R rows of a block.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.encoding import Encoding, prepare
from pipeline.tail_predictor import TailPredictor
from pipeline.train_student.slab_file import map_slab
from pipeline.versions import library_versions
from stores import RowArray, StoreError, Teacher
from stores.blocks import available_memory
from stores.records import fill_records, record_dtype

Records = npt.NDArray[np.void]
Rows = npt.NDArray[np.int64]


class Slab(Protocol):
    """One view's records."""

    def take(self, rows_B: Rows) -> Records:
        """The records [B] of the given rows, in their order."""
        ...


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How the rows of a slab that does not fit into memory are shuffled: some blocks are drawn, and mixed.

    Attributes:
        block_rows: Rows of a block.
        num_blocks: Blocks that are mixed; as many again are being read meanwhile.
    """

    block_rows: int
    num_blocks: int

    def groups(self, rows: Tensor, generator: torch.Generator) -> list[Tensor]:
        """All of ``rows`` int64 [N], in random order group by group."""
        block_N = rows // self.block_rows
        blocks = torch.unique(block_N)
        blocks = blocks[torch.randperm(len(blocks), generator=generator)]
        groups = []
        for drawn in blocks.split(self.num_blocks):
            own = rows[torch.isin(block_N, drawn)]
            groups.append(own[torch.randperm(len(own), generator=generator)])
        return groups


class PreparedTeacher:
    """Reads a teacher's rows as records, with everything computed that does not depend on the batch.

    Args:
        teacher: Whose rows.
        labels_N: Labels, int64 [N].
        encoding: The teacher's encoding.
        predictor: Its tail predictor, on the CPU.
        folds_N: Folds, int64 [N], when the predictor has one matrix a fold.
        tail: Tail rule that the records are for.
        digest: Of the store that the labels and folds are from.
    """

    def __init__(
        self,
        teacher: Teacher,
        labels_N: Tensor,
        encoding: Encoding,
        *,
        predictor: TailPredictor | None,
        folds_N: Tensor | None,
        tail: str,
        digest: str,
    ) -> None:
        self.teacher, self.encoding, self.tail = teacher, encoding, tail
        self._labels_N, self._folds_N, self._predictor, self._digest = labels_N, folds_N, predictor, digest
        self._names = [name for name in teacher.arrays if name != "mask"]
        nothing = {name: np.empty((0, *row.row_shape), row.dtype) for name, row in teacher.row_arrays.items()}
        prepared = self._prepare({name: nothing[name] for name in self._names}, slice(0, 0))
        self.dtype = record_dtype(
            {
                name: RowArray(dtype=str(array.dtype), row_shape=tuple(array.shape[1:]))
                for name, array in prepared.items()
            }
        )
        self.num_rows = len(labels_N)
        self.num_bytes = self.num_rows * self.dtype.itemsize

    def block(self, view: int, block: int) -> Records:
        """The records [R] of one block of one view, checked against its checksums."""
        rows = self.teacher.rows(block)
        prepared = self._prepare(self.teacher.block(view, block, self._names), rows)
        records = np.zeros(rows.stop - rows.start, self.dtype)
        fill_records(records, prepared)
        return records

    def _prepare(self, arrays: dict[str, np.ndarray], rows: slice) -> dict[str, np.ndarray]:
        prepared = prepare(
            {name: torch.from_numpy(array) for name, array in arrays.items()},
            self._labels_N[rows],
            self.encoding,
            predictor=self._predictor,
            folds_B=None if self._folds_N is None else self._folds_N[rows],
            tail=self.tail,
        )
        return {name: np.ascontiguousarray(array.numpy()) for name, array in prepared.items()}

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

    def whole(self, view: int, shared: Path) -> "WholeSlab":
        """All rows of a view: mapped from a file in ``shared``, or in this process's own memory where that fails."""

        def pieces() -> Iterator[npt.NDArray[np.uint8]]:
            for block in range(self.teacher.num_blocks):
                yield self.block(view, block).view(np.uint8)

        try:
            raw = map_slab(shared, self._file_name(view), self.num_bytes, pieces)
        except OSError:
            raw = np.empty(self.num_bytes, np.uint8)
            start = 0
            for piece in pieces():
                raw[start : start + len(piece)] = piece
                start += len(piece)
        return WholeSlab(raw.view(self.dtype))

    def _file_name(self, view: int) -> str:
        """The same for the same answers, prepared for the same tail rule by the same versions."""
        said = (self._digest, self.teacher.digest, view, self.tail, self.dtype.descr, library_versions())
        return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


class WholeSlab:
    """All records of a view, in memory."""

    def __init__(self, records_N: Records) -> None:
        self._dtype = records_N.dtype
        self._opaque_N = records_N.view(f"V{records_N.dtype.itemsize}")  # numpy copies plain bytes fastest

    def take(self, rows_B: Rows) -> Records:
        return np.take(self._opaque_N, rows_B).view(self._dtype)


class BlockedSlab:
    """Some blocks of a view at a time; those of the next group are read while a group is used.

    Any rows are served in any order. In the order that ``expect`` was told each block is read once; else blocks
    are read again when their place was needed for others.

    Args:
        read: Reads one block's records.
        dtype: Of a record.
        grouping: How many blocks are mixed.
        thread: Reads ahead.
    """

    def __init__(
        self,
        read: Callable[[int], Records],
        dtype: np.dtype[Any],
        grouping: Grouping,
        thread: ThreadPoolExecutor,
    ) -> None:
        self._read, self._dtype, self._block_rows, self._thread = read, dtype, grouping.block_rows, thread
        self._most = 2 * grouping.num_blocks
        self._held: dict[int, Records] = {}
        self._coming: dict[int, Future[Records]] = {}
        self._groups: list[set[int]] = []  # those that have not begun

    def expect(self, groups: Sequence[Tensor]) -> None:
        """Which rows will be taken, group after group."""
        self._groups = [set(torch.unique(rows // self._block_rows).tolist()) for rows in groups]
        self._fetch_next()

    def take(self, rows_B: Rows) -> Records:
        records = np.empty(len(rows_B), self._dtype)
        block_B = rows_B // self._block_rows
        blocks = np.unique(block_B).tolist()
        for block in blocks:
            own = np.flatnonzero(block_B == block)
            records[own] = np.take(self._block(block), rows_B[own] - block * self._block_rows)
        begun = [number for number, group in enumerate(self._groups) if not group.isdisjoint(blocks)]
        if begun:
            group = self._groups[begun[-1]]
            del self._groups[: begun[-1] + 1]
            self._held = {block: held for block, held in self._held.items() if block in group}
            self._fetch_next()
        return records

    def _fetch_next(self) -> None:
        for block in self._groups[0] if self._groups else ():
            if block not in self._held and block not in self._coming:
                self._coming[block] = self._thread.submit(self._read, block)

    def _block(self, block: int) -> Records:
        if block in self._coming:
            self._held[block] = self._coming.pop(block).result()
        elif block not in self._held:
            while self._held and len(self._held) + len(self._coming) >= self._most:
                del self._held[next(iter(self._held))]  # the one that came first
            self._held[block] = self._read(block)
        return self._held[block]


def default_budget() -> int:
    """Half of the memory that can still be had, in bytes."""
    return available_memory() // 2
