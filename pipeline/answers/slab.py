"""The rows of one view as records that are ready to decode: whole, or a few blocks at a time.

Shapes: N examples, B batch, R rows of a block.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.slab_file import map_slab
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.files.versions import library_versions
from logitbank.stores import RowArray, StoreError
from logitbank.stores.read.blocks import available_memory
from logitbank.stores.read.records import fill_records, record_dtype

Records = npt.NDArray[np.void]
Rows = npt.NDArray[np.int64]


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
        decoder: Whose rows, and what decodes them.
        digest: Of the store that its labels and folds are from.
    """

    def __init__(self, decoder: TeacherRows, *, digest: str) -> None:
        self.decoder, self.teacher, self._digest = decoder, decoder.teacher, digest
        rows = self.teacher.row_arrays.items()
        nothing = {name: np.empty((0, *row.row_shape), row.dtype) for name, row in rows if name in decoder.names}
        prepared = decoder.prepare(nothing, slice(0, 0))
        self.dtype = record_dtype(
            {
                name: RowArray(dtype=str(array.dtype), row_shape=tuple(array.shape[1:]))
                for name, array in prepared.items()
            }
        )
        self.num_bytes = self.teacher.num_examples * self.dtype.itemsize

    def block(self, view: int, block: int) -> Records:
        """The records [R] of one block of one view, checked against its checksums."""
        rows = self.teacher.rows(block)
        prepared = self.decoder.prepare(self.teacher.answers(view, block, self.decoder.names), rows)
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
            raw = np.empty(self.num_bytes, np.uint8)
            start = 0
            for piece in pieces():
                raw[start : start + len(piece)] = piece
                start += len(piece)
        return raw.view(self.dtype)

    def _file_name(self, view: int) -> str:
        """The same for the same answers, prepared for the same tail rule by the same versions."""
        said = (self._digest, self.teacher.digest, view, self.decoder.tail, self.dtype.descr, library_versions())
        return hashlib.sha256(repr(said).encode()).hexdigest()[:32]


class Slabs(Protocol):
    """The records of every view, and a cache of them: what was asked before changes how long a call takes, no more."""

    def take(self, view: int, rows_B: Rows) -> Records:
        """The records [B] of the given rows of a view, in their order."""
        ...

    def prefetch(self, view: int) -> None:
        """Starts reading a view that will be asked for next."""
        ...

    def expect(self, view: int, groups: Sequence[Tensor]) -> None:
        """Says which rows of a view will be asked for, group after group."""
        ...

    def clear(self) -> None:
        """Gives back what is held."""
        ...


class WholeSlabs:
    """The two views used last, whole in memory."""

    def __init__(self, prepared: PreparedTeacher, shared: Path) -> None:
        self._prepared, self._shared = prepared, shared
        self._held: dict[int, Records | Future[Records]] = {}  # the one used last comes last
        self._lock = RLock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="slab")

    def take(self, view: int, rows_B: Rows) -> Records:
        with self._lock:
            records_N = self._held.pop(view, None)
            if isinstance(records_N, Future):
                records_N = records_N.result()
            if records_N is None:
                self._make_room()
                records_N = self._prepared.whole(view, self._shared)
            self._held[view] = records_N
        opaque_N = records_N.view(f"V{records_N.dtype.itemsize}")  # numpy copies plain bytes fastest
        return np.take(opaque_N, rows_B).view(records_N.dtype)

    def prefetch(self, view: int) -> None:
        with self._lock:
            held = self._held.pop(view, None)
            if held is None:
                self._make_room()
                held = self._thread.submit(self._prepared.whole, view, self._shared)
            self._held[view] = held

    def _make_room(self) -> None:
        while len(self._held) >= 2:
            _cancel(self._held.pop(next(iter(self._held))))

    def expect(self, view: int, groups: Sequence[Tensor]) -> None:
        """Whole slabs serve any order."""

    def clear(self) -> None:
        with self._lock:
            for held in self._held.values():
                _cancel(held)
            self._held = {}


def _cancel(held: Records | Future[Records]) -> None:
    if isinstance(held, Future):
        held.cancel()


class BlockedSlabs:
    """Some blocks at a time; those of the next group are read while a group is used.

    Any rows are served in any order. In the order that ``expect`` was told each block is read once; else blocks
    are read again when their place was needed for others.

    Args:
        read: Reads the records of one block of one view.
        dtype: Of a record.
        holding: Rows of a block, and how many blocks may be mixed.
    """

    def __init__(self, read: Callable[[int, int], Records], dtype: np.dtype[Any], holding: Grouping) -> None:
        self._read, self._dtype, self._block_rows = read, dtype, holding.block_rows
        self._most = 2 * holding.num_blocks
        self._held: dict[tuple[int, int], Records] = {}
        self._coming: dict[tuple[int, int], Future[Records]] = {}
        self._view, self._groups = -1, list[set[int]]()  # those that have not begun
        self._lock = RLock()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="slab")

    def take(self, view: int, rows_B: Rows) -> Records:
        records = np.empty(len(rows_B), self._dtype)
        block_B = rows_B // self._block_rows
        blocks = np.unique(block_B).tolist()
        with self._lock:
            for block in blocks:
                own = np.flatnonzero(block_B == block)
                records[own] = np.take(self._block(view, block), rows_B[own] - block * self._block_rows)
            if view == self._view:
                self._begin(blocks)
        return records

    def _begin(self, blocks: list[int]) -> None:
        """Goes on to the group that the blocks belong to, if it was announced."""
        begun = [number for number, group in enumerate(self._groups) if not group.isdisjoint(blocks)]
        if begun:
            group = self._groups[begun[-1]]
            del self._groups[: begun[-1] + 1]
            self._held = {key: held for key, held in self._held.items() if key[0] == self._view and key[1] in group}
            self._fetch_next()

    def prefetch(self, view: int) -> None:
        """There is no room for another view's blocks."""

    def expect(self, view: int, groups: Sequence[Tensor]) -> None:
        with self._lock:
            self._view = view
            self._groups = [set(torch.unique(rows // self._block_rows).tolist()) for rows in groups]
            self._fetch_next()

    def clear(self) -> None:
        with self._lock:
            for coming in self._coming.values():
                coming.cancel()
            self._held, self._coming, self._groups = {}, {}, []

    def _fetch_next(self) -> None:
        for block in self._groups[0] if self._groups else ():
            key = self._view, block
            if key not in self._held and key not in self._coming:
                self._coming[key] = self._thread.submit(self._read, *key)

    def _block(self, view: int, block: int) -> Records:
        key = view, block
        if key in self._coming:
            self._held[key] = self._coming.pop(key).result()
        elif key not in self._held:
            while self._held and len(self._held) + len(self._coming) >= self._most:
                del self._held[next(iter(self._held))]  # the one that came first
            self._held[key] = self._read(view, block)
        return self._held[key]


def default_budget() -> int:
    """Half of the memory that can still be had, in bytes."""
    return available_memory() // 2
