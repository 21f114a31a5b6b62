"""Arrays of a store -> dense teacher logits: the only tail rule.

Shape suffixes: B rows, C classes, K kept classes. Logs are natural; everything is float32.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from pipeline.encoding_kinds import Encoding
from pipeline.packing import affine_decode, gap_decode
from pipeline.tail_predictor import TailPredictor, log_minus, shift_to_mass

TAIL_RULES = ("predicted", "bucket", "uniform", "renormalise")
_FINITE_RANGE = 1e4


def head_logits(arrays: Mapping[str, Tensor], encoding: Encoding) -> Tensor:
    """Raw logits of the kept classes, float32 [B, K], best first."""
    if encoding.bits == 16:
        return arrays["log_prob"].float() + arrays["logsumexp"].float()[:, None]
    relative_BK = gap_decode(arrays["log_prob_code"])
    best_B = arrays["best_logit"] if "best_logit" in arrays else _best_logit(relative_BK, arrays)
    return relative_BK + best_B[:, None]


def _best_logit(relative_BK: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
    log_head_mass_B = torch.log(-torch.expm1(arrays["log_tail_mass"].float()))
    return arrays["logsumexp"].float() + log_head_mass_B - relative_BK.logsumexp(1)


def prepare(
    arrays: Mapping[str, Tensor],
    labels_B: Tensor,
    encoding: Encoding,
    *,
    predictor: TailPredictor | None = None,
    folds_B: Tensor | None = None,
    chunk_rows: int = 4096,
) -> dict[str, Tensor]:
    """Adds to a slab's arrays what rule "predicted" would otherwise compute for every batch: 8 bytes a row.

    Returns:
        The arrays, for "topk" and "topk+tail" with float32 [B] `best_logit` and `tail_shift`. `decode` gives
        the same logits with them, several times faster.
    """
    if encoding.kind == "dense":
        return dict(arrays)
    best, shift = [], []
    for start in range(0, len(labels_B), chunk_rows):
        rows = slice(start, start + chunk_rows)
        part = {name: array[rows] for name, array in arrays.items()}
        folds = None if folds_B is None else folds_B[rows]
        head_BK, index_BK = head_logits(part, encoding), part["index"].long()
        best.append(head_BK[:, 0])
        shape_BC = _tail_shape(part, index_BK, head_BK, encoding, predictor, folds)
        shift.append(_tail_shift(shape_BC, part, labels_B[rows], index_BK, head_BK))
    if not best:
        return dict(arrays)
    return {**arrays, "best_logit": torch.cat(best), "tail_shift": torch.cat(shift)}


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
        arrays: What `encode` or `prepare` returned, as tensors on one device.
        labels_B: Class ids, -1 where a row has no label.
        predictor: The teacher's tail predictor, on that device; None falls back to a uniform tail.
        folds_B: Fold of each row, when the predictor holds one matrix per fold.
        tail: "predicted" (default); "uniform"; "bucket" (the tail takes the student's shape at the teacher's
            mass); "renormalise" (tail classes become impossible). Ignored by dense.
        student_BC: Student logits, only for "bucket"; no gradient flows into them.
        temperature: Only for "bucket": the temperature at which the tail's mass is exact.

    Returns:
        Raw logits (log-probability + logsumexp), float32 [B, C]; -inf for a masked class (see `finite`).
    """
    if tail not in TAIL_RULES:
        raise ValueError(f"expected a tail rule among {', '.join(TAIL_RULES)}, found {tail!r}")
    if encoding.kind == "dense":
        return _decode_dense(arrays, encoding)
    head_BK, index_BK = head_logits(arrays, encoding), arrays["index"].long()
    if tail == "renormalise":
        out_BC = torch.full((len(head_BK), encoding.num_classes), -math.inf, device=head_BK.device)
    else:
        predictor = None if tail == "uniform" else predictor
        shift_B = arrays.get("tail_shift") if tail == "predicted" else None
        out_BC = _tail_shape(arrays, index_BK, head_BK, encoding, predictor, folds_B, shift_B)
        if shift_B is None:
            out_BC += _tail_shift(out_BC, arrays, labels_B, index_BK, head_BK)[:, None]
        out_BC.clamp_(max=_cap(head_BK)[:, None])
    if tail == "bucket":
        if student_BC is None:
            raise ValueError("tail rule bucket needs the student's logits; pass student_BC")
        known_BC = _known(labels_B, index_BK, encoding.num_classes)
        out_BC = _bucket(out_BC, known_BC, student_BC.detach().float(), temperature)
    # The label, then the head: a label inside the head takes the head's value; without a label, the best's.
    label_B = torch.where(labels_B < 0, index_BK[:, 0], labels_B.long())
    label_logit_B = arrays["label_log_prob"] + arrays["logsumexp"]
    out_BC.scatter_(1, label_B[:, None], torch.minimum(label_logit_B, head_BK[:, -1])[:, None])
    return out_BC.scatter_(1, index_BK, head_BK)


