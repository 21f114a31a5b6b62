"""Arrays of a store -> dense teacher logits.

Shape suffixes: B rows, C classes; where an example is answered at L positions, B stands for [B, L]. Logs are natural;
everything is float32.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from logitbank.pipeline.encoding.kinds import Encoding
from logitbank.pipeline.encoding.settings import FINITE_RANGE, Tail, at_positions
from logitbank.pipeline.encoding.sparse import SparseLogits
from logitbank.pipeline.encoding.tail_predictor import TailPredictor


def with_tail_shift(
    arrays: Mapping[str, Tensor],
    labels_B: Tensor,
    encoding: Encoding,
    *,
    predictor: TailPredictor | None = None,
    folds_B: Tensor | None = None,
    tail: str = "predicted",
) -> dict[str, Tensor]:
    """The arrays with `tail_shift`, when the rule takes one and the store is of a version that did not keep it.

    Arguments as for `decode`, which gives the same logits from either form and is several times faster from
    this one.
    """
    if "tail_shift" in arrays:
        return dict(arrays)
    if labels_B.ndim > 1:
        flat, folds_P = _flat(arrays), at_positions(folds_B, labels_B)
        found = with_tail_shift(flat, labels_B.flatten(), encoding, predictor=predictor, folds_B=folds_P, tail=tail)
        return {name: array.reshape(*labels_B.shape, *array.shape[1:]) for name, array in found.items()}
    filled = Tail(rule=tail, predictor=predictor, folds_B=folds_B)
    shift_B = encoding.of_kind.tail_shift(arrays, labels_B, encoding, filled)
    return {**arrays, **({} if shift_B is None else {"tail_shift": shift_B})}


def decode(
    arrays: Mapping[str, Tensor],
    labels_B: Tensor,
    encoding: Encoding,
    *,
    predictor: TailPredictor | None = None,
    folds_B: Tensor | None = None,
    tail: str = "predicted",
    student_BC: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Dense teacher logits from the arrays of a store.

    Args:
        arrays: What `encode` or `with_tail_shift` returned, as tensors on one device.
        labels_B: Class ids [B], or [B, L], -1 where a row has no label.
        predictor, folds_B, tail, student_BC, temperature: As for `Tail`; an encoding of every class by itself ignores
            them. Folds are those of examples, [B], also where they have positions.

    Returns:
        Raw logits (log-probability + logsumexp), float32 [B, C], or [B, L, C]; -inf for a masked class (see `finite`).
    """
    if labels_B.ndim > 1:
        logits_PC = decode(
            _flat(arrays),
            labels_B.flatten(),
            encoding,
            predictor=predictor,
            folds_B=at_positions(folds_B, labels_B),
            tail=tail,
            student_BC=None if student_BC is None else student_BC.flatten(0, 1),
            temperature=temperature,
        )
        return logits_PC.reshape(*labels_B.shape, encoding.num_classes)
    filled = Tail(rule=tail, predictor=predictor, folds_B=folds_B, student_BC=student_BC, temperature=temperature)
    return encoding.of_kind.decode(arrays, labels_B, encoding, filled)


def sparse(
    arrays: Mapping[str, Tensor],
    labels_B: Tensor,
    encoding: Encoding,
    *,
    predictor: TailPredictor | None = None,
    folds_B: Tensor | None = None,
    tail: str = "predicted",
) -> SparseLogits | None:
    """What `finite` and `decode` give, without a block [B, C]; None where rows have no such form.

    Arguments as for `decode`, of rows [B] alone. Rows of a head have it, unless their tail follows the student or is
    predicted by a map that is no product, as it is up to `DENSE_CLASSES` classes.
    """
    filled = Tail(rule=tail, predictor=predictor, folds_B=folds_B)
    return encoding.of_kind.sparse(arrays, labels_B, encoding, filled)


def _flat(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Arrays [B, L, *row_shape] as those of B * L rows, in that order."""
    return {name: array.flatten(0, 1) for name, array in arrays.items()}


def finite(logits_BC: Tensor) -> Tensor:
    """The same logits with -inf (masked classes) raised to the row's best minus 1e4, for the losses."""
    looks = logits_BC.device.type == "cpu" and logits_BC.numel()  # it costs no waiting there, and most need no more
    if looks and logits_BC.amax() - logits_BC.amin() <= FINITE_RANGE:  # each is three times as fast as aminmax
        return logits_BC
    return torch.maximum(logits_BC, logits_BC.amax(-1, keepdim=True) - FINITE_RANGE)


def decode_log_prob(logits_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """Dense log-probabilities at a temperature, float32 [B, C], from the logits that `decode` returned."""
    return torch.log_softmax(logits_BC.float() / temperature, dim=-1)
