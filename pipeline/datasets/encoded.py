"""Pictures that are read as encoded bytes from wherever they lie: members of archives, rows of tables.

Their keys are those of a file with the same bytes: a folder, the shards and the table that were made of it have the
same rows.

Shapes: N pictures.
"""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from logitbank.pipeline.datasets.file_notes import Notes
from logitbank.pipeline.datasets.image_files import Thumbnails
from logitbank.pipeline.datasets.originals import Originals
from logitbank.pipeline.datasets.pictures import decode_whole
from logitbank.pipeline.datasets.split import KEY_BYTES

_THREADS = 4

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
    """

    def __init__(self, blobs: Blobs, size: int = 0, rows: Rows | None = None) -> None:
        self.blobs, self.size = blobs, size
        self.rows = np.arange(len(blobs)) if rows is None else rows
        self._whole = rows is None
        self.key_space = f"file {size}" if size else "file"

    def __len__(self) -> int:
        return len(self.rows)

    def original(self, row: int) -> Image.Image:
        number = int(self.rows[row])
        try:
            return decode_whole(self.blobs.read(number), upright=self.size > 0)
        except ValueError as error:
            raise ValueError(f"{self.blobs.name(number)} cannot be decoded ({error}); mend or remove it") from error

    def subset(self, rows: Rows) -> "EncodedPictures":
        return EncodedPictures(self.blobs, self.size, self.rows[rows])

    def content_keys(self) -> npt.NDArray[np.uint64]:
        notes = self.blobs.notes(f"keys, {self.key_space}")
        recalled = None if notes is None else notes.recall()
        if recalled is not None and recalled[0].all() and len(recalled[1]) == 8 * len(self.blobs):
            return np.frombuffer(recalled[1], "<u8").astype(np.uint64)[self.rows]
        person = hashlib.blake2b(self.key_space.encode(), digest_size=16).digest()

        def key(number: int) -> bytes:
            return hashlib.blake2b(self.blobs.read(number), digest_size=KEY_BYTES, person=person).digest()

        with ThreadPoolExecutor(_THREADS) as pool:
            keys = b"".join(pool.map(key, self.rows.tolist()))
        if self._whole and notes is not None:
            notes.write(keys)
        return np.frombuffer(keys, "<u8").astype(np.uint64)


def encoded_samples(blobs: Blobs, size: int) -> Any:
    """Samples of a split: originals, or squares of one size for small trials."""
    source = EncodedPictures(blobs, size)
    return Thumbnails(source, size) if size else Originals(source)
