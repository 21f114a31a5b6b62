"""Images that stay in their files: read and decoded when rows are asked for, all to one size.

Shapes: N images, S x S pixels.
"""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.pictures import decode_image, open_image
from logitbank.pipeline.datasets.split import KEY_BYTES

_THREADS = 4
_NOT_FRAMES = "MPO"  # what cameras add to a JPEG is no frame of its own


class ImageFiles:
    """Reads like an array uint8 [N, S, S, 3], but every access decodes.

    An image is turned as its EXIF says, resized so that its shorter side is S (bilinear, antialiased), and cropped in
    the middle. Its key is the hash of its file's bytes and of S.

    Args:
        paths: One file an image.
        size: S.
        broken: Rows that cannot be decoded and read as black.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, paths: Sequence[Path], size: int, *, broken: npt.NDArray[np.bool_] | None = None) -> None:
        self.paths, self.size = list(paths), size
        self.broken = np.zeros(len(self.paths), np.bool_) if broken is None else broken

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.paths), self.size, self.size, 3

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        """Decoded images; an int gives one."""
        if isinstance(rows, int | np.integer):
            return self._read(int(rows))
        chosen = np.arange(len(self))[rows]
        out = np.empty((len(chosen), *self.shape[1:]), dtype=np.uint8)
        for place, row in enumerate(chosen):
            out[place] = self._read(int(row))
        return out

    def subset(self, rows: npt.NDArray[np.integer]) -> "ImageFiles":
        """Some of the images, in the order of ``rows``; nothing is decoded."""
        return ImageFiles([self.paths[row] for row in rows], self.size, broken=self.broken[rows])

    @property
    def key_space(self) -> str:
        return f"file {self.size}"

    def content_keys(self) -> npt.NDArray[np.uint64]:
        """uint64 [N]; reads every file once and decodes none."""
        person = hashlib.blake2b(self.key_space.encode(), digest_size=16).digest()

        def key(path: Path) -> bytes:
            return hashlib.blake2b(_read(path), digest_size=KEY_BYTES, person=person).digest()

        with ThreadPoolExecutor(_THREADS) as pool:
            return np.frombuffer(b"".join(pool.map(key, self.paths)), dtype="<u8").astype(np.uint64)

    def look(self, *, decode: bool) -> "Looked":
        """Looks at every file once.

        Args:
            decode: Decode them whole, which also finds files that were cut off; otherwise look at the headers.
        """

        def fault_of(path: Path) -> tuple[str, bool]:
            try:
                with open_image(path) as image:
                    frames = image.format != _NOT_FRAMES and bool(getattr(image, "is_animated", False))
                if decode:
                    decode_image(_read(path), self.size)
            except ValueError as error:
                return str(error), False
            return "", frames

        with ThreadPoolExecutor(_THREADS) as pool:
            found = list(pool.map(fault_of, self.paths))
        return Looked(faults=[fault for fault, _ in found], frames=[several for _, several in found])

    def _read(self, row: int) -> npt.NDArray[np.uint8]:
        if self.broken[row]:
            return np.zeros(self.shape[1:], dtype=np.uint8)
        path = self.paths[row]
        data = _read(path)
        try:
            return decode_image(data, self.size)
        except ValueError as error:
            raise ValueError(
                f"{path}: cannot be decoded ({error}); mend or remove it, or pass on_error=skip to mask its row"
            ) from error


@dataclass(frozen=True)
class Looked:
    """What was found in each file: why it cannot be read (or nothing), and whether it holds several frames."""

    faults: list[str]
    frames: list[bool]


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); mend or remove it") from error
