"""Examples as arrays: which arrays are images, which are tables, and where the channels are.

Shapes: N examples, H x W pixels, D features.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

_CHANNELS = (1, 3, 4)


def as_samples(samples: npt.NDArray[Any], what: str) -> npt.NDArray[np.generic]:
    """Images as uint8 [N, H, W, channels], or table rows as float32 [N, D].

    Images [N, H, W] are grey; [N, channels, H, W] are turned.

    Raises:
        ValueError: Arrays of another kind, channels that cannot be told from pixels, or rows with NaN.
    """
    if samples.ndim == 3 and samples.dtype == np.uint8:
        return np.ascontiguousarray(samples[..., None])
    if samples.ndim == 4 and samples.dtype == np.uint8:
        return np.ascontiguousarray(samples if _channels_last(samples.shape, what) else np.moveaxis(samples, 1, -1))
    if samples.ndim == 2 and samples.dtype.kind in "buif":
        with np.errstate(over="ignore"):
            rows = np.ascontiguousarray(samples, dtype=np.float32)
        bad = int((~np.isfinite(rows)).any(axis=1).sum())
        if bad:
            raise ValueError(f"{what}: {bad} rows hold NaN or infinite values; fill or drop them first")
        return rows
    remedy = "; bring images to 0 ... 255 and store them as uint8" if samples.ndim in (3, 4) else ""
    raise ValueError(
        f"{what} is {samples.dtype} {list(samples.shape)}; expected uint8 images [N, H, W] or [N, H, W, channels],"
        f" or a numeric table [N, D]{remedy}"
    )


def _channels_last(shape: tuple[int, ...], what: str) -> bool:
    _, first, height, last = shape
    if last in _CHANNELS:
        return True
    if first in _CHANNELS:
        return False
    if last < min(first, height):
        return True
    if first < min(height, last):
        return False
    raise ValueError(
        f"{what} is uint8 {list(shape)}: which axis holds the channels cannot be told; expected [N, H, W] for grey"
        " images, or [N, H, W, channels]"
    )