def _tail_shape(
    arrays: Mapping[str, Tensor],
    index_BK: Tensor,
    head_BK: Tensor,
    encoding: Encoding,
    predictor: TailPredictor | None,
    folds_B: Tensor | None,
    shift_B: Tensor | None = None,
) -> Tensor:
    if predictor is not None:
        code = arrays.get("tail_code")
        return predictor.predict(index_BK, head_BK, folds_B, tail_code=code, shift_B=shift_B)
    shape_BC = torch.zeros((len(head_BK), encoding.num_classes), device=head_BK.device)
    return shape_BC if shift_B is None else shape_BC.add_(shift_B[:, None])


def _tail_shift(
    shape_BC: Tensor, arrays: Mapping[str, Tensor], labels_B: Tensor, index_BK: Tensor, head_BK: Tensor
) -> Tensor:
    """The shift that gives the tail (the label apart, if it is outside the head) its mass at T = 1."""
    outside_B = (labels_B >= 0) & ~(index_BK == labels_B[:, None]).any(1)
    logsumexp_B = arrays["logsumexp"].float()
    label_B = torch.minimum(arrays["label_log_prob"] + logsumexp_B, head_BK[:, -1])
    tail_B = arrays["log_tail_mass"].float() + logsumexp_B
    rest_B = log_minus(tail_B, torch.where(outside_B, label_B, -math.inf))
    return shift_to_mass(shape_BC, _known(labels_B, index_BK, shape_BC.shape[1]), rest_B, _cap(head_BK))


def _known(labels_B: Tensor, index_BK: Tensor, num_classes: int) -> Tensor:
    """True for the classes that are stored by themselves: the head and the label."""
    known_BC = torch.zeros((len(index_BK), num_classes), dtype=torch.bool, device=index_BK.device)
    label_B = torch.where(labels_B < 0, index_BK[:, 0], labels_B.long())
    return known_BC.scatter_(1, index_BK, True).scatter_(1, label_B[:, None], True)


def _cap(head_BK: Tensor) -> Tensor:
    """Just below the row's K-th, so that a label in the head stays above every class outside it."""
    return torch.nextafter(head_BK[:, -1], torch.tensor(-math.inf, device=head_BK.device))


def _decode_dense(arrays: Mapping[str, Tensor], encoding: Encoding) -> Tensor:
    if encoding.bits == 32:
        return arrays["logit"].float()
    if encoding.bits == 16:
        log_prob_BC = arrays["log_prob"].float()
    else:
        log_prob_BC = affine_decode(
            arrays["log_prob_code"], arrays["log_prob_scale"], arrays["log_prob_floor"]
        )
    return log_prob_BC + arrays["logsumexp"].float()[:, None]


def _bucket(tail_BC: Tensor, known_BC: Tensor, student_BC: Tensor, temperature: float) -> Tensor:
    log_mass_B1 = (tail_BC / temperature).masked_fill(known_BC, -math.inf).logsumexp(1, keepdim=True)
    shape_BC = (student_BC / temperature).masked_fill(known_BC, -math.inf)
    shape_BC = (shape_BC - shape_BC.logsumexp(1, keepdim=True)).nan_to_num(nan=-math.inf, neginf=-math.inf)
    return (shape_BC + log_mass_B1) * temperature


def finite(logits_BC: Tensor) -> Tensor:
    """The same logits with -inf (masked classes) raised to the row's best minus 1e4, for the losses."""
    return torch.maximum(logits_BC, logits_BC.amax(1, keepdim=True) - _FINITE_RANGE)


def decode_log_prob(logits_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """Dense log-probabilities at a temperature, float32 [B, C], from the logits that `decode` returned."""
    return torch.log_softmax(logits_BC.float() / temperature, dim=1)
