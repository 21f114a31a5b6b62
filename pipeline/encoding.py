"""The torch side of an encoding: logits -> arrays of a store, arrays -> dense logits. The only tail rule.

Shape suffixes: B rows, C classes, K kept classes. Logs are natural, temperatures are in logit units, and
every number is computed in float32 before it is rounded.

What a row stores (`Encoding.row_arrays`), and what holds when it is decoded:
- the head, the K best classes, best first: exact up to the rounding of the log-probabilities;
- the label's own log-probability, also outside the head (NaN: unlabelled), and its rank, the number of
  classes with logit >= the label's, the label's own class included (0: unlabelled);
- the tail, every other class: its mass at T = 1 exact, its shape by rule. No tail logit exceeds the row's
  K-th;
- a class below the label never decodes at or above it, and one at or above it never decodes below it, for
  every class that is stored by itself (head; dense).
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pipeline.packing import (
    affine_decode,
    affine_encode,
    float16_keeping_order,
    gap_decode,
    gap_encode,
    least_step,
    round_mantissa,
    smallest_uint,
    to_float16,
)
from pipeline.tail_predictor import TailPredictor
from stores import RowArray

TailRule = Literal["predicted", "bucket", "uniform", "renormalise"]
TAIL_RULES: tuple[str, ...] = get_args(TailRule)
KINDS = ("topk", "topk+tail", "dense")
_BITS = {"topk": (8, 16), "topk+tail": (8, 16), "dense": (8, 16, 32)}
_FINITE_RANGE = 1e4


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What is kept of a row of logits.

    Args:
        kind: "topk", "topk+tail" or "dense".
        num_classes: C.
        top_k: K, the classes kept exactly (0 for dense).
        tail_bits: 1-4 for "topk+tail", else 0.
        bits: Bits of a log-probability: 8 (default) or 16, for dense also 32, which is lossless.
    """

    kind: str
    num_classes: int
    top_k: int = 0
    tail_bits: int = 0
    bits: int = 8

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected an encoding among {', '.join(KINDS)}, found {self.kind!r}")
        if not 2 <= self.num_classes <= 2**31:
            raise ValueError(f"expected 2 to 2^31 classes, found {self.num_classes}")
        if self.bits not in _BITS[self.kind]:
            raise ValueError(f"expected bits among {_BITS[self.kind]} for {self.kind}, found {self.bits}")
        if self.kind == "dense":
            if self.top_k or self.tail_bits:
                raise ValueError("dense stores every class; leave out top_k and tail_bits")
            return
        if not 1 <= self.top_k <= self.num_classes:
            raise ValueError(f"expected top_k from 1 to {self.num_classes} (the classes), found {self.top_k}")
        allowed = range(1, 5) if self.kind == "topk+tail" else range(1)
        if self.tail_bits not in allowed:
            raise ValueError(
                f"expected tail_bits among {list(allowed)} for {self.kind}, found {self.tail_bits}"
            )

    def attributes(self) -> dict[str, Any]:
        """JSON-able description; `from_attributes` is its inverse."""
        return asdict(self)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> "Encoding":
        """The encoding that `attributes` describes; ValueError when it holds what is not known here."""
        known = set(cls.__dataclass_fields__)
        if unknown := set(attributes) - known:
            raise ValueError(
                f"expected an encoding with {sorted(known)}, found also {sorted(unknown)}; update the reader"
            )
        return cls(**{name: attributes[name] for name in attributes})

    def row_arrays(self) -> dict[str, RowArray]:
        """The arrays a row is stored in: name -> dtype and shape of one row."""
        per_row = {
            "label_log_prob": RowArray(dtype="float16"),
            "label_rank": RowArray(dtype=smallest_uint(self.num_classes)),
        }
        if self.kind == "dense" and self.bits == 32:
            return {"logit": RowArray(dtype="float32", row_shape=(self.num_classes,)), **per_row}
        per_row["logsumexp"] = RowArray(dtype="float32")
        if self.kind == "dense" and self.bits == 16:
            return {"log_prob": RowArray(dtype="float16", row_shape=(self.num_classes,)), **per_row}
        if self.kind == "dense":
            per_row["log_prob_scale"] = RowArray(dtype="float32")
            per_row["log_prob_floor"] = RowArray(dtype="float32")
            return {"log_prob_code": RowArray(dtype="uint8", row_shape=(self.num_classes,)), **per_row}
        per_row["log_tail_mass"] = RowArray(dtype="float16")
        head = {"index": RowArray(dtype=smallest_uint(self.num_classes - 1), row_shape=(self.top_k,))}
        if self.bits == 16:
            head["log_prob"] = RowArray(dtype="float16", row_shape=(self.top_k,))
        else:
            head["log_prob_code"] = RowArray(dtype="uint8", row_shape=(self.top_k,))
        return {**head, **per_row}


