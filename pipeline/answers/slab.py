"""The rows of one view as records that are ready to decode: whole, or a few blocks at a time.

Shapes: N examples, B batch, R rows of a block.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import RLock
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.records import Records

Rows = npt.NDArray[np.int64]


class Slabs(Protocol):
    """The records of every view, and a cache of them: what was asked before changes how long a call takes, no more."""

    def take(self, view: int, rows_B: Rows) -> Records:
        """The records [B] of the given rows of a view, in their order."""
        ...

    def read_ahead(self, view: int, groups: Sequence[Tensor]) -> None:
        """Starts reading a view that will be asked for next, its rows group after group."""
        ...

    def clear(self) -> None:
        """Gives back what is held."""
        ...


class WholeSlabs:
    """The two views used last, whole in memory.

    Args:
        read: Reads the records [N] of one view.
    """

    def __init__(self, read: Callable[[int], Records]) -> None:
        self._read = read
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
                records_N = self._read(view)
            self._held[view] = records_N
        opaque_N = records_N.view(f"V{records_N.dtype.itemsize}")  # numpy copies plain bytes fastest
        return np.take(opaque_N, rows_B).view(records_N.dtype)

    def read_ahead(self, view: int, groups: Sequence[Tensor]) -> None:
        """Reads the view; whole slabs serve any order."""
        with self._lock:
            held = self._held.pop(view, None)
            if held is None:
                self._make_room()
                held = self._thread.submit(self._read, view)
            self._held[view] = held

    def _make_room(self) -> None:
        while len(self._held) >= 2:
            _cancel(self._held.pop(next(iter(self._held))))

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

    Any rows are served in any order. In the order that ``read_ahead`` was told each block is read once; else blocks
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

    def read_ahead(self, view: int, groups: Sequence[Tensor]) -> None:
        if not groups:
            return  # there is no room for a whole view
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
