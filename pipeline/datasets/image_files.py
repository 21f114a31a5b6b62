"""Images that stay in their files: read and decoded when rows are asked for, all to one size.

Shapes: N images, S x S pixels.
"""

import hashlib
import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from pipeline.datasets.split import KEY_BYTES

_THREADS = 4
_NAMED = 5


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

    def content_keys(self) -> npt.NDArray[np.uint64]:
        """uint64 [N]; reads every file once and decodes none."""
        person = hashlib.blake2b(f"file {self.size}".encode(), digest_size=16).digest()

        def key(path: Path) -> bytes:
            return hashlib.blake2b(path.read_bytes(), digest_size=KEY_BYTES, person=person).digest()

        with ThreadPoolExecutor(_THREADS) as pool:
            return np.frombuffer(b"".join(pool.map(key, self.paths)), dtype="<u8").astype(np.uint64)

    def find_broken(self, *, decode: bool) -> npt.NDArray[np.bool_]:
        """Rows whose files are no images, bool [N].

        Args:
            decode: Decode them whole, which also finds files that were cut off; otherwise look at the headers.
        """

        def is_broken(path: Path) -> bool:
            try:
                if decode:
                    decode_image(path.read_bytes(), self.size)
                else:
                    with Image.open(path):
                        pass
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
                return True
            return False

        with ThreadPoolExecutor(_THREADS) as pool:
            return np.fromiter(pool.map(is_broken, self.paths), dtype=np.bool_, count=len(self.paths))

    def _read(self, row: int) -> npt.NDArray[np.uint8]:
        if self.broken[row]:
            return np.zeros(self.shape[1:], dtype=np.uint8)
        path = self.paths[row]
        try:
            return decode_image(path.read_bytes(), self.size)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{path}: cannot be decoded ({error}); mend or remove it, or pass on_error=skip to mask its row"
            ) from error


def decode_image(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """An encoded image as uint8 [size, size, 3]."""
    with Image.open(io.BytesIO(data)) as opened:
        return fit_image(opened, size)


def fit_image(image: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """Upright, RGB, shorter side ``size``, cropped in the middle: uint8 [size, size, 3]."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    return np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR), dtype=np.uint8)


def broken_message(spec: str, paths: Sequence[Path]) -> str:
    """One line about files that are no images."""
    named = ", ".join(str(path) for path in paths[:_NAMED]) + (" ..." if len(paths) > _NAMED else "")
    return f"{spec}: {len(paths)} files cannot be decoded: {named}; mend or remove them, or pass on_error=skip"
