"""What a view shows of an example, in numpy: from docs/reference/format.md alone."""

import math
from collections.abc import Callable

import numpy as np

from tests.format_reader import Array

_MASK = 2**64 - 1


def mix(z: int) -> int:
    z = z + 0x9E3779B97F4A7C15 & _MASK
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
    return z ^ z >> 31


def view_seed(seed: int, key: int, view: int) -> int:
    return mix(mix(key ^ mix(seed)) + view & _MASK)


def draw(s: int, stream: int, n: int) -> int:
    return (mix(s + mix(stream) & _MASK) >> 32) * n >> 32


def unit(s: int, stream: int) -> float:
    return draw(s, stream, 2**24) / 2**24


def flip_crop(image: Array, s: int) -> Array:
    height, width = image.shape[:2]
    p = max(height, width) // 8
    row, column = draw(s, 0, 2 * p + 1), draw(s, 1, 2 * p + 1)
    crop = np.pad(image, ((p, p), (p, p), (0, 0)))[row : row + height, column : column + width]
    return crop[:, ::-1] if draw(s, 2, 2) else crop


def rrc_box(height: int, width: int, s: int, scale: float = 0.08) -> tuple[int, int, int, int]:
    """Top, left, height and width of what ``rrc`` cuts out."""
    for attempt in range(10):
        j = 100 + 4 * attempt
        area = height * width * (scale + (1 - scale) * unit(s, j))
        ratio = math.exp(math.log(3 / 4) + math.log(16 / 9) * unit(s, j + 1))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= w <= width and 1 <= h <= height:
            return math.floor(unit(s, j + 2) * (height - h + 1)), math.floor(unit(s, j + 3) * (width - w + 1)), h, w
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w


def mirrored(s: int) -> bool:
    """Whether ``rrc`` mirrors what it cut out."""
    return draw(s, 99, 2) == 1


def partner(s: int, keys: Array) -> int:
    """The row that ``mixup`` and ``cutmix`` mix a row with."""
    return int(np.argsort(keys, kind="stable")[draw(s, 2001, len(keys))])


def mixup(own: Array, other: Array, s: int) -> Array:
    w = 128 + draw(s, 2000, 129)
    return np.asarray((own.astype(int) * w + other.astype(int) * (256 - w) + 128) // 256, np.uint8)


def cutmix(own: Array, other: Array, s: int) -> Array:
    height, width = own.shape[:2]
    r = math.sqrt((256 - 128 - draw(s, 2000, 129)) / 256)
    h, w = math.floor(height * r), math.floor(width * r)
    top, left = draw(s, 2002, height) - h // 2, draw(s, 2003, width) - w // 2
    inside = (slice(max(top, 0), max(top + h, 0)), slice(max(left, 0), max(left + w, 0)))
    mixed = own.copy()
    mixed[inside] = other[inside]
    return mixed


SHOWN: dict[str, Callable[[Array, int], Array]] = {"none": lambda sample, s: sample, "flip-crop": flip_crop}
