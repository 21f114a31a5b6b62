"""RandAugment on uint8 images, with operations and signs drawn from each image's own seed.

The operations are torchvision's, on tensors, and on Pillow's pictures for what was cut from originals: a third of the
time, and other pixels, since Pillow rounds otherwise.

Shapes: B batch, H x W x C pixels, uint8.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.views.geometry import Images, to_array, to_tensor
from logitbank.pipeline.views.seeds import Seeds, draw

STRONGEST = 30
_STREAM = 1000

Operation = Callable[[Any, float, int], Any]  # image [C, H, W] or Pillow's, strength in [0, 1], sign -1 or 1


def randaugment(images: Images, seeds: Seeds, *, num_ops: int = 2, magnitude: int = 9) -> Images:
    """``num_ops`` random operations on each image, one after the other, all of the same magnitude.

    Args:
        images: [B, H, W, C].
        seeds: uint64 [B].
        num_ops: Operations an image.
        magnitude: 0 to 30.

    References:
        Cubuk, Zoph, Shlens, Le. RandAugment. NeurIPS 2020, section 3; strengths as in torchvision's RandAugment.
    """
    return _augment(images, seeds, num_ops, magnitude, to_tensor, to_array)


def randaugment_pictures(images: Images, seeds: Seeds, *, num_ops: int = 2, magnitude: int = 9) -> Images:
    """The same of what was cut from originals; arguments as there, three channels."""
    return _augment(images, seeds, num_ops, magnitude, Image.fromarray, np.asarray)


def _augment(
    images: Images,
    seeds: Seeds,
    num_ops: int,
    magnitude: int,
    opened: Callable[[Images], Any],
    closed: Callable[[Any], Images],
) -> Images:
    if num_ops < 1 or not 0 <= magnitude <= STRONGEST:
        raise ValueError(
            f"transform randaugment has num_ops={num_ops}, magnitude={magnitude}; expected at least 1, and 0 to 30"
        )
    operations = _operations()
    chosen = [draw(seeds, _STREAM + 2 * i, len(operations)) for i in range(num_ops)]
    signs = [2 * draw(seeds, _STREAM + 2 * i + 1, 2) - 1 for i in range(num_ops)]
    out = np.empty_like(images)
    for row, image in enumerate(images):
        shown = opened(image)
        for operation, sign in zip(chosen, signs, strict=True):
            shown = operations[operation[row]](shown, magnitude / STRONGEST, int(sign[row]))
        out[row] = closed(shown)
    return out


def _operations() -> tuple[Operation, ...]:
    prepare_torchvision()
    from torchvision.transforms.v2 import functional as F

    def shear(image: Any, x: float, y: float) -> Any:
        degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
        return F.affine(image, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees, center=[0, 0])

    def translate(image: Any, axis: int, sign: int, strength: float) -> Any:
        moved = [0, 0]
        moved[axis] = int(sign * F.get_size(image)[1 - axis] * 150 / 331 * strength)
        return F.affine(image, angle=0.0, translate=moved, scale=1.0, shear=[0.0, 0.0])

    def saturate(image: Any, strength: float, sign: int) -> Any:
        if F.get_num_channels(image) != 3:  # grey has no saturation
            return image
        return F.adjust_saturation(image, 1 + sign * 0.9 * strength)

    return (
        lambda image, strength, sign: image,
        lambda image, strength, sign: shear(image, sign * 0.3 * strength, 0.0),
        lambda image, strength, sign: shear(image, 0.0, sign * 0.3 * strength),
        lambda image, strength, sign: translate(image, 0, sign, strength),
        lambda image, strength, sign: translate(image, 1, sign, strength),
        lambda image, strength, sign: F.rotate(image, sign * 30.0 * strength),
        lambda image, strength, sign: F.adjust_brightness(image, 1 + sign * 0.9 * strength),
        saturate,
        lambda image, strength, sign: F.adjust_contrast(image, 1 + sign * 0.9 * strength),
        lambda image, strength, sign: F.adjust_sharpness(image, 1 + sign * 0.9 * strength),
        lambda image, strength, sign: F.posterize(image, 8 - round(4 * strength)),
        lambda image, strength, sign: F.solarize(image, 255 * (1 - strength)),
        lambda image, strength, sign: F.autocontrast(image),
        lambda image, strength, sign: F.equalize(image),
    )
