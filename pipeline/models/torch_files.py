"""Weights that ``torch.save`` wrote, from a stranger: nothing is unpickled, and nothing is made but tensors.

``torch.load(weights_only=True)`` refuses what it does not know (a checkpoint's options, numbers of numpy), and makes
whatever a file declares: buffers of any size, tensors that a few compressed bytes unfold into. So the program is read
as a description (``pickled``), every entry of the archive has to be stored as it is, and a tensor's numbers are
read from the file when somebody takes it.
"""

import io
import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.models.pickled import Made, Named, Outside, PickleError, read_pickle

TORCH_SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".tar", ".bin")
MAX_PROGRAM = 8 * 2**20  # bytes that say which tensors there are: enough for some 50,000
_LEGACY_PROGRAMS = 5  # magic number, protocol, system, the content, and the names of its storages
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_NUMBERS = {
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Double": torch.float64,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
}
_LARGEST = 2**62
_STORAGES = {f"{module} {name}Storage": dtype for module in ("torch", "torch.cuda") for name, dtype in _NUMBERS.items()}
_TENSORS = ("torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor")
_PARAMETERS = ("torch._utils _rebuild_parameter", "torch._utils _rebuild_parameter_with_state")


@dataclass(frozen=True)
class _Place:
    """Where the bytes of a storage are in the file."""

    start: int
    num_bytes: int
    crc: int | None = None


@dataclass
class TorchFile:
    """What a file of ``torch.save`` holds.

    Attributes:
        path: Where.
        content: Plain values and containers; ``Made`` in the place of tensors and of everything else.
        places: Storages by name.
    """

    path: Path
    content: object
    places: Mapping[str, _Place]
    _storages: dict[str, Tensor] = field(default_factory=dict)

    def tensor(self, made: object) -> Tensor | None:
        """The tensor that a part of the content describes, or None where it describes another thing.

        Raises:
            ValueError: The file does not hold its numbers, or they are damaged.
        """
        described = _described(made)
        if described is None:
            return None
        size, stride, key = described.size, described.stride, described.key
        last = described.offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if 0 not in size and last >= described.count:
            raise ValueError(f"{self.path}: a tensor {list(size)} is larger than its storage; fetch it again")
        num_bytes = described.count * described.dtype.itemsize
        if key not in self._storages:
            self._storages[key] = self._read(key)
        try:
            if 0 in size:
                return torch.empty(size, dtype=described.dtype)
            numbers = self._storages[key][:num_bytes].view(described.dtype)
            return numbers.as_strided(size, stride, described.offset)
        except RuntimeError as error:  # sizes that overflow, or one storage of two lengths
            raise ValueError(f"{self.path}: a tensor {list(size)} cannot be read; fetch it again") from error

    def _read(self, key: str) -> Tensor:
        """The bytes of a storage, uint8."""
        place = self.places.get(key, _Place(0, -1))
        if place.num_bytes < 0:
            raise ValueError(f"{self.path}: it lacks numbers of a tensor; fetch it again")
        buffer = np.empty(place.num_bytes, np.uint8)
        with self.path.open("rb") as file:
            file.seek(place.start)
            whole = file.readinto(buffer.data) == place.num_bytes
        if not whole or (place.crc is not None and zlib.crc32(buffer.data) != place.crc):
            raise ValueError(f"{self.path}: numbers of a tensor do not match their checksum; fetch it again")
        return torch.from_numpy(buffer)


def is_tensor(made: object) -> bool:
    """Whether a part of the content describes a tensor."""
    return _described(made) is not None


