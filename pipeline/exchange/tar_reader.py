"""Reads exports from tar files, without extracting anything.

Shapes: V views, N examples, K kept classes, C classes.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.exchange.document import MAX_BYTES, Description, read_document
from logitbank.pipeline.exchange.npz import read_npy_header
from logitbank.pipeline.exchange.tar import BLOCK, DOCUMENT, padded
from logitbank.pipeline.exchange.values import Arrays
from logitbank.stores import RowArray

_MAX_START = 4096  # bytes of a member beside its numbers
_NAME = re.compile(r"([0-9a-f]{16})(?:-[0-9]{1,9})?\.(json|[a-z_]{1,20}\.npy)")


class TarExport:
    """Reads an export from a tar file or a folder of them; nothing is extracted.

    Args:
        path: The file or the folder.

    Raises:
        ValueError: Not an export, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shards = sorted(path.glob("*.tar")) if path.is_dir() else [path]
        if not self._shards:
            raise ValueError(f"{path}: a folder without .tar files; expected an export")
        self.description = _document(self._shards)
        size = self.description.num_examples
        if size * 4 * BLOCK > sum(shard.stat().st_size for shard in self._shards):
            raise ValueError(f"{path}: too small for the {size} examples of its document; fetch it again")
        self._vectors = {name: array for name, array in self.description.arrays.items() if array.row_shape}
        self._scalars = [name for name, array in self.description.arrays.items() if not array.row_shape]
        self._places = {name: np.zeros((size, 2), np.int64) for name in ("json", *self._vectors)}
        self._shard_of = np.zeros(size, np.int32)
        self._open: tuple[int, BinaryIO | None] = (-1, None)
        self.keys, self.labels = np.zeros(size, np.uint64), np.zeros(size, np.int32)
        self.served, folds = np.ones(size, np.bool_), np.full(size, -1, np.int32)
        row = -1
        for row, (shard, name, members) in enumerate(self._samples()):
            if row == size:
                raise ValueError(f"{path}: more samples than the {size} examples of its document; fetch it again")
            self._shard_of[row] = shard
            for member, place in members.items():
                self._places[member][row] = place
            said = self._json(row)
            if said["key"] != name[:16]:
                raise ValueError(f"{path}: sample {name} says that it is {said['key']}; fetch the file again")
            self.keys[row], self.labels[row] = int(said["key"], 16), said["label"]
            folds[row] = said.get("fold", -1)
            self.served[row] = all(said.get("mask", [True]))
        if row + 1 != size or ((folds < 0).any() and (folds >= 0).any()):
            raise ValueError(f"{path}: {row + 1} samples for {size} examples; a shard is missing: fetch it again")
        self.folds = folds.astype(np.uint16) if (folds >= 0).all() else None

    def rows(self, view: int, rows: npt.NDArray[np.int64]) -> Arrays:
        """The natural values of some rows of a view."""
        out: Arrays = {
            name: np.empty((len(rows), *row.row_shape), row.dtype) for name, row in self.description.arrays.items()
        }
        for place, row in enumerate(rows.tolist()):
            said = self._json(row)
            for name in self._scalars:
                out[name][place] = _number(said[name][view], name, said["label"])
            for name, array in self._vectors.items():
                out[name][place] = self._vector(row, name, array, view)
        return out

    def _samples(self) -> Iterator[tuple[int, str, dict[str, tuple[int, int]]]]:
        """Shard, name, and start and size of the members of every sample."""
        views, wanted = self.description.num_views, {"json", *self._vectors}
        most = {name: _MAX_START + views * array.row_bytes for name, array in self._vectors.items()}
        most["json"] = _MAX_START + 64 * views * len(self._scalars)
        for number, shard in enumerate(self._shards):
            sample, members = "", dict[str, tuple[int, int]]()
            for name, start, size in _members(shard):
                if name == DOCUMENT:
                    continue
                match = _NAME.fullmatch(name)
                kind = "" if match is None else match[2].removesuffix(".npy")
                if kind not in wanted or size > most[kind]:
                    raise ValueError(f"{shard}: holds {name[:60]!r} of {size} bytes, which is no part of an export")
                if not members:
                    sample = name.partition(".")[0]
                if name.partition(".")[0] != sample or kind in members:
                    raise ValueError(f"{shard}: sample {sample} lacks members; fetch the file again")
                members[kind] = (start, size)
                if len(members) == len(wanted):
                    yield number, sample, members
                    members = {}
            if members:
                raise ValueError(f"{shard}: sample {sample} lacks members; fetch the file again")

    def _json(self, row: int) -> dict[str, Any]:
        """A sample's numbers, checked."""
        try:
            said = json.loads(self._read(row, "json"))
            good = isinstance(said, dict) and re.fullmatch("[0-9a-f]{16}", said["key"]) is not None
            good = good and type(said["label"]) is int and -1 <= said["label"] < self.description.num_classes
            good = good and type(said.get("fold", 0)) is int and 0 <= said.get("fold", 0) < 2**16
            for name in self._scalars:
                good = good and isinstance(said[name], list) and len(said[name]) == self.description.num_views
                good = good and all(value is None or type(value) in (int, float, bool) for value in said[name])
        except (ValueError, KeyError, TypeError, RecursionError):
            good = False
        if not good:
            raise ValueError(f"{self.path}: the json of sample {row} is damaged; fetch the file again")
        return dict(said)

    def _vector(self, row: int, name: str, array: RowArray, view: int) -> npt.NDArray[np.generic]:
        data = self._read(row, name)
        wanted = (np.dtype(array.dtype), (self.description.num_views, *array.row_shape))
        try:
            dtype, shape, start = _read_header(data[: 10 + int.from_bytes(data[8:10], "little")])
            if (dtype, shape) != wanted or len(data) - start != wanted[0].itemsize * int(np.prod(shape)):
                raise ValueError(f"{dtype} {list(shape)}, expected {wanted[0]} {list(wanted[1])}")
            return np.asarray(np.frombuffer(data, dtype, offset=start).reshape(shape)[view])
        except ValueError as error:
            raise ValueError(f"{self.path}: {name} of sample {row} is damaged ({error}); fetch it again") from error

    def _read(self, row: int, name: str) -> bytes:
        number, (start, size) = int(self._shard_of[row]), self._places[name][row].tolist()
        opened, file = self._open
        if opened != number or file is None:
            if file is not None:
                file.close()
            file = self._shards[number].open("rb")
            self._open = (number, file)
        file.seek(start)
        return file.read(size)

    def __del__(self) -> None:
        file = getattr(self, "_open", (-1, None))[1]
        if file is not None:
            file.close()


