"""Pictures that stay where they are, as they are: each of its own size, decoded when it is asked for.

Shapes: N pictures, H x W pixels.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

from logitbank.pipeline.datasets.resize_crop import STANDARD, ResizeCrop


class PictureSource(Protocol):
    """Where pictures lie: files of a folder, rows of a table, members of an archive."""

    key_space: str
    """What the keys are hashes of, as ``Split.key_space`` says."""

    def __len__(self) -> int: ...

    def original(self, row: int) -> Image.Image:
        """The whole picture, RGB, decoded; ValueError names one that cannot be read."""
        ...

    def content_keys(self) -> npt.NDArray[np.uint64]:
        """Of the encoded bytes, uint64 [N]."""
        ...

    def subset(self, rows: npt.NDArray[np.integer]) -> "PictureSource":
        """Some of the pictures, in the order of ``rows``; nothing is decoded."""
        ...


class Originals:
    """The samples of a split of pictures of any sizes.

    A view is cut from the original, and each model applies its own resizing: ``Views.samples`` with the model's
    ``ResizeCrop``. Read as an array, uint8 [N, H, W, 3], they are shown as ``fit`` does.

    Args:
        source: The pictures.
        fit: What an array of them shows.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, source: PictureSource, fit: ResizeCrop = STANDARD) -> None:
        self.source, self.fit = source, fit

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self.source), *self.fit.crop, 3

    @property
    def key_space(self) -> str:
        return self.source.key_space

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: Any) -> npt.NDArray[np.uint8]:
        """Decoded pictures; an int gives one."""
        if isinstance(rows, int | np.integer):
            return np.asarray(self.fitted([int(rows)], self.fit)[0])
        return self.fitted(np.arange(len(self))[rows], self.fit)

    def fitted(self, rows: Sequence[int] | npt.NDArray[np.integer], fit: ResizeCrop) -> npt.NDArray[np.uint8]:
        """Pictures as a model's evaluation shows them, uint8 [B, H, W, 3]."""
        out = np.empty((len(rows), *fit.crop, 3), dtype=np.uint8)
        for place, row in enumerate(rows):
            out[place] = np.asarray(fit(self.source.original(int(row))))
        return out

    def content_keys(self) -> npt.NDArray[np.uint64]:
        return self.source.content_keys()

    def subset(self, rows: npt.NDArray[np.integer]) -> "Originals":
        return Originals(self.source.subset(rows), self.fit)
