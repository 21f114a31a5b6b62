"""Answers about the top K classes become logits of all classes, with the tail that such caches mean: a uniform rest.

Shapes: B batch, C classes, K kept classes.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.encoding import Encoding, decode

REST_SHARE = 0.05  # tails fall off below the K-th: on real logits, about here decodes as well as the exact mass
_FLOOR = 2.0**-25  # the largest probability that float16 rounds to 0
_MOST_OFF = 0.05  # by which a row may miss what probabilities can be; float16 rounds by less


def sparse_logits(arrays: dict[str, Tensor], labels_B: Tensor, num_classes: int) -> Tensor:
    """Dense logits of a head, a tail mass and, where known, the label's own log-probability.

    Args:
        arrays: ``index``, ``log_prob`` [B, K]; ``logsumexp``, ``log_tail_mass``, ``label_log_prob`` [B].
        labels_B: The labels that ``label_log_prob`` is about; -1 where it is not known.
        num_classes: C.

    Returns:
        float32 [B, C]: the head as it is, the label outside it as it is, the rest of the mass spread evenly over the
        other classes, none of them above the K-th.
    """
    top_k = arrays["index"].shape[1]
    encoding = Encoding(kind="topk", num_classes=num_classes, top_k=top_k, bits=16)
    return decode(arrays, labels_B, encoding, tail="uniform")


def from_probabilities(
    index_BK: npt.NDArray[np.integer], prob_BK: npt.NDArray[np.floating], num_classes: int
) -> dict[str, Tensor]:
    """Rounded probabilities of the top K classes, as ``sparse_logits`` takes them.

    What is left over for the other classes is 1 less the sum, which float16 has blurred: it lies within what the
    rounding allows, is not negative, and no other class may be above the K-th. Of that interval the point
    ``REST_SHARE`` above its lower end is taken; then all is scaled so that head and rest add to 1.

    Args:
        index_BK: Class ids, all different in a row, in any order.
        prob_BK: float16, or float32 with float16's precision.
        num_classes: C.

    Returns:
        ``index`` and ``log_prob`` best first, ``logsumexp`` 0 (a common shift of the logits is not known),
        ``log_tail_mass``, and ``label_log_prob`` NaN (not known).

    Raises:
        ValueError: Ids or numbers that are no probabilities of a row.
    """
    index_BK, prob_BK = index_BK.astype(np.int64), prob_BK.astype(np.float64)
    check_head(index_BK, num_classes)
    _refuse_rows(~(np.isfinite(prob_BK) & (prob_BK >= 0) & (prob_BK <= 1 + _MOST_OFF)).all(1), prob_BK)
    rounding_BK = np.spacing(prob_BK.astype(np.float16)).astype(np.float64) / 2
    total_B, rounding_B = prob_BK.sum(1), rounding_BK.sum(1)
    num_tail = num_classes - prob_BK.shape[1]
    highest_B = num_tail * (prob_BK + rounding_BK).min(1)  # no class of the tail is above the K-th
    left_B = 1 - total_B
    _refuse_rows((left_B < -_MOST_OFF) | (left_B - rounding_B > highest_B + _MOST_OFF), prob_BK)
    order = np.argsort(-prob_BK, axis=1, kind="stable")
    index_BK, prob_BK = np.take_along_axis(index_BK, order, 1), np.take_along_axis(prob_BK, order, 1)
    prob_BK = np.maximum(prob_BK, _FLOOR)
    rest_B = np.zeros(len(prob_BK))
    if num_tail:
        most_B = num_tail * prob_BK[:, -1]
        high_B = np.clip(left_B + rounding_B, _FLOOR, most_B)
        low_B = np.clip(left_B - rounding_B, 0, most_B)
        rest_B = low_B + REST_SHARE * (high_B - low_B)
    scale_B = prob_BK.sum(1) + rest_B
    with np.errstate(divide="ignore"):
        log_tail_mass_B = np.log(rest_B) - np.log(scale_B)
    return {
        "index": torch.from_numpy(index_BK),
        "log_prob": torch.from_numpy((np.log(prob_BK) - np.log(scale_B)[:, None]).astype(np.float32)),
        "logsumexp": torch.zeros(len(prob_BK)),
        "log_tail_mass": torch.from_numpy(log_tail_mass_B.astype(np.float32)),
        "label_log_prob": torch.full((len(prob_BK),), torch.nan),
    }


def _refuse_rows(wrong_B: npt.NDArray[np.bool_], prob_BK: npt.NDArray[np.floating]) -> None:
    if wrong_B.any():
        row = int(np.flatnonzero(wrong_B)[0])
        raise ValueError(
            f"row {row} runs from {prob_BK[row].min():g} to {prob_BK[row].max():g} and adds to {prob_BK[row].sum():g};"
            " expected probabilities at temperature 1 of the best of these classes"
        )


def check_head(index_BK: npt.NDArray[Any], num_classes: int) -> None:
    """Raises ValueError unless every row names different classes that exist."""
    if index_BK.size and not 0 <= int(index_BK.min()) <= int(index_BK.max()) < num_classes:
        wrong = index_BK.max() if index_BK.max() >= num_classes else index_BK.min()
        raise ValueError(f"class {wrong} of {num_classes}: the cache is about other classes")
    ordered = np.sort(index_BK, axis=1)
    twice = (ordered[:, 1:] == ordered[:, :-1]).any(1)
    if twice.any():
        raise ValueError(f"row {int(np.flatnonzero(twice)[0])} names a class twice: damaged")
