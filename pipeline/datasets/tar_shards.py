"""Tar shards of pictures (the layout of WebDataset), read in any order through an index of where each member lies.

Shapes: N samples.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.file_cache import shared_cache
from logitbank.pipeline.datasets.file_notes import Notes
from logitbank.pipeline.datasets.pictures import SUFFIXES
from logitbank.pipeline.datasets.remote_files import Ahead, RemoteFile
from logitbank.pipeline.datasets.spec import shown, tell

MOST_LABEL = 4096  # bytes
_MOST_HEADER = 2**20  # bytes that a header may ask for: names and the like
_ABOUT = "tar shards 2"
_SHOWN = 5
_PLACE = np.dtype([("file", "<u4"), ("start", "<u8"), ("size", "<u8")])


@dataclass(frozen=True)
class Shards:
    """Pictures in tar shards; ``Blobs``.

    Attributes:
        paths: The shards.
        places: Shard, start and size of each picture [N].
        labels: Texts [N], empty where a sample has none.
    """

    paths: Sequence[Path | RemoteFile]
    places: npt.NDArray[np.void]
    labels: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, number: int) -> bytes:
        place = self.places[number]
        path, start, size = self.paths[int(place["file"])], int(place["start"]), int(place["size"])
        self._ahead.reading(number, int(place["file"]))
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
        if len(data) != size:
            raise ValueError(f"{path}: is shorter than it was; fetch it again")
        return data

    @cached_property
    def _ahead(self) -> Ahead:
        return Ahead(self.paths)

    @property
    def near(self) -> tuple[int, int] | None:
        """Rows of a shard, on average, and how many shards can be mixed while others are fetched; None: all are here.

        A quarter of what may lie here is mixed, and as much fetched meanwhile.
        """
        sizes = [path.size for path in self.paths if isinstance(path, RemoteFile)]
        if not sizes or sum(sizes) <= shared_cache().limit // 2:
            return None
        return max(1, len(self) // len(self.paths)), max(1, shared_cache().limit // 4 // max(sizes))

    def announce(self, groups: Sequence[npt.NDArray[np.integer]]) -> None:
        """Which pictures will be read, group after group."""
        self._ahead.announce([frozenset(np.unique(self.places["file"][group]).tolist()) for group in groups])

    def name(self, number: int) -> str:
        place = self.places[number]
        return f"{self.paths[int(place['file'])]}: the picture at byte {int(place['start'])}"

    def notes(self, about: str) -> Notes | None:
        return Notes(self.paths, f"{_ABOUT}, {about}")


def open_shards(paths: Sequence[Path | RemoteFile], label: str, spec: str) -> Shards:
    """Shards with their index, which is kept in the cache folder as long as no shard changes.

    Args:
        paths: The shards.
        label: Ending of the members that hold a label.
        spec: For messages.

    Raises:
        ValueError: A shard that is no tar file, is compressed or cut off, or samples without a picture.
    """
    notes = Notes(paths, f"{_ABOUT}, index, {label}")
    recalled = notes.recall()
    if recalled is not None and recalled[0].all():
        with np.load(io.BytesIO(recalled[1]), allow_pickle=False) as index:
            shards = Shards(paths, index["places"], index["labels"])
            _tell(spec, shards, label, index["left"].tolist())
            return shards
    places: list[tuple[int, int, int]] = []
    labels: list[str] = []
    without, unread = _Left("samples hold no picture, and are no rows"), _Left("members are not read")
    ahead = Ahead(paths)
    for number, path in enumerate(paths):
        ahead.reading(number, number)  # each is read whole once
        for start, size, text in _samples(path, label, without, unread):
            places.append((number, start, size))
            labels.append(text)
    shards = Shards(paths, np.array(places, _PLACE), np.array(labels, np.str_))
    if not len(shards):
        raise ValueError(f"{spec}: no pictures in {shown(paths)}; expected members such as 000001.jpg and 000001.cls")
    index_file = io.BytesIO()
    left = [each.text for each in (without, unread) if each.number]
    np.savez(index_file, places=shards.places, labels=shards.labels, left=np.array(left, np.str_))
    notes.write(index_file.getvalue())
    _tell(spec, shards, label, left)
    return shards


def _tell(spec: str, shards: Shards, label: str, left: Sequence[str]) -> None:
    """What is odd about shards, to every command that reads them."""
    for text in left:
        tell(f"{spec}: {text}")
    unlabelled = int((shards.labels == "").sum())
    if unlabelled:
        tell(f"{spec}: {unlabelled} of {len(shards)} samples have no member .{label}, and are unlabelled")


@dataclass
class _Left:
    """What is no row: how many, and the names of a few."""

    what: str
    number: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.number += 1
        if len(self.names) < _SHOWN:
            self.names.append(name)

    @property
    def text(self) -> str:
        return f"{self.number} {self.what}: {shown(self.names)}{' ...' if self.number > _SHOWN else ''}"


_DEREFERENCE = "write it anew with tar --dereference --hard-dereference and without --sparse"


@dataclass
class _Sample:
    key: str
    picture: tuple[int, int] | None = None
    label: str = ""


def _samples(path: Path | RemoteFile, label: str, without: _Left, unread: _Left) -> Iterator[tuple[int, int, str]]:
    """Start and size of each picture, and its label."""
    try:
        with path.open("rb") as file:
            for sample in _walk(path, file, label, unread):
                if sample.picture is not None:
                    yield *sample.picture, sample.label
                elif sample.key:
                    without.add(sample.key)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except (tarfile.TarError, EOFError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path}: no sound tar file ({reason}); fetch it again, uncompressed") from error


def _walk(path: Path | RemoteFile, file: BinaryIO, label: str, unread: _Left) -> Iterator[_Sample]:
    current = _Sample("")
    bounded = _Bounded(file)
    with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members = []  # or it would keep millions
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.lower().partition(".")
            is_picture = f".{ending}" in SUFFIXES
            is_label = ending == label and not is_picture
            if not stem or member.isdir():
                continue  # hidden, as everywhere
            if not member.isreg() or member.sparse is not None:
                if is_picture or is_label:
                    raise ValueError(f"{path}: {shown([member.name])} is a link or has holes; {_DEREFERENCE}")
                continue
            if member.offset_data + member.size > path.stat().st_size:
                raise ValueError(f"{path}: {shown([member.name])} is cut off; fetch it again")
            key = f"{folder}/{base.partition('.')[0]}"
            if key != current.key:
                yield _finished(path, current)
                current = _Sample(key)
            if is_picture:
                if current.picture is not None:
                    raise ValueError(f"{path}: sample {shown([current.key])} holds two pictures; expected one")
                current.picture = member.offset_data, member.size
            elif is_label:
                if current.label:
                    raise ValueError(f"{path}: sample {shown([current.key])} holds two labels; expected one")
                current.label = _read_label(path, file, member)
            elif f".{ending.rpartition('.')[2]}" in SUFFIXES or ending.endswith(f".{label}"):
                unread.add(member.name)  # endings begin at the first dot: b.1.jpg is no picture of a sample b.1
    yield _finished(path, current)


def _finished(path: Path | RemoteFile, sample: _Sample) -> _Sample:
    if sample.picture is None and sample.label:
        raise ValueError(f"{path}: sample {shown([sample.key])} has a label and no picture; mend or remove it")
    return sample


def _read_label(path: Path | RemoteFile, file: BinaryIO, member: tarfile.TarInfo) -> str:
    if member.size > MOST_LABEL:
        raise ValueError(f"{path}: label {shown([member.name])} has {member.size} bytes; expected a number or a name")
    back = file.tell()
    file.seek(member.offset_data)
    data = file.read(member.size)
    file.seek(back)
    try:
        return data.decode().strip()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: label {shown([member.name])} is no text; expected a number or a name") from error


class _Bounded:
    """A file for ``tarfile``, which reads as many bytes as a header declares: no more than a name can need."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _MOST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)
