"""Tar shards of pictures (the layout of WebDataset), read in any order through an index of where each member lies.

Shapes: N samples.
"""

import io
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.file_notes import Notes
from logitbank.pipeline.datasets.pictures import SUFFIXES
from logitbank.pipeline.datasets.spec import shown, tell

MOST_LABEL = 4096  # bytes
_MOST_HEADER = 2**20  # bytes that a header may ask for: names and the like
_ABOUT = "tar shards 1"
_PLACE = np.dtype([("file", "<u4"), ("start", "<u8"), ("size", "<u8")])


@dataclass(frozen=True)
class Shards:
    """Pictures in tar shards; ``Blobs``.

    Attributes:
        paths: The shards.
        places: Shard, start and size of each picture [N].
        labels: Texts [N], empty where a sample has none.
    """

    paths: Sequence[Path]
    places: npt.NDArray[np.void]
    labels: npt.NDArray[np.str_]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, number: int) -> bytes:
        place = self.places[number]
        path, start, size = self.paths[int(place["file"])], int(place["start"]), int(place["size"])
        try:
            with path.open("rb") as file:
                file.seek(start)
                data = file.read(size)
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
        if len(data) != size:
            raise ValueError(f"{path}: is shorter than it was; fetch it again")
        return data

    def name(self, number: int) -> str:
        place = self.places[number]
        return f"{self.paths[int(place['file'])]}: the picture at byte {int(place['start'])}"

    def notes(self, about: str) -> Notes | None:
        return Notes(self.paths, f"{_ABOUT}, {about}")


def open_shards(paths: Sequence[Path], label: str, spec: str) -> Shards:
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
            return Shards(paths, index["places"], index["labels"])
    places: list[tuple[int, int, int]] = []
    labels: list[str] = []
    for number, path in enumerate(paths):
        for start, size, text in _samples(path, label):
            places.append((number, start, size))
            labels.append(text)
    shards = Shards(paths, np.array(places, _PLACE), np.array(labels, np.str_))
    if not len(shards):
        raise ValueError(f"{spec}: no pictures in {shown(paths)}; expected members such as 000001.jpg and 000001.cls")
    index_file = io.BytesIO()
    np.savez(index_file, places=shards.places, labels=shards.labels)
    notes.write(index_file.getvalue())
    unlabelled = labels.count("")
    if unlabelled:
        tell(f"{spec}: {unlabelled} of {len(labels)} samples have no member .{label}, and are unlabelled")
    return shards


@dataclass
class _Sample:
    key: str
    picture: tuple[int, int] | None = None
    label: str = ""


def _samples(path: Path, label: str) -> Iterator[tuple[int, int, str]]:
    """Start and size of each picture, and its label."""
    try:
        with path.open("rb") as file:
            yield from _walk(path, file, label)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); check the file") from error
    except (tarfile.TarError, EOFError, OverflowError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ValueError(f"{path}: no sound tar file ({reason}); fetch it again, uncompressed") from error


def _walk(path: Path, file: BinaryIO, label: str) -> Iterator[tuple[int, int, str]]:
    current = _Sample("")
    bounded = _Bounded(file)
    with tarfile.open(fileobj=bounded, mode="r:") as archive:  # type: ignore[call-overload]
        while (member := archive.next()) is not None:
            archive.members = []  # or it would keep millions
            if not member.isreg() or member.sparse is not None:
                continue
            if member.offset_data + member.size > path.stat().st_size:
                raise ValueError(f"{path}: {shown([member.name])} is cut off; fetch it again")
            folder, _, base = member.name.rpartition("/")
            stem, _, ending = base.partition(".")
            if f"{folder}/{stem}" != current.key:
                yield from _finished(path, current)
                current = _Sample(f"{folder}/{stem}")
            if f".{ending.lower()}" in SUFFIXES:
                if current.picture is not None:
                    raise ValueError(f"{path}: sample {shown([current.key])} holds two pictures; expected one")
                current.picture = member.offset_data, member.size
            elif ending.lower() == label:
                current.label = _read_label(path, file, member)
    yield from _finished(path, current)


def _finished(path: Path, sample: _Sample) -> Iterator[tuple[int, int, str]]:
    if sample.picture is not None:
        yield *sample.picture, sample.label
    elif sample.label:
        raise ValueError(f"{path}: sample {shown([sample.key])} has a label and no picture; mend or remove it")


def _read_label(path: Path, file: BinaryIO, member: tarfile.TarInfo) -> str:
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