def encode(
    logits_BC: Tensor,
    labels_B: Tensor,
    encoding: Encoding,
    *,
    predictor: TailPredictor | None = None,
    folds_B: Tensor | None = None,
) -> dict[str, np.ndarray]:
    """Turns the teacher's raw logits into the arrays of a store, on the logits' own device.

    Args:
        logits_BC: Raw logits, any float dtype; -inf marks a class that is masked.
        labels_B: Class ids, -1 where a row has no label.
        predictor: Needed for "topk+tail", whose codes are residuals about its prediction.
        folds_B: Fold of each row, when the predictor holds one matrix per fold.

    Returns:
        The arrays named by `encoding.row_arrays()`, each [B, *row_shape].
    """
    _check(logits_BC, labels_B, encoding)
    logits_BC = logits_BC.detach().float()
    labels_B = labels_B.to(logits_BC.device).long()
    labelled_B = labels_B >= 0
    label_logit_B = logits_BC.gather(1, labels_B.clamp(min=0)[:, None]).squeeze(1)
    rank_B = torch.where(labelled_B, (logits_BC >= label_logit_B[:, None]).sum(1), 0)
    if encoding.kind == "dense":
        logsumexp_B = torch.logsumexp(logits_BC, 1)
        arrays = _encode_dense(
            logits_BC, torch.where(labelled_B, label_logit_B, -math.inf), logsumexp_B, encoding
        )
    else:
        arrays, logsumexp_B = _encode_head(logits_BC, rank_B, encoding)
    if not torch.isfinite(logsumexp_B).all():
        row = int((~torch.isfinite(logsumexp_B)).nonzero()[0])
        raise ValueError(
            f"expected finite logits (-inf marks a masked class), found NaN, +inf or only -inf in row {row}"
        )
    label_log_prob_B = torch.where(labelled_B, label_logit_B - logsumexp_B, math.nan)
    arrays |= {"label_log_prob": to_float16(label_log_prob_B), "label_rank": rank_B}
    if "logsumexp" in encoding.row_arrays():
        arrays["logsumexp"] = round_mantissa(logsumexp_B, 10)
    return {name: arrays[name].cpu().numpy().astype(row.dtype) for name, row in encoding.row_arrays().items()}


def _check(logits_BC: Tensor, labels_B: Tensor, encoding: Encoding) -> None:
    expected = (labels_B.shape[0], encoding.num_classes)
    if tuple(logits_BC.shape) != expected:
        raise ValueError(
            f"expected logits {list(expected)}, found {list(logits_BC.shape)}; check --num-classes and labels"
        )
    low, high = (int(labels_B.min()), int(labels_B.max())) if len(labels_B) else (-1, -1)
    if not -1 <= low <= high < encoding.num_classes:
        raise ValueError(f"expected labels from -1 to {encoding.num_classes - 1}, found {low} to {high}")


def _encode_dense(
    logits_BC: Tensor, label_logit_B: Tensor, logsumexp_B: Tensor, encoding: Encoding
) -> dict[str, Tensor]:
    if encoding.bits == 32:
        return {"logit": logits_BC}
    if encoding.bits == 16:
        return {"log_prob": float16_keeping_order(logits_BC, logsumexp_B, label_logit_B)}
    code_BC, scale_B, floor_B = affine_encode(logits_BC, logsumexp_B, label_logit_B)
    return {"log_prob_code": code_BC, "log_prob_scale": scale_B, "log_prob_floor": floor_B}


def _encode_head(logits_BC: Tensor, rank_B: Tensor, encoding: Encoding) -> tuple[dict[str, Tensor], Tensor]:
    best_BK, index_BK = torch.topk(logits_BC, encoding.top_k, dim=1)
    log_tail_B, log_head_B = _log_sums(logits_BC, best_BK, index_BK)
    logsumexp_B = torch.logaddexp(log_head_B, log_tail_B)
    arrays = {"index": index_BK, "log_tail_mass": to_float16(log_tail_B - logsumexp_B).clamp(max=-(2.0**-24))}
    if encoding.bits == 16:
        label_B = best_BK.gather(1, (rank_B - 1).clamp(0, encoding.top_k - 1)[:, None]).squeeze(1)
        label_B = torch.where(rank_B > 0, label_B, -math.inf)
        arrays["log_prob"] = float16_keeping_order(best_BK, logsumexp_B, label_B)
    else:
        arrays["log_prob_code"] = gap_encode(best_BK, logsumexp_B, rank_B)
    return arrays, logsumexp_B


