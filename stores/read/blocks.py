"""Bytes of a store to values in memory that is already there.

Writing goes through zarr. Reading decodes the few codecs of the format straight into the caller's array: a
third faster than zarr's own reading, without its second copy, and a file can never decode to more than it is
declared to hold. Tests compare the two.
"""

import math
import os
import struct
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import blosc  # type: ignore[import-untyped]

from logitbank.stores.files import open_storage, regular_file
from logitbank.stores.format.documents import Document, array_document, check_array, codec_layout, raw_sha256
from logitbank.stores.format.layout import Layout, file_name
from logitbank.stores.format.schema import MAX_BLOCK_BYTES, ArraySpec, StoreError
from logitbank.stores.read.memory import check_memory

REMEDY = "fetch it again, or remove the cell's commit and run the command that wrote it again"
CRC_BYTES = 4
INDEX_ENTRY = struct.Struct("<QQ")
BLOSC_HEADER = struct.Struct("<4xIII")  # decoded bytes, block size, encoded bytes
MAX_THREADS = 8
_FEW_BYTES = 2**23


def open_array(root: Path, folder: str) -> "zarr.Array[Any]":
    """zarr's array at `folder`, for writing; its document must have been checked before.

    Always with a pipeline of zarr's own: others are known to bypass our storage and to write torn files.
    """
    if not str(zarr.config.get("codec_pipeline.path")).startswith("zarr."):
        zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"})
    array = zarr.open_array(open_storage(root), path=folder, mode="r+", zarr_format=3)
    return array.with_config({"write_empty_chunks": True})


def read_file(
    root: Path, folder: str, position: tuple[int, ...], layout: Layout, out: np.ndarray, remedy: str = REMEDY
) -> None:
    """Decode one file of an array into `out`, its leading values; what lies beyond is padding.

    Raises:
        StoreError: the file is missing or damaged. `out` may then hold anything.
    """
    path = root / folder / file_name(position)
    status = regular_file(root, path)
    if status is None:
        raise StoreError(f"{path} is missing; {remedy}")
    try:
        handle = os.open(path, os.O_RDONLY)
        try:
            _decode(handle, status.st_size, layout, out.reshape(-1).view(np.uint8))
        finally:
            os.close(handle)
    except OSError as error:
        raise StoreError(f"cannot read {path}: {error.strerror}; check its permissions") from error
    except (ValueError, RuntimeError) as error:  # a codec's words on damaged bytes are a RuntimeError
        raise StoreError(f"{path} is damaged: {error}; {remedy}") from error


def _decode(handle: int, size: int, layout: Layout, out: np.ndarray) -> None:
    """Decode an open file of `size` bytes; ValueError says what is wrong with it."""
    step = layout.chunk_bytes
    for number, (start, length) in enumerate(_pieces(handle, size, layout)):
        data = _checked(os.pread(handle, length, start), length)
        if layout.compressed:
            decoded, _, encoded = BLOSC_HEADER.unpack_from(data) if len(data) >= BLOSC_HEADER.size else (0, 0, 0)
            if decoded != step or encoded != len(data):
                raise ValueError(f"a piece must decode to {step} bytes, it says {decoded}")
        elif len(data) != step:
            raise ValueError(f"must have {step} bytes, found {len(data)}")
        part = out[number * step : (number + 1) * step]
        if layout.compressed and len(part) == step:
            blosc.decompress(data, part)
        elif len(part):
            whole = blosc.decompress(data) if layout.compressed else data
            part[:] = np.frombuffer(whole, dtype=np.uint8)[: len(part)]


def _pieces(handle: int, size: int, layout: Layout) -> list[tuple[int, int]]:
    """Start and length of each piece of a file."""
    if not layout.sharded:
        return [(0, size)]
    index_bytes = INDEX_ENTRY.size * layout.num_chunks + CRC_BYTES
    if size < index_bytes:
        raise ValueError(f"truncated to {size} bytes")
    index = _checked(os.pread(handle, index_bytes, size - index_bytes), index_bytes)
    pieces = list(INDEX_ENTRY.iter_unpack(index))
    if any(start + length > size - index_bytes for start, length in pieces):
        raise ValueError("its index points outside the file")
    return pieces


