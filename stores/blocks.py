"""Values off the disk through zarr; files are looked at before what they declare is allocated."""

import math
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.buffer import default_buffer_prototype

from stores.documents import Document, array_document, check_array, codec_layout, raw_sha256
from stores.files import open_storage, regular_file
from stores.layout import Layout, file_name
from stores.schema import MAX_BLOCK_BYTES, ArraySpec, StoreError

REMEDY = "fetch it again, or remove the cell's commit and run the command that wrote it again"
CRC_BYTES = 4
BLOSC_HEADER_BYTES = 16
INDEX_ENTRY = struct.Struct("<QQ")
BLOSC_HEADER = struct.Struct("<4xIII")  # decoded bytes, block size, encoded bytes


def open_array(root: Path, folder: str, *, write: bool = False) -> "zarr.Array[Any]":
    """zarr's array at `folder`; its document must have been checked before.

    Always with a pipeline of zarr's own: others are known to bypass our storage and to write torn files.
    """
    if not str(zarr.config.get("codec_pipeline.path")).startswith("zarr."):
        zarr.config.set({"codec_pipeline.path": "zarr.core.codec_pipeline.BatchedCodecPipeline"})
    array = zarr.open_array(
        open_storage(root, write=write), path=folder, mode="r+" if write else "r", zarr_format=3
    )
    return array.with_config({"write_empty_chunks": True}) if write else array


def read_into(
    array: "zarr.Array[Any]", selection: tuple[slice | int, ...], out: np.ndarray, where: Path
) -> None:
    """Decode `selection` of `array` straight into the contiguous `out`."""
    try:
        buffer = default_buffer_prototype().nd_buffer(out)  # type: ignore[arg-type]
        array.get_basic_selection(selection, out=buffer)
    except Exception as error:  # whatever a codec makes of damaged bytes
        raise StoreError(f"{where} is damaged: {_one_line(error)}; fetch the store again") from error


def check_file(root: Path, folder: str, position: tuple[int, ...], layout: Layout) -> int:
    """Size of one file of an array; StoreError when it is missing or cannot decode to its layout."""
    path = root / folder / file_name(position)
    status = regular_file(root, path)
    if status is None:
        raise StoreError(f"{path} is missing; fetch the store again")
    problem = _file_problem(path, status.st_size, layout)
    if problem:
        raise StoreError(f"{path} is damaged: {problem}; fetch the store again")
    return status.st_size


def _file_problem(path: Path, size: int, layout: Layout) -> str:
    """What is wrong with a file's framing, or nothing."""
    if not layout.compressed:
        expected = layout.chunk_bytes + CRC_BYTES
        return "" if size == expected else f"must have {expected} bytes, found {size}"
    index_bytes = INDEX_ENTRY.size * layout.num_chunks + CRC_BYTES if layout.sharded else 0
    if size < index_bytes + BLOSC_HEADER_BYTES + CRC_BYTES:
        return f"truncated to {size} bytes"
    handle = os.open(path, os.O_RDONLY)
    try:
        pieces = [(0, size)]
        if layout.sharded:
            index = os.pread(handle, index_bytes - CRC_BYTES, size - index_bytes)
            pieces = list(INDEX_ENTRY.iter_unpack(index))
        for start, length in pieces:
            if start + length > size - index_bytes or length < BLOSC_HEADER_BYTES + CRC_BYTES:
                return "its index points outside the file"
            decoded, _, encoded = BLOSC_HEADER.unpack(os.pread(handle, BLOSC_HEADER_BYTES, start))
            if decoded != layout.chunk_bytes or encoded != length - CRC_BYTES:
                return f"a piece must decode to {layout.chunk_bytes} bytes from {length - CRC_BYTES}"
    finally:
        os.close(handle)
    return ""


def read_static(root: Path, folder: str, document: Document, spec: ArraySpec) -> np.ndarray:
    """Values of an array that was written once, checked against the sha256 in its document."""
    where = root / folder
    layout = check_static(document, spec, where)
    for position in layout.files():
        check_file(root, folder, position, layout)
    check_memory(math.prod(layout.shape) * np.dtype(layout.dtype).itemsize, str(where))
    values = np.empty(layout.shape, dtype=layout.dtype)
    read_into(open_array(root, folder), tuple(slice(None) for _ in layout.shape), values, where)
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
    if not _is_shape(shape) or not _is_shape(chunk) or len(chunk) != len(shape) or dtype not in spec.dtypes:
        raise StoreError(
            f"{where} must be an array of {' or '.join(spec.dtypes)}, found {str(dtype)[:50]} "
            f"{str(shape)[:100]}; do not use this store"
        )
    layout = Layout(
        shape=tuple(shape), block=tuple(chunk), chunk=tuple(chunk), dtype=str(dtype), compressed=True
    )
    if layout.chunk_bytes > MAX_BLOCK_BYTES:
        raise StoreError(
            f"{where}: a chunk must stay within {MAX_BLOCK_BYTES} bytes, found {layout.chunk_bytes}"
        )
    dims = document.get("dimension_names")
    expected = array_document(layout, spec, tuple(dims) if isinstance(dims, list) else ())
    check_array(document, expected, where)
    return codec_layout(document, layout, where)


def _is_shape(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) <= 8 and all(type(size) is int and size > 0 for size in value)
    )


def check_memory(num_bytes: int, what: str) -> None:
    """Raise StoreError when `num_bytes` are more than this machine has left."""
    available = available_memory()
    if num_bytes > available:
        raise StoreError(
            f"{what} needs {num_bytes / 2**30:.1f} GiB of memory, found {available / 2**30:.1f} GiB free; "
            "it block by block (shuffled_blocks, a memory budget) or use a larger machine"
        )


def available_memory() -> int:
    """Bytes of memory that can still be had; a very large number where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return 2**62


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__} {error}".split())[:300]
