"""A model's own input transform: how its library resizes pictures for it, and scales what it reads.

Pictures of any sizes are resized while they are read (``fit``); the rest runs on the device, after the view and before
the network.

Shapes: B batch, H x W x C pixels, D features, L tokens.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.originals import Originals
from logitbank.pipeline.datasets.resize_crop import STANDARD, ResizeCrop

MAX_RECORDED_SIZE = 1024  # pixels a side that a file may ask images to be resized to
_SAMPLED, _DECODED_AT_ONCE, _COUNTED_AT_ONCE = 5000, 64, 1000


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """(x - mean) / std for each channel of an image scaled to 0..1, or for each column of a table.

    Attributes:
        mean: One number a channel or column (one number serves all).
        std: Likewise; positive.
        size: Images that have one size are resized to size x size (bilinear, antialiased); None leaves them.
        fit: Of originals: how they are resized, and to what size. It takes the place of ``size``.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int | None = None
    fit: ResizeCrop | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.fit is not None:
            raise ValueError("input scaling has a size and a way to resize; give one of them")
        if len(self.mean) != len(self.std) or not self.mean:
            raise ValueError(f"{len(self.mean)} means but {len(self.std)} standard deviations; give as many of each")
        if not all(math.isfinite(value) for value in self.mean):
            raise ValueError(f"mean is {self.mean}; every mean must be a finite number")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std is {self.std}; every standard deviation must be positive and finite")

    def __call__(self, samples: Tensor) -> Tensor:
        """uint8 images [B, H, W, C] -> float32 [B, C, H, W]; rows [B, D] -> float32 [B, D]; int64 [B, L] stay."""
        if samples.dtype == torch.int64:
            return samples
        mean, std = (torch.tensor(values, device=samples.device) for values in (self.mean, self.std))
        if samples.ndim == 2:
            return (samples.float() - mean) / std
        # divided by a tensor: a GPU multiplies by a number's reciprocal, which is not what libraries compute
        pixels = samples.float().div_(torch.full((), 255.0, device=samples.device))
        if self.size is not None and pixels.shape[1:3] != (self.size, self.size):
            resized = F.interpolate(pixels.permute(0, 3, 1, 2), (self.size,) * 2, mode="bilinear", antialias=True)
            pixels = resized.permute(0, 2, 3, 1).contiguous()
        num_images, height, width, channels = pixels.shape
        # whole rows at once: three channels at a time take three times as long
        rows = pixels.reshape(num_images, height, width * channels)
        rows.sub_(mean.expand(channels).repeat(width)).div_(std.expand(channels).repeat(width))
        return rows.view(num_images, height, width, channels).permute(0, 3, 1, 2)

    def check(self, split: Split) -> None:
        """Raises ValueError when the numbers do not fit the split's channels or columns."""
        if split.is_tokens:
            return
        expected = split.input_shape[-1]
        if len(self.mean) not in (1, expected):
            what = "channels" if split.is_image else "columns"
            raise ValueError(
                f"input scaling has {len(self.mean)} means, but {split.spec} has {expected} {what};"
                f" pass --mean and --std with 1 number{'' if expected == 1 else f' or {expected}'}"
            )

    def on(self, split: Split) -> "Preprocessing":
        """The same for the pictures of a split: originals need a way to resize, and pictures of one size have none.

        Raises:
            ValueError: It resizes to a rectangle, and the split's pictures have one size already.
        """
        if split.originals is not None:
            if self.fit is not None:
                return self
            square = STANDARD if self.size is None else ResizeCrop(resize=(self.size,) * 2, crop=(self.size,) * 2)
            return replace(self, size=None, fit=square)
        if self.fit is None:
            return self
        height, width = self.fit.crop
        if height != width:
            raise ValueError(
                f"{split.spec} has pictures of one size, which become squares; this model reads {height} x {width}"
            )
        return replace(self, size=height, fit=None)

    def sized(self, split: Split) -> Split:
        """The split whose ``input_shape`` is what the network reads: what it is built for."""
        originals = split.originals
        if originals is None or self.fit is None:
            return split
        return replace(split, samples=cast(Any, Originals(originals.source, self.fit)))

    def attributes(self) -> dict[str, Any]:
        fit = {} if self.fit is None else {"fit": self.fit.attributes()}
        return {"mean": list(self.mean), "std": list(self.std), "size": self.size, **fit}

    @classmethod
    def from_attributes(cls, attributes: Any) -> "Preprocessing":
        """What ``attributes`` gave, read back from a file that anybody may have written.

        Raises:
            ValueError: Anything but lists of numbers and sizes of at most ``MAX_RECORDED_SIZE``.
        """
        said = attributes if isinstance(attributes, Mapping) else {}
        mean, std, size = said.get("mean"), said.get("std"), said.get("size")
        numbers = [
            isinstance(values, list) and all(type(value) in (int, float) for value in values) for values in (mean, std)
        ]
        if not all(numbers) or not (size is None or (type(size) is int and 1 <= size <= MAX_RECORDED_SIZE)):
            raise ValueError(
                f"its input scaling is {str(attributes)[:80]!r}; expected lists of numbers mean and std, and a size of"
                f" at most {MAX_RECORDED_SIZE} pixels or none"
            )
        fit = ResizeCrop.from_attributes(said["fit"]) if "fit" in said else None
        if fit is not None and max(fit.crop) > MAX_RECORDED_SIZE:
            raise ValueError(f"its input is {fit.crop} pixels; expected at most {MAX_RECORDED_SIZE} a side")
        return cls(mean=tuple(map(float, mean)), std=tuple(map(float, std)), size=size, fit=fit)  # type: ignore[arg-type]