def load_torch_file(path: Path) -> TorchFile:
    """Reads what a ``.pt`` file describes.

    Raises:
        ValueError: Damaged, compressed, or no file of ``torch.save``.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"  # as torch tells them apart
        return _open_archive(path) if zipped else _open_legacy(path)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except PickleError as error:
        raise ValueError(f"{path}: not plain weights, {error}; save model.state_dict()") from None


@dataclass(frozen=True)
class _Described:
    """A tensor as a program describes it: numbers of a storage, in steps."""

    key: str
    dtype: torch.dtype
    count: int
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _described(made: object) -> _Described | None:
    """None for what is no tensor of a known kind."""
    if isinstance(made, Made) and made.name in _PARAMETERS and isinstance(made.arguments, tuple) and made.arguments:
        made = made.arguments[0]
    if not (isinstance(made, Made) and made.name in _TENSORS):
        return None
    match made.arguments:
        case (Outside(id=("storage", Named(name=kind), str(key), str(), count, *view)), offset, size, stride, *_):
            pass
        case _:
            return None
    if kind not in _STORAGES or view not in ([], [None]):  # a view of a storage, as torch 0.3 had it
        return None
    if not (isinstance(size, tuple) and isinstance(stride, tuple) and len(size) == len(stride)):
        return None
    if not all(type(number) is int and 0 <= number < _LARGEST for number in (count, offset, *size, *stride)):
        return None
    return _Described(key, _STORAGES[kind], count, offset, size, stride)  # type: ignore[arg-type]


def _open_archive(path: Path) -> TorchFile:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            _check_entries(list(entries.values()), path.stat().st_size)
            programs = [name for name in entries if name.endswith("data.pkl")]
            if len(programs) != 1:
                raise PickleError(f"its archive holds {len(programs) or 'no'} data.pkl")
            folder = programs[0].removesuffix("data.pkl")
            if f"{folder}byteorder" in entries and archive.read(f"{folder}byteorder") != b"little":
                raise PickleError("its numbers are of a machine of the other byte order")
            size = entries[programs[0]].file_size
            if size > MAX_PROGRAM:
                raise PickleError(f"its data.pkl has {size} bytes, more than {MAX_PROGRAM}")
            content = read_pickle(io.BytesIO(archive.read(programs[0])))
    except _DAMAGED as error:
        raise PickleError(_damaged(error)) from error

    stored = f"{folder}data/"
    keys = [name.removeprefix(stored) for name in entries if name.startswith(stored)]
    with path.open("rb") as file:
        return TorchFile(path, content, {key: _place(file, entries[f"{stored}{key}"]) for key in keys})


def _place(file: BinaryIO, entry: zipfile.ZipInfo) -> _Place:
    """Where the numbers of an entry that is stored as it is begin: after its own header, name and more."""
    file.seek(entry.header_offset)
    header = file.read(30)
    if len(header) < 30:
        raise PickleError("its archive is damaged")
    return _Place(entry.header_offset + 30 + sum(struct.unpack("<HH", header[26:])), entry.file_size, entry.CRC)


_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, RuntimeError, UnicodeError)


def _damaged(error: Exception) -> str:
    return f"its archive is damaged ({' '.join(str(error).split())[:100]})"


def _check_entries(entries: list[zipfile.ZipInfo], there: int) -> None:
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise PickleError(f"{len(packed)} entries of its archive are compressed, and torch.save packs none")
    declared = sum(entry.file_size for entry in entries)
    if declared > there:
        raise PickleError(f"its archive declares {declared} bytes, and the file has {there}")


def _open_legacy(path: Path) -> TorchFile:
    """Of ``torch.save`` before 1.6: programs, and after them each storage with its length before it."""
    with path.open("rb") as file:
        start = io.BytesIO(file.read(MAX_PROGRAM))
    referred: list[Outside] = []
    programs = [read_pickle(start, referred) for _ in range(_LEGACY_PROGRAMS)]
    content, keys = programs[3], programs[4]
    if programs[0] != _LEGACY_MAGIC or not isinstance(keys, list):
        raise PickleError("it is no file of torch.save, or a damaged one")
    widths = dict(_width(each) for each in referred)
    places: dict[str, _Place] = {}
    place, there = start.tell(), path.stat().st_size
    with path.open("rb") as file:
        for key in keys:
            file.seek(place)
            num_bytes = int.from_bytes(file.read(8), "little") * (widths.get(key, 0) if isinstance(key, str) else 0)
            if key not in widths or place + 8 + num_bytes > there:
                raise PickleError("its numbers are cut off or damaged")
            places[key] = _Place(place + 8, num_bytes)
            place += 8 + num_bytes
    return TorchFile(path, content, places)


def _width(referred: Outside) -> tuple[object, int]:
    """The name of a storage, and the bytes of each of its numbers."""
    match referred.id:
        case ("storage", Named(name=kind), str(key), *_) if kind in _STORAGES:
            return key, _STORAGES[kind].itemsize
    raise PickleError("it holds numbers of a kind that weights do not have")
