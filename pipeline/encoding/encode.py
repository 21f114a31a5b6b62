"""Logits -> arrays of a store, the way there; `decode` is the way back.

What a row stores (`Encoding.row_arrays`), and what holds when it is decoded:
- the head, the K best classes, best first: exact up to the rounding of the log-probabilities;
- the label's own log-probability, also outside the head (NaN: unlabelled), and its rank, the number of
  classes with logit >= the label's, the label's own class included (0: unlabelled);
- the tail, every other class: its mass at T = 1 exact, its shape by rule. No tail logit exceeds the row's
  K-th;
- a class below the label never decodes at or above it, and one at or above it never decodes below it, for
  every class that is stored by itself (head; dense).

Logs are natural, temperatures are in logit units, and every number is computed in float32 before it is rounded.
An answer at a position of an example is a row like any other.

Shape suffixes: B rows, C classes; where an example is answered at L positions, B stands for [B, L].
"""

import numpy as np
from torch import Tensor

from logitbank.pipeline.encoding.kinds import Encoding
from logitbank.pipeline.encoding.settings import LabelledLogits, Tail, at_positions
from logitbank.pipeline.encoding.tail_predictor import TailPredictor


def encode(
    logits_BC: Tensor,
    labels_B: Tensor,
    encoding: Encoding,
    *,
    predictor: TailPredictor | None = None,
    folds_B: Tensor | None = None,
    shifted: bool = False,
) -> dict[str, np.ndarray]:
    """Turns the teacher's raw logits into the arrays of a store, on the logits' own device.

    Args:
        logits_BC: Raw logits [B, C], or [B, L, C], any float dtype; -inf marks a class that is masked.
        labels_B: Class ids [B], or [B, L], -1 where a row has no label.
        predictor: Needed for "topk+tail", whose codes are residuals about its prediction; on any device.
        folds_B: Fold of each example, [B], when the predictor holds one matrix per fold.
        shifted: Give `tail_shift` as well, which a reader would compute from the others and the predictor.

    Returns:
        The arrays named by `encoding.row_arrays(shifted=shifted)`, each [B, *row_shape], or [B, L, *row_shape].

    Raises:
        ValueError: Other shapes, labels that are no classes, or logits that are no numbers.
    """
    _check(logits_BC, labels_B, encoding)
    if labels_B.ndim > 1:
        flat = encode(
            logits_BC.flatten(0, 1),
            labels_B.flatten(),
            encoding,
            predictor=predictor,
            folds_B=at_positions(folds_B, labels_B),
            shifted=shifted,
        )
        return {name: array.reshape(*labels_B.shape, *array.shape[1:]) for name, array in flat.items()}
    rows = LabelledLogits(logits_BC.detach().float(), labels_B.to(logits_BC.device).long())
    arrays = encoding.of_kind.encode(rows, encoding, Tail(predictor=predictor, folds_B=folds_B))
    if shifted and predictor is not None:
        tail = Tail(predictor=predictor.to(logits_BC.device), folds_B=folds_B)
        shift_B = encoding.of_kind.tail_shift(arrays, rows.labels_B, encoding, tail)
        arrays |= {} if shift_B is None else {"tail_shift": shift_B}
    row_arrays = encoding.row_arrays(shifted=shifted)
    return {name: arrays[name].cpu().numpy().astype(row.dtype) for name, row in row_arrays.items()}


def _check(logits_BC: Tensor, labels_B: Tensor, encoding: Encoding) -> None:
    expected = (*labels_B.shape, encoding.num_classes)
    if tuple(logits_BC.shape) != expected:
        raise ValueError(
            f"expected logits {list(expected)}, found {list(logits_BC.shape)}; check --num-classes and labels"
        )
    low, high = (int(labels_B.min()), int(labels_B.max())) if labels_B.numel() else (-1, -1)
    if not -1 <= low <= high < encoding.num_classes:
        raise ValueError(f"expected labels from -1 to {encoding.num_classes - 1}, found {low} to {high}")