AS_THEY_ARE = Preprocessing(mean=(0.0,), std=(1.0,))
"""Of tokens, which are no amounts."""


def fit_preprocessing(split: Split, rows: npt.NDArray[np.integer] | None = None) -> Preprocessing:
    """Mean and standard deviation of each channel or column, over the given rows (default: all) in float64.

    A constant column gets standard deviation 1. Images that have to be decoded are sampled. Tokens stay as they are.
    """
    if split.is_tokens:
        return AS_THEY_ARE
    samples: Any = split.samples
    chosen = np.arange(len(split)) if rows is None else rows
    if not isinstance(samples, np.ndarray):
        mean, std = _streamed_moments(split, chosen)
    elif split.is_image:
        mean, std = _counted_moments(samples, chosen)
    else:
        mean = samples[chosen].mean(axis=0, dtype=np.float64)
        std = samples[chosen].std(axis=0, dtype=np.float64)
    return Preprocessing(
        mean=tuple(round(float(value), 6) for value in mean),
        std=tuple(round(float(value), 6) if value > 1e-6 else 1.0 for value in std),
    ).on(split)


def _counted_moments(
    images: npt.NDArray[np.uint8], rows: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Exact mean and deviation from the counts of the 256 values: a tenth of the time of float64 pixels."""
    counts = np.zeros((images.shape[-1], 256))
    for start in range(0, len(rows), _COUNTED_AT_ONCE):
        pixels = images[rows[start : start + _COUNTED_AT_ONCE]]
        for channel, count in enumerate(counts):
            count += np.bincount(pixels[..., channel].ravel(), minlength=256)
    share, values = counts / counts.sum(axis=1, keepdims=True), np.arange(256) / 255
    mean = share @ values
    return mean, np.sqrt((share * (values - mean[:, None]) ** 2).sum(axis=1))


def _streamed_moments(
    split: Split, rows: npt.NDArray[np.integer]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean and deviation of at most ``_SAMPLED`` images that have to be decoded first, evenly spread."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLED)).astype(np.int64)]
    count, total, squares = 0, np.zeros(split.input_shape[-1]), np.zeros(split.input_shape[-1])
    for start in range(0, len(chosen), _DECODED_AT_ONCE):
        pixels = split.samples[chosen[start : start + _DECODED_AT_ONCE]].astype(np.float64) / 255
        count += pixels[..., 0].size
        total += pixels.sum(axis=(0, 1, 2))
        squares += (pixels**2).sum(axis=(0, 1, 2))
    mean = total / count
    return mean, np.sqrt(np.maximum(squares / count - mean**2, 0))
