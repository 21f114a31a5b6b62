"""Where a view looks: flip-crop for small images, random resized crop for photographs.

The crop of a photograph is drawn in the coordinates of the original: whoever looks, a teacher or a student of another
size, sees the same rectangle, resampled once as its model resamples.

Shapes: B batch, H x W x C pixels, uint8.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.datasets.originals import Originals
from logitbank.pipeline.datasets.resize_crop import ResizeCrop
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.views.seeds import Seeds, draw, draw_unit

Images = npt.NDArray[np.uint8]
Boxes = npt.NDArray[np.float64]
"""Top, left, bottom and right of crops as shares of their image, [B, 4]."""

_CROP_PADDING = 8  # pixels of image for each pixel of padding
_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10
_RRC_STREAM = 100


def whole(height: int, width: int, seeds: Seeds) -> Boxes:
    """All of each image."""
    return np.tile([0.0, 0.0, 1.0, 1.0], (len(seeds), 1))


def flip_crop(images: Images, seeds: Seeds) -> Images:
    """Zero-pad by an eighth (4 px at 32 px), crop back at a random place, mirror every second image."""
    num_images, height, width, _ = images.shape
    pad, top, left = _corners(height, width, seeds)
    padded = np.pad(images, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    mirrored = draw(seeds, 2, 2).astype(bool)
    columns = np.arange(width)[None, :]
    columns = left[:, None] + np.where(mirrored[:, None], columns[:, ::-1], columns)
    rows = top[:, None] + np.arange(height)[None, :]
    return np.asarray(padded[np.arange(num_images)[:, None, None], rows[:, :, None], columns[:, None, :]])


def _corners(height: int, width: int, seeds: Seeds) -> tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pixels of padding, and where in the padded image each crop begins."""
    pad = max(height, width) // _CROP_PADDING
    return pad, draw(seeds, 0, 2 * pad + 1), draw(seeds, 1, 2 * pad + 1)


def flip_crop_boxes(height: int, width: int, seeds: Seeds) -> Boxes:
    """Where ``flip_crop`` looks; beyond the image where it shows padding."""
    pad, top, left = _corners(height, width, seeds)
    return _shares(np.stack([top - pad, left - pad], axis=1), np.array([height, width]), height, width)


def rrc_boxes(height: int, width: int, seeds: Seeds, *, size: int = 0, scale: float = 0.08) -> Boxes:
    """Where ``random_resized_crop`` looks."""
    boxes = _boxes(height, width, seeds, scale)
    return _shares(boxes[:, :2], boxes[:, 2:], height, width)


def _shares(corner_B2: npt.NDArray[np.int64], size_B2: npt.NDArray[np.int64], height: int, width: int) -> Boxes:
    sides = np.array([height, width], np.float64)
    return np.concatenate([corner_B2 / sides, (corner_B2 + size_B2) / sides], axis=1)


def random_resized_crop(images: Images, seeds: Seeds, *, size: int = 0, scale: float = 0.08) -> Images:
    """A random rectangle of the image, resized to a square, every second one mirrored.

    Args:
        images: [B, H, W, C].
        seeds: uint64 [B].
        size: Side of the result in pixels; 0 keeps H x W.
        scale: Smallest area of the rectangle, as a share of the image; its aspect ratio is 3:4 to 4:3.

    References:
        Szegedy et al. Going Deeper with Convolutions. CVPR 2015, section 6.
    """
    prepare_torchvision()
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as F

    _check(size, scale)
    height, width = images.shape[1:3]
    target = [size or height, size or width]
    boxes = _boxes(height, width, seeds, scale)
    mirrored = draw(seeds, _RRC_STREAM - 1, 2)
    out = np.empty((len(images), *target, images.shape[3]), dtype=np.uint8)
    for i, (image, box, mirror) in enumerate(zip(images, boxes.tolist(), mirrored, strict=True)):
        crop = F.resized_crop(to_tensor(image), *box, target, InterpolationMode.BILINEAR, antialias=True)
        out[i] = to_array(F.horizontal_flip(crop) if mirror else crop)
    return out


