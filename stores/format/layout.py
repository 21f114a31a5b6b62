"""How an array is cut into files and the files into compressed pieces."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

SHARD_BYTES = 8 * 2**20  # blocks above this are sharded
CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one array is cut into files: `block` per file, `chunk` per compressed piece of a file."""

    shape: tuple[int, ...]
    block: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: str
    compressed: bool

    @property
    def chunk_bytes(self) -> int:
        """Decoded bytes of a piece."""
        return math.prod(self.chunk) * int(np.dtype(self.dtype).itemsize)

    @property
    def num_chunks(self) -> int:
        """Pieces in a file."""
        return math.prod(self.block) // math.prod(self.chunk)

    @property
    def sharded(self) -> bool:
        """True when a file holds several pieces and their index."""
        return self.block != self.chunk

    @property
    def grid(self) -> tuple[int, ...]:
        """Number of files along each dimension."""
        return tuple(-(-size // step) for size, step in zip(self.shape, self.block, strict=True))

    def files(self) -> Iterator[tuple[int, ...]]:
        """Grid positions of all files, one by one (a hostile grid may be endless)."""
        strides = [math.prod(self.grid[axis + 1 :]) for axis in range(len(self.grid))]
        for flat in range(math.prod(self.grid)):
            yield tuple(flat // stride % count for stride, count in zip(strides, self.grid, strict=True))


def file_name(position: tuple[int, ...]) -> str:
    """Path of a file below its array's folder."""
    return "/".join(("c", *map(str, position)))


def block_layout(num_views: int, num_examples: int, block_rows: int, row_shape: tuple[int, ...], dtype: str) -> Layout:
    """Layout of a row array: one file per (view, block), cut into pieces of some megabytes when large."""
    padded = -(-num_examples // block_rows) * block_rows
    row_bytes = math.prod(row_shape) * int(np.dtype(dtype).itemsize)
    rows = block_rows
    if block_rows * row_bytes > SHARD_BYTES:
        most = max(1, CHUNK_BYTES // row_bytes)
        rows = next(
            block_rows // d for d in range(1, block_rows + 1) if block_rows % d == 0 and block_rows // d <= most
        )
    return Layout(
        shape=(num_views, padded, *row_shape),
        block=(1, block_rows, *row_shape),
        chunk=(1, rows, *row_shape),
        dtype=dtype,
        compressed=True,
    )


def static_layout(shape: tuple[int, ...], dtype: str) -> Layout:
    """Layout of an array that is written once and read whole: pieces of a few megabytes of leading rows."""
    if not shape:
        return Layout(shape=(), block=(), chunk=(), dtype=dtype, compressed=True)
    row_bytes = math.prod(shape[1:]) * int(np.dtype(dtype).itemsize)
    rows = max(1, min(shape[0], CHUNK_BYTES // max(1, row_bytes)))
    chunk = (rows, *shape[1:])
    return Layout(shape=shape, block=chunk, chunk=chunk, dtype=dtype, compressed=True)


def cell_layout(num_views: int, num_blocks: int, row_shape: tuple[int, ...]) -> Layout:
    """Layout of `committed` and `checksum`: one tiny file per cell, so that a commit is one atomic rename."""
    chunk = (1, 1, *row_shape)
    return Layout(shape=(num_views, num_blocks, *row_shape), block=chunk, chunk=chunk, dtype="uint32", compressed=False)