def _document(shards: list[Path]) -> Description:
    """What the shards say of themselves, all the same."""
    texts = set()
    for shard in shards:
        name, start, size = next(_members(shard), ("", 0, 0))
        if name != DOCUMENT or size > MAX_BYTES:
            raise ValueError(f"{shard}: not an export that `cli export` wrote; expected {DOCUMENT} as its first member")
        with shard.open("rb") as file:
            file.seek(start)
            texts.add(file.read(size))
        if len(texts) > 1:
            raise ValueError(
                f"{shard}: of another export than {shards[0].name}; keep the shards of one export together"
            )
    return read_document(texts.pop().decode(errors="replace"), str(shards[0]))


def _members(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, start and size of every member of a plain tar; a header is 512 bytes, so nothing large is read.

    Raises:
        ValueError: Links, folders, extended headers, or a file that is cut off.
    """
    length = path.stat().st_size
    with path.open("rb") as file:
        while (header := file.read(BLOCK)) != bytes(BLOCK):
            try:
                info = tarfile.TarInfo.frombuf(header, "utf-8", "strict")
            except (tarfile.TarError, ValueError) as error:
                raise ValueError(f"{path}: cut off, or no tar file ({error}); fetch it again") from error
            if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                raise ValueError(
                    f"{path}: {info.name[:60]!r} is no plain file; expected a tar as `cli export` writes it"
                )
            start = file.tell()
            if info.size < 0 or start + info.size > length:
                raise ValueError(f"{path}: cut off in {info.name[:60]!r}; fetch it again")
            yield info.name, start, info.size
            file.seek(start + padded(info.size, BLOCK))


@lru_cache(maxsize=64)
def _read_header(start: bytes) -> tuple[np.dtype[np.generic], tuple[int, ...], int]:
    return read_npy_header(start)


def _number(value: Any, name: str, label: int) -> Any:
    """What null stands for in a sample's json."""
    if value is not None:
        return value
    return np.nan if name == "label_log_prob" and label < 0 else -np.inf