def _log_sums(logits_BC: Tensor, best_BK: Tensor, index_BK: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp outside and inside the head, each summed by itself so that nothing cancels."""
    best_B1 = best_BK[:, :1]
    tail_B = (logits_BC - best_B1).exp_().scatter_(1, index_BK, 0.0).sum(1)
    log_tail_B = tail_B.log() + best_B1.squeeze(1)
    small_B = tail_B < 1e-30
    if small_B.any():
        log_tail_B[small_B] = logits_BC[small_B].scatter(1, index_BK[small_B], -math.inf).logsumexp(1)
    return log_tail_B, best_BK.logsumexp(1)


def head_log_prob(arrays: Mapping[str, Tensor], encoding: Encoding) -> Tensor:
    """Log-probabilities of the kept classes, float32 [B, K], best first."""
    if "log_prob" in arrays:
        return arrays["log_prob"].float()
    relative_BK = gap_decode(arrays["log_prob_code"])
    log_head_mass_B = torch.log(-torch.expm1(arrays["log_tail_mass"].float()))
    return relative_BK + (log_head_mass_B - relative_BK.logsumexp(1))[:, None]


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
        arrays: What `encode` returned, as tensors on one device.
        labels_B: Class ids, -1 where a row has no label.
        predictor: The teacher's tail predictor; None falls back to a uniform tail.
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
    head_BK, index_BK = head_log_prob(arrays, encoding), arrays["index"].long()
    label_outside_B = (labels_B >= 0) & ~(index_BK == labels_B[:, None]).any(1)
    label_B = torch.minimum(arrays["label_log_prob"].float(), head_BK[:, -1])
    known_BC = torch.zeros((len(head_BK), encoding.num_classes), dtype=torch.bool, device=head_BK.device)
    known_BC.scatter_(1, index_BK, True)
    label_B1 = labels_B.clamp(min=0).long()[:, None]
    known_BC.scatter_(1, label_B1, known_BC.gather(1, label_B1) | label_outside_B[:, None])
    log_rest_B = _log_minus(arrays["log_tail_mass"].float(), torch.where(label_outside_B, label_B, -math.inf))
    if tail == "renormalise":
        out_BC = torch.full(known_BC.shape, -math.inf, device=head_BK.device)
    else:
        if predictor is not None and tail != "uniform":
            shape_BC = predictor.predict(index_BK, head_BK, folds_B)
        else:
            shape_BC = torch.zeros(known_BC.shape, device=head_BK.device)
        strict_B = arrays["label_rank"].long() == encoding.top_k
        cap_B = head_BK[:, -1] - torch.where(strict_B, least_step(arrays["logsumexp"]), 0.0)
        out_BC = _shift_to_mass(shape_BC, known_BC, log_rest_B, cap_B)
    if tail == "bucket":
        if student_BC is None:
            raise ValueError("tail rule bucket needs the student's logits; pass student_BC")
        out_BC = _bucket(out_BC, known_BC, student_BC.detach().float(), temperature)
    out_BC.scatter_(
        1, label_B1, torch.where(label_outside_B[:, None], label_B[:, None], out_BC.gather(1, label_B1))
    )
    return out_BC.scatter_(1, index_BK, head_BK) + arrays["logsumexp"].float()[:, None]


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


def _log_minus(log_a_B: Tensor, log_b_B: Tensor) -> Tensor:
    """log(exp(a) - exp(b)), with at least 2^-11 of exp(a) left: less than float16's rounding is noise."""
    gap_B = (log_a_B - log_b_B).clamp(min=2.0**-11)
    return torch.where(torch.isneginf(log_a_B), log_a_B, log_a_B + torch.log(-torch.expm1(-gap_B)))


def _shift_to_mass(shape_BC: Tensor, known_BC: Tensor, log_mass_B: Tensor, cap_B: Tensor) -> Tensor:
    """One shift per row gives the classes not known the mass exp(log_mass); none exceeds the cap."""
    cap_B1 = cap_B[:, None]
    free_BC = shape_BC.masked_fill(known_BC, -math.inf)
    shift_B1 = (log_mass_B - free_BC.logsumexp(1))[:, None].nan_to_num(nan=0.0)
    out_BC = free_BC + shift_B1
    for _ in range(8):
        over_BC = out_BC > cap_B1
        if not over_BC.any():
            break
        capped_BC = torch.where(over_BC, cap_B1, -math.inf)
        left_B = _log_minus(log_mass_B, capped_BC.logsumexp(1))
        under_B = out_BC.masked_fill(over_BC, -math.inf).logsumexp(1)
        raise_B1 = (left_B - under_B)[:, None].nan_to_num(nan=0.0, posinf=0.0).clamp(min=0)
        out_BC = torch.minimum(out_BC + raise_B1 * over_BC.any(1, keepdim=True), cap_B1)
    return torch.minimum(out_BC, cap_B1)


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