def crop_originals(
    originals: Originals,
    rows: npt.NDArray[np.integer],
    seeds: Seeds,
    fit: ResizeCrop,
    *,
    size: int = 0,
    scale: float = 0.08,
) -> Images:
    """``random_resized_crop`` of pictures of any sizes, each rectangle drawn in its own picture.

    Args:
        originals: The pictures.
        rows: int [B].
        seeds: uint64 [B].
        fit: How the model resamples, and the size that it reads.
        size: Side of the result in pixels; 0 leaves it to ``fit``.
        scale: As there.
    """
    _check(size, scale)
    target = (size, size) if size else fit.crop
    mirrored = draw(seeds, _RRC_STREAM - 1, 2)
    firsts = np.stack(_attempt(seeds, 0, scale), axis=1).tolist()
    out = np.empty((len(rows), *target, 3), dtype=np.uint8)
    for i, (row, first) in enumerate(zip(rows.tolist(), firsts, strict=True)):
        picture = originals.source.original(row)
        box = _first_box(picture.height, picture.width, *first)
        if box is None:
            top, left, height, width = _boxes(picture.height, picture.width, seeds[i : i + 1], scale)[0].tolist()
            box = top, left, height, width
        crop = np.asarray(fit.cut(picture, box, target))
        out[i] = crop[:, ::-1] if mirrored[i] else crop
    return out


def _first_box(
    height: int, width: int, share: float, ratio: float, down: float, along: float
) -> tuple[int, int, int, int] | None:
    """What ``_boxes`` gives for one picture when the first of its draws fits, in a tenth of the time."""
    area = height * width * share
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if not (0 < w <= width and 0 < h <= height):
        return None
    return math.floor(down * (height - h + 1)), math.floor(along * (width - w + 1)), h, w


def _check(size: int, scale: float) -> None:
    if size < 0 or not 0 < scale <= 1:
        raise ValueError(f"transform rrc has size={size}, scale={scale}; expected size of 0 or more, 0 < scale <= 1")


def _boxes(height: int, width: int, seeds: Seeds, scale: float) -> npt.NDArray[np.int64]:
    """Top, left, height and width of each crop: the first of ten that fits, else the largest in the middle."""
    side = min(width, round(height * _RATIO[1])), min(height, round(width / _RATIO[0]))
    boxes = np.empty((len(seeds), 4), dtype=np.int64)
    boxes[:] = ((height - side[1]) // 2, (width - side[0]) // 2, side[1], side[0])
    missing = np.ones(len(seeds), dtype=np.bool_)
    for attempt in range(_ATTEMPTS):
        share, ratio, down, along = _attempt(seeds, attempt, scale)
        area = height * width * share
        w, h = np.rint(np.sqrt(area * ratio)).astype(np.int64), np.rint(np.sqrt(area / ratio)).astype(np.int64)
        fits = missing & (w > 0) & (h > 0) & (w <= width) & (h <= height)
        top = np.floor(down * (height - h + 1)).astype(np.int64)
        left = np.floor(along * (width - w + 1)).astype(np.int64)
        boxes[fits] = np.stack([top, left, h, w], axis=1)[fits]
        missing &= ~fits
        if not missing.any():
            break
    return boxes


def _attempt(seeds: Seeds, attempt: int, scale: float) -> tuple[npt.NDArray[np.float64], ...]:
    """Of each rectangle its share of the area, its ratio of sides, and where it lies down and along, 0 to below 1."""
    stream = _RRC_STREAM + 4 * attempt
    log_ratio = math.log(_RATIO[0]) + math.log(_RATIO[1] / _RATIO[0]) * draw_unit(seeds, stream + 1)
    share = scale + (1 - scale) * draw_unit(seeds, stream)
    return share, np.exp(log_ratio), draw_unit(seeds, stream + 2), draw_unit(seeds, stream + 3)


def to_tensor(image: Images) -> Tensor:
    """[H, W, C] -> [C, H, W]."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def to_array(image: Tensor) -> Images:
    """[C, H, W] -> [H, W, C]."""
    return image.permute(1, 2, 0).numpy()
