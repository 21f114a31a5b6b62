"""An export as one .npz file: whole arrays [V, N, ...], stored without compression, so that they can be mapped.

Shapes: V views, N examples.
"""

import io
import struct
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.exchange.document import MAX_BYTES, Description, read_document
from logitbank.pipeline.exchange.values import Arrays, Values

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member; lengths of its name and of its extra field
_MAX_HEADER = 4096
_EXAMPLE_DTYPES = {"key": "uint64", "label": "int32", "fold": "uint16"}


def write_npz(values: Values, document: str, path: Path) -> None:
    """Writes an export, member after member and block by block; the same bytes for the same store.

    Args:
        values: What is exported.
        document: Its document.
        path: The file.
    """
    store = values.store
    examples = {"key": store.keys, "label": store.labels} | ({} if values.folds is None else {"fold": values.folds})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
        text = np.array(document)
        _write_member(file, "store", text.dtype, (), [text])
        for name, array in examples.items():
            dtype = np.dtype(_EXAMPLE_DTYPES[name])
            _write_member(file, name, dtype, array.shape, [array.astype(dtype)])
        for name, column in values.arrays.items():
            chunks = (chunk[name] for view in range(values.num_views) for _, chunk in values.chunks(view))
            shape = (values.num_views, *store.labels.shape, *column.row_shape)
            _write_member(file, name, np.dtype(column.dtype), shape, chunks)


def _write_member(
    file: zipfile.ZipFile,
    name: str,
    dtype: np.dtype[np.generic],
    shape: tuple[int, ...],
    chunks: Iterable[npt.NDArray[np.generic]],
) -> None:
    """One array of the file, of chunks along its first axes."""
    info = zipfile.ZipInfo(f"{name}.npy")  # of a fixed date
    info.external_attr = 0o644 << 16
    with file.open(info, "w", force_zip64=True) as member:
        member.write(npy_header(dtype, shape))
        for chunk in chunks:
            member.write(np.ascontiguousarray(chunk, dtype=dtype.newbyteorder("<")).tobytes())


def npy_header(dtype: np.dtype[np.generic], shape: tuple[int, ...]) -> bytes:
    """What stands before the numbers of a .npy file."""
    header = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(dtype.newbyteorder("<"))
    np.lib.format.write_array_header_1_0(header, {"descr": descr, "fortran_order": False, "shape": shape})
    return header.getvalue()


class NpzExport:
    """Reads an export through a memory map, once every member's checksum was compared.

    Args:
        path: The file.

    Raises:
        ValueError: Not an export, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        arrays = mapped_arrays(path)
        if "store" not in arrays:
            raise ValueError(f"{path}: not an export that `cli export` wrote; for plain logits use array:FILE.npy")
        self.description = read_document(_text(arrays.pop("store"), path), str(path))
        expected = _shapes(self.description, "fold" in arrays)
        for name, (dtype, shape) in expected.items():
            array = arrays.get(name)
            if array is None or array.dtype != np.dtype(dtype) or array.shape != shape:
                found = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
                raise ValueError(
                    f"{path}: expected {name} {dtype} {list(shape)}, found {found}; export the store again"
                )
        self._arrays = {name: arrays[name] for name in self.description.arrays}
        self.keys = np.array(arrays["key"])
        self.labels = np.array(arrays["label"])
        self.folds = np.array(arrays["fold"]) if "fold" in arrays else None
        self.served = np.ones(self.labels.shape, np.bool_)
        if "mask" in self._arrays:
            for view in self._arrays["mask"]:
                self.served &= view

    def rows(self, view: int, rows: npt.NDArray[np.int64]) -> Arrays:
        """The natural values of some rows of a view."""
        return {name: array[view][rows] for name, array in self._arrays.items()}


def _shapes(description: Description, folds: bool) -> dict[str, tuple[str, tuple[int, ...]]]:
    names = ["key", "label", *(["fold"] if folds else [])]
    examples = {name: (_EXAMPLE_DTYPES[name], (description.num_examples,)) for name in names}
    answers = (description.num_examples, *(() if description.positions is None else (description.positions,)))
    examples["label"] = _EXAMPLE_DTYPES["label"], answers
    whole = (description.num_views, *answers)
    return examples | {name: (row.dtype, (*whole, *row.row_shape)) for name, row in description.arrays.items()}


def mapped_arrays(path: Path) -> dict[str, npt.NDArray[np.generic]]:
    """The arrays of an .npz file by name, as memory maps, once every member's checksum was compared.

    Raises:
        ValueError: Compressed, damaged, or no plain arrays; nothing of a declared size is allocated, or unpickled.
    """
    try:
        with zipfile.ZipFile(path) as file:
            members = _plain_members(file, path)
            damaged = file.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path}: not a readable .npz file ({error}); fetch it again") from error
    if damaged is not None:
        raise ValueError(f"{path}: {damaged[:40]} does not match its checksum; fetch the file again")
    return {name: _map(path, name, info) for name, info in members.items()}


def _plain_members(file: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a file, by name; ValueError for one that is compressed, so nothing unfolds to more than it is."""
    members = {}
    for info in file.infolist():
        name = info.filename.removesuffix(".npy")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise ValueError(f"{path}: {name[:40]} is compressed; expected plain arrays, as np.savez writes them")
        members[name] = info
    return members


def _map(path: Path, name: str, info: zipfile.ZipInfo) -> npt.NDArray[np.generic]:
    """A member as a memory map; nothing of its declared size is allocated."""
    try:
        with path.open("rb") as file:
            file.seek(info.header_offset)
            name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            file.seek(start)
            dtype, shape, header_bytes = read_npy_header(file.read(min(_MAX_HEADER, info.file_size)))
            size = dtype.itemsize * int(np.prod(shape, dtype=object))
            if header_bytes + size != info.file_size:
                raise ValueError(f"declares {size} bytes, and has {info.file_size - header_bytes}")
            if not size:
                return np.empty(shape, dtype)
            return np.memmap(path, dtype, "r", start + header_bytes, shape)
    except (ValueError, OSError, struct.error, OverflowError) as error:
        raise ValueError(f"{path}: {name[:40]} is not a plain array ({error}); write the file again") from error


def read_npy_header(start: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], int]:
    """What the start of a .npy file says: dtype, shape, and where the numbers begin.

    Raises:
        ValueError: Not version 1.0 of the format, Fortran's order, or pickled objects, which are never read.
    """
    file = io.BytesIO(start)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"its .npy format is {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_HEADER)
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, and nothing is unpickled here")
    if fortran_order and len(shape) > 1:
        raise ValueError("it is in Fortran's order")
    return dtype, shape, file.tell()


def _text(array: npt.NDArray[np.generic], path: Path) -> str:
    if array.shape != () or array.dtype.kind != "U" or array.nbytes > 4 * MAX_BYTES:
        raise ValueError(f"{path}: store is {str(array.dtype)[:20]} {list(array.shape)}; expected the document as text")
    return str(array[()])
