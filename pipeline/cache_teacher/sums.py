"""What the rows of a cell add to a teacher's figures: summed where the cell is written, put together at the end.

The sums of a cell are a function of its rows alone and lie beside them until the teacher is finished; where they are
missing, they are made again of the rows. Cells are put together in their order, so the figures are the same to the last
bit however cells were shared out.

Shapes: R rows of a block, F folds (1 without folds), B bins of confidence, N examples. Where an example is answered at
positions, each answer counts as a row.
"""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.cache_teacher.teachers.answering import held_rows
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.metrics import ECE_BINS, ReliabilityBin, confidence_bins

Floats = npt.NDArray[np.float64]


def cell_sums(
    arrays: Mapping[str, npt.NDArray[np.generic]],
    encoding: Encoding,
    labels_R: npt.NDArray[np.integer],
    folds_R: npt.NDArray[np.integer] | None,
    num_folds: int,
) -> Floats:
    """Rows, right answers and confidence of the labelled rows that are served, by fold and bin.

    Args:
        arrays: All rows of a cell, as they are stored.
        encoding: What they are stored in.
        labels_R: Labels, -1 where there is none; [R, L] of examples with positions.
        folds_R: Fold of each example; None without folds.
        num_folds: F.

    Returns:
        float64 [F, B, 3].
    """
    if labels_R.ndim > 1:
        arrays = {name: array.reshape(-1, *array.shape[2:]) for name, array in arrays.items()}
        folds_R = None if folds_R is None else np.repeat(folds_R, labels_R.shape[1])
        labels_R = labels_R.reshape(-1)
    best_R = encoding.best_class(arrays[encoding.best_array])
    counted_R = labels_R >= 0
    if "mask" in arrays:
        counted_R = counted_R & np.asarray(arrays["mask"], np.bool_)
    confidence = _confidence(arrays, encoding)[counted_R]
    place = confidence_bins(confidence) + (0 if folds_R is None else ECE_BINS * folds_R[counted_R].astype(np.int64))
    parts = [np.ones(len(place)), best_R[counted_R] == labels_R[counted_R], confidence]
    sums = [np.bincount(place, weights=part, minlength=num_folds * ECE_BINS) for part in parts]
    return np.stack(sums, axis=1, dtype=np.float64).reshape(num_folds, ECE_BINS, 3)


def _confidence(arrays: Mapping[str, npt.NDArray[np.generic]], encoding: Encoding) -> npt.NDArray[np.float32]:
    """Probability of the best class, which does not depend on how the tail is shaped, [R]."""
    names = [name for name in encoding.row_arrays() if name in arrays]
    num_rows, step = len(arrays[names[0]]), held_rows(encoding.num_classes)
    found_R = np.empty(num_rows, np.float32)
    for start in range(0, num_rows, step):
        few = {name: torch.from_numpy(np.ascontiguousarray(arrays[name][start : start + step])) for name in names}
        found_R[start : start + step] = encoding.kept_log_prob(few).amax(dim=1).exp().numpy()
    return found_R


def as_note(sums_FB3: Floats) -> bytes:
    """The sums of a cell as bytes."""
    return np.ascontiguousarray(sums_FB3, "<f8").tobytes()


def from_note(note: bytes | None, num_folds: int) -> Floats | None:
    """The sums that bytes hold; None where they are not of so many folds."""
    shape = (num_folds, ECE_BINS, 3)
    if note is None or len(note) != 8 * int(np.prod(shape)):
        return None
    return np.frombuffer(note, "<f8").reshape(shape)


def bins_of(sums_B3: Floats) -> list[ReliabilityBin]:
    """The reliability diagram of some sums, empty bins left out."""
    return [
        ReliabilityBin(count=int(count), mean_confidence=float(sure / count), accuracy=float(right / count))
        for count, right, sure in sums_B3.tolist()
        if count
    ]


class Spread:
    """Mean and standard deviation of numbers that come block by block, by fold.

    Args:
        num_folds: F.

    References:
        Chan, Golub, LeVeque. Updating Formulae and a Pairwise Algorithm for Computing Sample Variances. 1979.
    """

    def __init__(self, num_folds: int) -> None:
        self.count_F, self.mean_F, self.squares_F = (np.zeros(num_folds) for _ in range(3))

    def add(self, values_R: Floats, folds_R: npt.NDArray[np.int64]) -> None:
        """Numbers of a block, each of its fold."""
        num_folds = len(self.count_F)
        count_F = np.bincount(folds_R, minlength=num_folds).astype(np.float64)
        mean_F = np.bincount(folds_R, weights=values_R, minlength=num_folds) / np.maximum(count_F, 1)
        apart_R = (values_R - mean_F[folds_R]) ** 2
        squares_F = np.bincount(folds_R, weights=apart_R, minlength=num_folds).astype(np.float64)
        self.count_F, self.mean_F, self.squares_F = _joined(
            (self.count_F, self.mean_F, self.squares_F), (count_F, mean_F, squares_F)
        )

    def of(self, fold: int) -> tuple[int, float, float]:
        """Count, mean and standard deviation of a fold."""
        count = self.count_F[fold]
        return int(count), float(self.mean_F[fold]), float(np.sqrt(self.squares_F[fold] / max(count, 1)))

    def of_all(self) -> tuple[int, float, float]:
        """The same of all folds together."""
        whole = Spread(1)
        moments = whole.count_F, whole.mean_F, whole.squares_F
        for fold in range(len(self.count_F)):
            here = slice(fold, fold + 1)
            moments = _joined(moments, (self.count_F[here], self.mean_F[here], self.squares_F[here]))
        whole.count_F, whole.mean_F, whole.squares_F = moments
        return whole.of(0)


Moments = tuple[Floats, Floats, Floats]


def _joined(one: Moments, other: Moments) -> Moments:
    """Count, mean and squared deviations of two sets together."""
    count = one[0] + other[0]
    share, gap = other[0] / np.maximum(count, 1), other[1] - one[1]
    return count, one[1] + gap * share, one[2] + other[2] + gap**2 * one[0] * share
