"""The torch side of an encoding: logits -> arrays of a store (here), arrays -> dense logits (`decoding`).

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

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.encoding.decode import head_logits
from logitbank.pipeline.encoding.kinds import Encoding
from logitbank.pipeline.encoding.packing import (
    affine_encode,
    float16_keeping_order,
    gap_encode,
    round_mantissa,
    to_float16,
)
from logitbank.pipeline.encoding.tail_fit import residual
from logitbank.pipeline.encoding.tail_predictor import TailPredictor


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
        predictor: Needed for "topk+tail", whose codes are residuals about its prediction; on any device.
        folds_B: Fold of each row, when the predictor holds one matrix per fold.

    Returns:
        The arrays named by `encoding.row_arrays()`, each [B, *row_shape].
    """
    _check(logits_BC, labels_B, encoding)
    logits_BC = logits_BC.detach().float()
    labels_B = labels_B.to(logits_BC.device).long()
    labelled_B = labels_B >= 0
    label_logit_B = logits_BC.gather(1, labels_B.clamp(min=0)[:, None]).squeeze(1)
    if encoding.kind == "dense":
        rank_B = torch.where(labelled_B, (logits_BC >= label_logit_B[:, None]).sum(1), 0)
        best_B = logits_BC.amax(1)
        log_sum_B = (logits_BC - best_B[:, None]).logsumexp(1)
        logsumexp_B = _check_finite(best_B + log_sum_B)
        arrays = _encode_dense(logits_BC, label_logit_B.where(labelled_B, -math.inf), logsumexp_B, encoding)
    else:
        best_BK, index_BK = torch.topk(logits_BC, encoding.top_k, dim=1)
        log_tail_B, log_head_B = _log_sums(logits_BC, best_BK, index_BK)
        log_sum_B = torch.logaddexp(log_head_B, log_tail_B)
        logsumexp_B = _check_finite(best_BK[:, 0] + log_sum_B)
        rank_B = torch.where(labelled_B, _rank(logits_BC, label_logit_B, best_BK), 0)
        arrays = {"index": index_BK, "log_tail_mass": log_tail_B - log_sum_B}
        arrays |= _encode_head(best_BK, logsumexp_B, rank_B, encoding)
    # less the best first: beside a large logsumexp float32 has no room for what is left
    label_log_prob_B = torch.where(labelled_B, label_logit_B - logits_BC.amax(1) - log_sum_B, math.nan)
    if encoding.kind != "dense":  # a label in the head is there already: here it takes only 6 bits of precision
        in_head_B = (arrays["index"] == labels_B[:, None]).any(1)
        label_log_prob_B = torch.where(in_head_B, round_mantissa(label_log_prob_B, 5), label_log_prob_B)
    arrays |= {"label_log_prob": to_float16(label_log_prob_B), "label_rank": rank_B}
    if "log_tail_mass" in arrays:
        log_tail_mass_B = to_float16(round_mantissa(arrays["log_tail_mass"], 8))
        arrays["log_tail_mass"] = log_tail_mass_B.clamp(max=-(2.0**-24))
    if "logsumexp" in encoding.row_arrays():
        arrays["logsumexp"] = round_mantissa(logsumexp_B, 10)
    if encoding.kind == "topk+tail":
        arrays["tail_code"] = _encode_tail(logits_BC, arrays, encoding, predictor, folds_B)
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


def _check_finite(logsumexp_B: Tensor) -> Tensor:
    if not torch.isfinite(logsumexp_B).all():
        row = int((~torch.isfinite(logsumexp_B)).nonzero()[0])
        raise ValueError(
            f"expected finite logits (-inf marks a masked class), found NaN, +inf or only -inf in row {row}"
        )
    return logsumexp_B


def _encode_dense(
    logits_BC: Tensor, label_logit_B: Tensor, logsumexp_B: Tensor, encoding: Encoding
) -> dict[str, Tensor]:
    if encoding.bits == 32:
        return {"logit": logits_BC}
    if encoding.bits == 16:
        return {"log_prob": float16_keeping_order(logits_BC, logsumexp_B, label_logit_B)}
    code_BC, scale_B, floor_B = affine_encode(logits_BC, logsumexp_B, label_logit_B)
    return {"log_prob_code": code_BC, "log_prob_scale": scale_B, "log_prob_floor": floor_B}


def _rank(logits_BC: Tensor, label_logit_B: Tensor, best_BK: Tensor) -> Tensor:
    """Number of classes at or above the label's logit, int64 [B]."""
    rank_B = (best_BK >= label_logit_B[:, None]).sum(1)
    low_R = (label_logit_B <= best_BK[:, -1]).nonzero().squeeze(1)
    rank_B[low_R] = (logits_BC[low_R] >= label_logit_B[low_R, None]).sum(1)
    return rank_B


def _encode_head(best_BK: Tensor, logsumexp_B: Tensor, rank_B: Tensor, encoding: Encoding) -> dict[str, Tensor]:
    if encoding.bits == 8:
        return {"log_prob_code": gap_encode(best_BK, logsumexp_B, rank_B)}
    label_B = best_BK.gather(1, (rank_B - 1).clamp(0, encoding.top_k - 1)[:, None]).squeeze(1)
    label_B = label_B.where(rank_B > 0, -math.inf)
    return {"log_prob": float16_keeping_order(best_BK, logsumexp_B, label_B)}


def _log_sums(logits_BC: Tensor, best_BK: Tensor, index_BK: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp outside and inside the head, less the best logit; each summed by itself so that nothing cancels."""
    best_B1 = best_BK[:, :1]
    tail_B = (logits_BC - best_B1).exp_().scatter_(1, index_BK, 0.0).sum(1)
    log_tail_B = tail_B.log()
    small_B = tail_B < 1e-30
    if small_B.any():
        small_BC = logits_BC[small_B] - best_B1[small_B]
        log_tail_B[small_B] = small_BC.scatter(1, index_BK[small_B], -math.inf).logsumexp(1)
    return log_tail_B, (best_BK - best_B1).logsumexp(1)


def _encode_tail(
    logits_BC: Tensor,
    arrays: Mapping[str, Tensor],
    encoding: Encoding,
    predictor: TailPredictor | None,
    folds_B: Tensor | None,
) -> Tensor:
    if predictor is None or predictor.basis is None:
        raise ValueError("encoding topk+tail needs a fitted tail predictor; pass the one from fit_predictor")
    predictor = predictor.to(logits_BC.device)
    assert predictor.basis is not None
    head = head_logits(arrays, encoding), arrays["index"].long()  # as a reader will see it
    residual_BC = residual(logits_BC, encoding.top_k, predictor, folds_B, head)
    fold_B = folds_B if predictor.num_folds > 1 else None
    return predictor.basis.encode(residual_BC, fold_B, encoding.tail_bytes)
