"""Arrays of a store -> dense teacher logits: the only tail rule.

Shape suffixes: B rows, C classes, K kept classes. Logs are natural; everything is float32.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from logitbank.pipeline.encoding.kinds import Encoding
from logitbank.pipeline.encoding.packing import affine_decode, below, gap_decode
from logitbank.pipeline.encoding.tail_predictor import TailPredictor, log_minus, shift_to_mass

TAIL_RULES = ("predicted", "bucket", "uniform", "renormalise")
_FINITE_RANGE = 1e4
_CHUNK = 256  # rows whose dense logits stay in a cache


def head_logits(arrays: Mapping[str, Tensor], encoding: Encoding) -> Tensor:
    """Raw logits of the kept classes, float32 [B, K], best first."""
    if encoding.bits == 16:
        return arrays["log_prob"].float() + arrays["logsumexp"].float()[:, None]
    relative_BK = gap_decode(arrays["log_prob_code"])
    log_head_mass_B = torch.log(-torch.expm1(arrays["log_tail_mass"].float()))
    offset_B = arrays["logsumexp"].float() + log_head_mass_B - relative_BK.logsumexp(1)
    return relative_BK + offset_B[:, None]


def prepare(
    arrays: Mapping[str, Tensor],
    labels_B: Tensor,
    encoding: Encoding,
    *,
    predictor: TailPredictor | None = None,
    folds_B: Tensor | None = None,
    tail: str = "predicted",
) -> dict[str, Tensor]:
    """What `decode` needs of a slab, with everything computed that does not depend on the batch.

    Arguments as for `decode`, which gives the same logits from either form and is several times faster from
    this one. Nothing is copied but 12 bytes a row, and 8 are left out.

    Returns:
        Dense: the arrays. Else the arrays without logsumexp, log_tail_mass and label_log_prob, whose place
        `row_terms_*` float32 [B, 3] takes: the head's offset, the tail's shift, the label's logit. The name
        says which tail they are for ("bucket" shares that of "predicted"), and `decode` takes no other.
    """
    _check_rule(tail)
    if encoding.kind == "dense":
        return dict(arrays)
    terms = torch.empty((len(labels_B), 3), device=labels_B.device)
    for start in range(0, len(labels_B), _CHUNK):
        rows = slice(start, start + _CHUNK)
        part = {name: array[rows] for name, array in arrays.items()}
        folds = None if folds_B is None else folds_B[rows]
        terms[rows] = _row_terms(part, labels_B[rows], encoding, predictor, folds, tail)
    spent = ("logsumexp", "log_tail_mass", "label_log_prob")
    return {
        **{name: array for name, array in arrays.items() if name not in spent},
        _terms_name(tail, predictor): terms,
    }


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
    _check_rule(tail)
    if encoding.kind == "dense":
        return _decode_dense(arrays, encoding)
    terms_name = _terms_name(tail, predictor)
    if any(name.startswith("row_terms_") and name != terms_name for name in arrays):
        raise ValueError(f"expected a slab prepared for {terms_name[10:]} tails, found another; prepare it for {tail}")
    if terms_name not in arrays:
        arrays = prepare(arrays, labels_B, encoding, predictor=predictor, folds_B=folds_B, tail=tail)
    offset_B, shift_B, label_logit_B = arrays[terms_name].unbind(1)
    values_BK = gap_decode(arrays["log_prob_code"]) if encoding.bits == 8 else arrays["log_prob"].float()
    head_BK, index_BK = values_BK.add_(offset_B[:, None]), arrays["index"].long()
    if tail == "renormalise":
        out_BC = torch.full((len(head_BK), encoding.num_classes), -math.inf, device=head_BK.device)
    elif predictor is None or tail == "uniform":
        out_BC = shift_B[:, None].repeat(1, encoding.num_classes)
    else:
        code = arrays.get("tail_code")
        out_BC = predictor.predict(index_BK, head_BK, folds_B, tail_code=code, shift_B=shift_B)
    out_BC.clamp_(max=below(head_BK[:, -1])[:, None])
    label_B = _label_or_best(labels_B, index_BK)
    if tail == "bucket":
        if student_BC is None:
            raise ValueError("tail rule bucket needs the student's logits; pass student_BC")
        known_BC = torch.zeros_like(out_BC, dtype=torch.bool).scatter_(1, index_BK, True)
        known_BC.scatter_(1, label_B[:, None], True)
        out_BC = _bucket(out_BC, known_BC, student_BC.detach().float(), temperature)
    # The label, then the head: a label inside the head takes the head's value.
    out_BC.scatter_(1, label_B[:, None], label_logit_B[:, None])
    return out_BC.scatter_(1, index_BK, head_BK)


def _check_rule(tail: str) -> None:
    if tail not in TAIL_RULES:
        raise ValueError(f"expected a tail rule among {', '.join(TAIL_RULES)}, found {tail!r}")


def _terms_name(tail: str, predictor: TailPredictor | None) -> str:
    if tail == "renormalise":
        return "row_terms_renormalise"
    return "row_terms_uniform" if tail == "uniform" or predictor is None else "row_terms_predicted"


def _label_or_best(labels_B: Tensor, index_BK: Tensor) -> Tensor:
    """The label, or the best class of a row without one: writing there changes nothing."""
    return torch.where(labels_B < 0, index_BK[:, 0], labels_B)


def _row_terms(
    arrays: Mapping[str, Tensor],
    labels_B: Tensor,
    encoding: Encoding,
    predictor: TailPredictor | None,
    folds_B: Tensor | None,
    tail: str,
) -> Tensor:
    """The terms of `prepare`: head offset, shift that makes the tail's mass exact at T = 1, label logit."""
    head_BK, index_BK = head_logits(arrays, encoding), arrays["index"].long()
    logsumexp_B = arrays["logsumexp"].float()
    label_logit_B = torch.minimum(arrays["label_log_prob"] + logsumexp_B, below(head_BK[:, -1]))
    offset_B = head_BK[:, 0] if encoding.bits == 8 else logsumexp_B
    if tail == "renormalise":
        return torch.stack([offset_B, torch.zeros_like(offset_B), label_logit_B], 1)
    outside_B = (labels_B >= 0) & ~(index_BK == labels_B[:, None]).any(1)
    known = torch.cat([index_BK, _label_or_best(labels_B, index_BK)[:, None]], 1)
    tail_B = arrays["log_tail_mass"].float() + logsumexp_B
    rest_B = log_minus(tail_B, torch.where(outside_B, label_logit_B, -math.inf))
    if predictor is None or tail == "uniform":
        count_B = encoding.num_classes - encoding.top_k - outside_B.long()
        shift_B = torch.where(count_B > 0, rest_B - count_B.log(), -math.inf)
    else:
        code = arrays.get("tail_code")
        shape_BC = predictor.predict(index_BK, head_BK, folds_B, tail_code=code)
        shift_B = shift_to_mass(shape_BC, known, rest_B, below(head_BK[:, -1]))
    return torch.stack([offset_B, shift_B, label_logit_B], 1)


