"""Images that stay in their files: read and decoded when rows are asked for.

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
from PIL import Image

from logitbank.pipeline.datasets.file_notes import DECODED, FEWEST, FRAMES, KEYED, LOOKED, TURNED, FileNotes
from logitbank.pipeline.datasets.originals import Originals, PictureSource
from logitbank.pipeline.datasets.pictures import decode_whole, is_turned, open_image, shrink
from logitbank.pipeline.datasets.split import KEY_BYTES, Split

_THREADS = 4
_NOT_FRAMES = "MPO"  # what cameras add to a JPEG is no frame of its own
_BLANK = (8, 8)


class ImageFiles:
    """Files of pictures, each in its own size; its key is the hash of the file's bytes and of ``key_space``.

    Args:
        paths: One file an image.
        upright: Turn them as their EXIF says.
        broken: Rows that cannot be decoded and read as black.
        key_space: What is done to pictures before a view sees them, if anything.
        noted: Keep notes about these files in the cache folder, so that the next command need not read them all.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        upright: bool = False,
        broken: npt.NDArray[np.bool_] | None = None,
        key_space: str = "",
        noted: bool = False,
    ) -> None:
        self.paths, self.upright = list(paths), upright
        self.broken = np.zeros(len(self.paths), np.bool_) if broken is None else broken
        self.key_space = key_space or ("file upright" if upright else "file")
        notes = FileNotes(self.paths, self.key_space) if noted and len(self.paths) >= FEWEST else None
        self._notes = notes
        self._keys = np.zeros(len(self.paths), np.uint64) if notes is None else notes.keys.copy()
        self._keyed = np.zeros(len(self.paths), np.bool_) if notes is None else (notes.flags & KEYED) > 0

    def __len__(self) -> int:
        return len(self.paths)

    def original(self, row: int) -> Image.Image:
        """The whole picture, RGB; a broken one is black."""
        if self.broken[row]:
            return Image.new("RGB", _BLANK)
        path = self.paths[row]
        data = _read(path)
        try:
            return decode_whole(data, upright=self.upright)
        except ValueError as error:
            raise ValueError(
                f"{path}: cannot be decoded ({error}); mend or remove it, or pass on_error=skip to mask its row"
            ) from error

    def subset(self, rows: npt.NDArray[np.integer]) -> "ImageFiles":
        """Some of the images, in the order of ``rows``; nothing is decoded."""
        some = ImageFiles(
            [self.paths[row] for row in rows],
            upright=self.upright,
            broken=self.broken[rows],
            key_space=self.key_space,
        )
        some._keys, some._keyed = self._keys[rows], self._keyed[rows]
        return some

    def content_keys(self) -> npt.NDArray[np.uint64]:
        """uint64 [N]; reads every file once, but for those that notes tell of, and decodes none."""
        person = hashlib.blake2b(self.key_space.encode(), digest_size=16).digest()

        def key(path: Path) -> bytes:
            return hashlib.blake2b(_read(path), digest_size=KEY_BYTES, person=person).digest()

        unread = np.flatnonzero(~self._keyed)
        if len(unread):
            with ThreadPoolExecutor(_THREADS) as pool:
                read = b"".join(pool.map(key, (self.paths[row] for row in unread)))
            self._keys[unread] = np.frombuffer(read, dtype="<u8")
            self._keyed[unread] = True
            if self._notes is not None:
                self._notes.add(np.full(len(self), KEYED, np.uint8), self._keys)
        return self._keys.copy()

    def look(self, *, decode: bool) -> "Looked":
        """Looks at every file once.

        Args:
            decode: Decode them whole, which also finds files that were cut off; otherwise look at the headers.
        """

        def fault_of(path: Path) -> tuple[str, bool, bool]:
            try:
                with open_image(path) as image:
                    frames = image.format != _NOT_FRAMES and bool(getattr(image, "is_animated", False))
                    turned = is_turned(image)
                if decode:
                    decode_whole(_read(path), upright=self.upright)
            except ValueError as error:
                return str(error), False, False
            return "", frames, turned

        wanted = DECODED if decode else LOOKED
        flags = np.zeros(len(self), np.uint8) if self._notes is None else self._notes.flags.copy()
        new = np.flatnonzero((flags & wanted) == 0)
        faults = [""] * len(self)
        with ThreadPoolExecutor(_THREADS) as pool:
            for row, found in zip(new, pool.map(fault_of, (self.paths[row] for row in new)), strict=True):
                faults[row], frames, turned = found
                if not faults[row]:  # a faulty one is looked at again: it may be mended
                    flags[row] |= wanted | LOOKED | FRAMES * frames | TURNED * turned
        if self._notes is not None and len(new):
            self._notes.add(flags)
        return Looked(faults=faults, frames=[*((flags & FRAMES) > 0)], turned=[*((flags & TURNED) > 0)])


@dataclass(frozen=True)
class Looked:
    """Of each file: why it cannot be read (or nothing), and whether it holds several frames or is to be turned."""

    faults: list[str]
    frames: list[bool]
    turned: list[bool]


class Thumbnails:
    """Files shrunk to one size before any view, for small trials; read like an array uint8 [N, S, S, 3].

    An image is turned as its EXIF says, resized so that its shorter side is S (bilinear, antialiased), and cropped in
    the middle. S takes part in its key.

    Args:
        source: The pictures, upright, with a key space that names S.
        size: S.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, source: PictureSource, size: int) -> None:
        self.source, self.size = source, size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.source), self.size, self.size, 3

    @property
    def key_space(self) -> str:
        return self.source.key_space

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        """Decoded images; an int gives one."""
        if isinstance(rows, int | np.integer):
            return shrink(self.source.original(int(rows)), self.size)
        chosen = np.arange(len(self))[rows]
        out = np.empty((len(chosen), *self.shape[1:]), dtype=np.uint8)
        for place, row in enumerate(chosen):
            out[place] = shrink(self.source.original(int(row)), self.size)
        return out

    def content_keys(self) -> npt.NDArray[np.uint64]:
        return self.source.content_keys()

    def subset(self, rows: npt.NDArray[np.integer]) -> "Thumbnails":
        return Thumbnails(self.source.subset(rows), self.size)


def paths_of(split: Split) -> list[Path] | None:
    """The file of each example, where examples are files."""
    samples: Any = split.samples
    files = samples.source if isinstance(samples, Originals | Thumbnails) else None
    return files.paths if isinstance(files, ImageFiles) else None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror or error}); mend or remove it") from error
