"""Pictures that are read as encoded bytes from wherever they lie: members of archives, rows of tables.

Their keys are those of a file with the same bytes: a folder, the shards and the table that were made of it have the
same rows. When the keys are made, every byte is there, so every picture's header is looked at then, and one whose bytes
do not end as its format does is decoded: what is no picture, or cut off, is found before a pass begins.

Shapes: N pictures.
"""

import hashlib
import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from logitbank.pipeline.datasets.file_notes import Notes
from logitbank.pipeline.datasets.image_files import Thumbnails
from logitbank.pipeline.datasets.originals import Originals
from logitbank.pipeline.datasets.pictures import decode_whole, open_image
from logitbank.pipeline.datasets.spec import shown, tell
from logitbank.pipeline.datasets.split import KEY_BYTES

ON_ERROR = ("stop", "skip")
_THREADS = 4
_BLANK = (8, 8)
_ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND\xaeB`\x82", "GIF": b"\x3b"}

Rows = npt.NDArray[np.integer]


class Blobs(Protocol):
    """Encoded pictures by number."""

    def __len__(self) -> int: ...

    def read(self, number: int) -> bytes:
        """The encoded bytes; ValueError where they cannot be read."""
        ...

    def name(self, number: int) -> str:
        """How people find it."""
        ...

    def notes(self, about: str) -> Notes | None:
        """Notes about everything that the pictures depend on; None where they cannot be kept."""
        ...


class EncodedPictures:
    """A source of pictures over ``Blobs``.

    Args:
        blobs: The encoded pictures.
        size: S, when ``Thumbnails`` of that size are made of them, which are upright; 0 when they stay as they are.
        rows: Which of them, in which order (default: all).
        broken: Which of all the blobs cannot be decoded and read as black, bool (default: none is known to be).
    """

    def __init__(
        self, blobs: Blobs, size: int = 0, rows: Rows | None = None, broken: npt.NDArray[np.bool_] | None = None
    ) -> None:
        self.blobs, self.size, self.broken = blobs, size, broken
        self.rows = np.arange(len(blobs)) if rows is None else rows
        self._whole = rows is None
        self.key_space = f"file {size}" if size else "file"

    def __len__(self) -> int:
        return len(self.rows)

    def original(self, row: int) -> Image.Image:
        number = int(self.rows[row])
        if self.broken is not None and self.broken[number]:
            return Image.new("RGB", _BLANK)
        try:
            return decode_whole(self.blobs.read(number), upright=self.size > 0)
        except ValueError as error:
            raise ValueError(
                f"{self.blobs.name(number)} cannot be decoded ({error}); mend or remove it, or pass on_error=skip to"
                " mask its row"
            ) from error

    @property
    def near(self) -> tuple[int, int] | None:
        """Rows that come at once, and how many such blocks can be mixed; None: any row comes as fast as another."""
        own: tuple[int, int] | None = getattr(self.blobs, "near", None)
        return own

    def announce(self, groups: Sequence[Rows]) -> None:
        """Which rows will be read, group after group."""
        tell_blobs = getattr(self.blobs, "announce", None)
        if tell_blobs is not None:
            tell_blobs([self.rows[group] for group in groups])

    def subset(self, rows: Rows) -> "EncodedPictures":
        return EncodedPictures(self.blobs, self.size, self.rows[rows], self.broken)

    def content_keys(self) -> npt.NDArray[np.uint64]:
        """uint64 [N]; reads every picture once, unless notes tell of it.

        Raises:
            ValueError: Some are no pictures, or cut off, and were not known to be.
        """
        masked = self.broken is not None  # then each was decoded, and is masked where that failed
        notes = self.blobs.notes(f"keys of {'masked' if masked else 'sound'} pictures, {self.key_space}")
        recalled = None if notes is None else notes.recall()
        if recalled is not None and recalled[0].all() and len(recalled[1]) == 8 * len(self.blobs):
            return np.frombuffer(recalled[1], "<u8").astype(np.uint64)[self.rows]
        person = hashlib.blake2b(self.key_space.encode(), digest_size=16).digest()

        def look(number: int) -> tuple[bytes, str]:
            data = self.blobs.read(number)
            key = hashlib.blake2b(data, digest_size=KEY_BYTES, person=person).digest()
            return key, "" if masked else fault_of(data)

        numbers = self.rows.tolist()
        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(look, numbers))
        faults = [(number, fault) for number, (_, fault) in zip(numbers, found, strict=True) if fault]
        if faults:
            raise ValueError(f"{_broken_message(self.blobs, faults)}; mend or remove them, or pass on_error=skip")
        keys = b"".join(key for key, _ in found)
        if self._whole and notes is not None:
            notes.write(keys)
        return np.frombuffer(keys, "<u8").astype(np.uint64)


def fault_of(data: bytes, *, decode: bool = False) -> str:
    """Why an encoded picture cannot be read, or nothing.

    Args:
        data: All of it.
        decode: Decode it; otherwise only where the bytes do not end as the format does.
    """
    try:
        with open_image(io.BytesIO(data)) as image:
            end = _ENDS.get(str(image.format))
        if decode or end is None or end not in data[-len(end) - 64 :]:
            decode_whole(data, upright=False)
    except ValueError as error:
        return str(error)
    return ""


def encoded_samples(blobs: Blobs, size: int, spec: str, on_error: str) -> tuple[Any, npt.NDArray[np.bool_] | None]:
    """Samples of a split, originals or squares of one size for small trials; which can be read, bool [N] (None: all).

    Args:
        blobs: The encoded pictures.
        size: Of the squares; 0 leaves them as they are.
        spec: For messages.
        on_error: ``skip`` decodes each once now, and masks the rows of those that fail; ``stop`` refuses them, when the
            keys are made or, where only the decoder sees it, when they are read.

    Raises:
        ValueError: None can be decoded.
    """
    broken = _broken(blobs, spec) if on_error == "skip" else None
    source = EncodedPictures(blobs, size, broken=broken)
    readable = ~broken if broken is not None and broken.any() else None
    return Thumbnails(source, size) if size else Originals(source), readable


def _broken(blobs: Blobs, spec: str) -> npt.NDArray[np.bool_]:
    """Which cannot be decoded, bool [N]; found out once."""
    notes = blobs.notes("cannot be decoded")
    recalled = None if notes is None else notes.recall()
    if recalled is not None and recalled[0].all() and len(recalled[1]) == len(blobs):
        broken = np.frombuffer(recalled[1], np.bool_).copy()
        faults = [(int(number), "as found before") for number in np.flatnonzero(broken)]
    else:
        look: Callable[[int], str] = lambda number: fault_of(blobs.read(number), decode=True)  # noqa: E731
        with ThreadPoolExecutor(_THREADS) as pool:
            faults = [(number, fault) for number, fault in enumerate(pool.map(look, range(len(blobs)))) if fault]
        broken = np.zeros(len(blobs), np.bool_)
        broken[[number for number, _ in faults]] = True
        if notes is not None:
            notes.write(broken.tobytes())
    if broken.all():
        raise ValueError(f"{spec}: {_broken_message(blobs, faults)}; none is left")
    if faults:
        tell(f"{spec}: {_broken_message(blobs, faults)}; their rows are masked")
    return broken


def _broken_message(blobs: Blobs, faults: list[tuple[int, str]]) -> str:
    found = [f"{blobs.name(number)} ({fault})" for number, fault in faults]
    return f"{len(found)} pictures cannot be decoded: {shown(found)}"