def _decode_dense(arrays: Mapping[str, Tensor], encoding: Encoding) -> Tensor:
    if encoding.bits == 32:
        return arrays["logit"].float()
    if encoding.bits == 16:
        log_prob_BC = arrays["log_prob"].float()
    else:
        log_prob_BC = affine_decode(arrays["log_prob_code"], arrays["log_prob_scale"], arrays["log_prob_floor"])
    return log_prob_BC + arrays["logsumexp"].float()[:, None]


def _bucket(tail_BC: Tensor, known_BC: Tensor, student_BC: Tensor, temperature: float) -> Tensor:
    log_mass_B1 = (tail_BC / temperature).masked_fill(known_BC, -math.inf).logsumexp(1, keepdim=True)
    shape_BC = (student_BC / temperature).masked_fill(known_BC, -math.inf)
    shape_BC = (shape_BC - shape_BC.logsumexp(1, keepdim=True)).nan_to_num(nan=-math.inf, neginf=-math.inf)
    return (shape_BC + log_mass_B1) * temperature


def finite(logits_BC: Tensor) -> Tensor:
    """The same logits with -inf (masked classes) raised to the row's best minus 1e4, for the losses."""
    if logits_BC.device.type == "cpu" and logits_BC.numel():  # where it costs no waiting, most batches need one look
        low, high = logits_BC.aminmax()
        if high - low <= _FINITE_RANGE:
            return logits_BC
    return torch.maximum(logits_BC, logits_BC.amax(1, keepdim=True) - _FINITE_RANGE)


def decode_log_prob(logits_BC: Tensor, temperature: float = 1.0) -> Tensor:
    """Dense log-probabilities at a temperature, float32 [B, C], from the logits that `decode` returned."""
    return torch.log_softmax(logits_BC.float() / temperature, dim=1)
