"""Views of two examples: mixup and CutMix, with partner and ratio drawn from the row's own seed.

The larger part of a mixed image is always the row's own, so the row's label stays that of its main image: losses with
hard labels use that label, and what a store holds is the teacher's answer to the mixed image.

Shapes: B batch, H x W x C pixels, uint8.
"""

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.views.geometry import Images
from logitbank.pipeline.views.seeds import Seeds, draw

_STREAM = 2000
_WHOLE = 256


def own_share(seeds: Seeds) -> npt.NDArray[np.int64]:
    """The row's own part of a mixed image in 256ths, uniform from 128 to 256."""
    return _WHOLE // 2 + draw(seeds, _STREAM, _WHOLE // 2 + 1)


def partners(seeds: Seeds, rows_by_key: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The row that each row is mixed with: which example it is does not depend on the order of the dataset."""
    return np.asarray(rows_by_key[draw(seeds, _STREAM + 1, len(rows_by_key))])


def mixup(images: Images, others: Images, seeds: Seeds) -> Images:
    """Weighted mean of two images, in integers.

    References:
        Zhang, Cisse, Dauphin, Lopez-Paz. mixup: Beyond Empirical Risk Minimization. ICLR 2018 (alpha = 1).
    """
    share = own_share(seeds).astype(np.uint16)[:, None, None, None]
    mixed = images.astype(np.uint16) * share + others.astype(np.uint16) * (_WHOLE - share)
    return ((mixed.astype(np.uint32) + _WHOLE // 2) // _WHOLE).astype(np.uint8)


def cutmix(images: Images, others: Images, seeds: Seeds) -> Images:
    """A rectangle of the other image, of the image's own proportions, in place of the row's own pixels.

    References:
        Yun et al. CutMix: Regularization Strategy to Train Strong Classifiers. ICCV 2019, section 3.
    """
    height, width = images.shape[1:3]
    side = np.sqrt((_WHOLE - own_share(seeds)) / _WHOLE)
    h, w = (height * side).astype(np.int64), (width * side).astype(np.int64)
    top, left = draw(seeds, _STREAM + 2, height) - h // 2, draw(seeds, _STREAM + 3, width) - w // 2
    rows, columns = np.arange(height), np.arange(width)
    in_rows = (rows >= top[:, None]) & (rows < (top + h)[:, None])
    in_columns = (columns >= left[:, None]) & (columns < (left + w)[:, None])
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    return np.where(inside[..., None], others, images)