def _checked(data: bytes, length: int) -> memoryview:
    """`data` without the crc32c at its end, which must match."""
    if len(data) != length or length <= CRC_BYTES:
        raise ValueError(f"truncated to {len(data)} bytes")
    body = np.frombuffer(data, dtype=np.uint8, count=length - CRC_BYTES)
    if google_crc32c.value(body) != int.from_bytes(data[-CRC_BYTES:], "little"):
        raise ValueError("its crc32c does not match")
    return memoryview(data)[:-CRC_BYTES]


def in_threads(jobs: Iterable[Callable[[], None]], num_bytes: int, job_bytes: int) -> None:
    """Run jobs of `job_bytes` memory each on a few threads that are gone afterwards, so forking stays safe.

    As many as there are cores, but together they take at most a fifth of the result's `num_bytes`. Of a few megabytes
    none is started: it would take as long as the work, and more memory.
    """
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        cores = os.cpu_count() or 1
    num_threads = max(1, min(cores, MAX_THREADS, num_bytes // (5 * max(1, job_bytes))))
    num_threads = 1 if num_bytes < _FEW_BYTES else num_threads
    if num_threads == 1:
        for job in jobs:
            job()
        return
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(lambda job: job(), jobs):
            pass


def read_static(root: Path, folder: str, document: Document, spec: ArraySpec) -> np.ndarray:
    """Values of an array that was written once, checked against the sha256 in its document."""
    where = root / folder
    layout = check_static(document, spec, where)
    for position in layout.files():
        if regular_file(root, where / file_name(position)) is None:
            raise StoreError(f"{where / file_name(position)} is missing; fetch the store again")
    check_memory(math.prod(layout.shape) * np.dtype(layout.dtype).itemsize, str(where))
    values = np.empty(layout.shape, dtype=np.dtype(layout.dtype).newbyteorder("<"))
    rows = layout.block[0] if layout.block else 0
    for position in layout.files():
        part = values[position[0] * rows : (position[0] + 1) * rows] if position else values
        read_file(root, folder, position, layout, part, "fetch the store again")
    if raw_sha256(values) != document["attributes"].get("sha256"):
        raise StoreError(f"{where}: values do not match their sha256; fetch the store again")
    return values


def check_static(document: Document, spec: ArraySpec, where: Path) -> Layout:
    """Layout of an array that was written once, as its document declares it and this program can trust it."""
    dtype = document.get("data_type")
    try:
        shape, chunk = document["shape"], document["chunk_grid"]["configuration"]["chunk_shape"]
    except (KeyError, TypeError):
        shape, chunk = None, None
    sound = _is_shape(shape) and _is_shape(chunk) and chunk[1:] == shape[1:] and len(chunk) == len(shape)
    if not sound or dtype not in spec.dtypes:
        raise StoreError(
            f"{where} must be an array of {' or '.join(spec.dtypes)} in chunks of whole rows, found "
            f"{str(dtype)[:50]} {str(shape)[:100]}; do not use this store"
        )
    layout = Layout(shape=tuple(shape), block=tuple(chunk), chunk=tuple(chunk), dtype=str(dtype), compressed=True)
    if layout.chunk_bytes > MAX_BLOCK_BYTES:
        raise StoreError(
            f"{where}: a chunk must stay within {MAX_BLOCK_BYTES} bytes, found {layout.chunk_bytes}; "
            "do not use this store"
        )
    dims = document.get("dimension_names")
    expected = array_document(layout, spec, tuple(dims) if isinstance(dims, list) else ())
    check_array(document, expected, where)
    return codec_layout(document, layout, where)


def _is_shape(value: object) -> bool:
    return isinstance(value, list) and len(value) <= 8 and all(type(size) is int and size > 0 for size in value)
