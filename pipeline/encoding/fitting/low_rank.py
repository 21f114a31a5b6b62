"""The affine map of a tail predictor in low-rank form, for very many classes.

No matrix of size [C, C] is ever built: the logits' principal directions come from as many rows as there is room for,
3,000 at most, and the ridge regression of the coordinates along them on the sparse heads, which takes all rows, is
solved by conjugate gradients.

Shape suffixes: B rows, C classes, K kept classes, D inner dimension.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from logitbank.pipeline.encoding.tail_predictor import FLOOR, Gauge

LOW_RANK = 128
RIDGES = (0.1, 1.0, 10.0)
Maps = tuple[Tensor, Tensor | None, Tensor]  # matrix [C, D], factor [D, C] or None (D = C), bias [C]


def regression_target(logits_BC: Tensor, best_BK: Tensor) -> Tensor:
    """What is regressed: logits clipped from below, zero mean in each row."""
    floor_B1 = best_BK[:, -1:].clamp(min=-1e6) - FLOOR
    target_BC = torch.maximum(logits_BC, floor_B1)
    return target_BC - target_BC.mean(1, keepdim=True)


@dataclass(frozen=True)
class Directions:
    """Where the logits of a teacher lie: bias [C], and principal directions [D, C], D = LOW_RANK."""

    bias_C: Tensor
    factor_DC: Tensor


@dataclass(frozen=True)
class Coordinates:
    """What a regression needs of some rows: their heads, and where their logits lie along the directions."""

    index_BK: Tensor
    best_BK: Tensor
    target_BD: Tensor


def principal_directions(train: Tensor, top_k: int) -> Directions:
    """Those of some rows, of which as many as there is room for are enough; fewer than D rows leave zeros."""
    target_BC = regression_target(train, torch.topk(train, top_k, dim=1).values)
    bias_C = target_BC.mean(0)
    target_BC -= bias_C
    some = target_BC[:: max(1, len(target_BC) // 3000)]
    values, left = torch.linalg.eigh((some @ some.T).double())
    kept = (values > values[-1] * 1e-9).nonzero().squeeze(1)[-LOW_RANK:]
    factor_DC = (left[:, kept] / values[kept].sqrt()).T.float() @ some
    return Directions(bias_C, torch.nn.functional.pad(factor_DC, (0, 0, 0, LOW_RANK - len(factor_DC))))


def coordinates(logits_BC: Tensor, top_k: int, directions: Directions) -> Coordinates:
    """Of any number of rows, without keeping their logits."""
    best_BK, index_BK = torch.topk(logits_BC, top_k, dim=1)
    target_BC = regression_target(logits_BC, best_BK)
    target_BC -= directions.bias_C
    return Coordinates(index_BK, best_BK, target_BC @ directions.factor_DC.T)


def fit_low_rank(parts: Sequence[Coordinates], directions: Directions, gauge: Gauge) -> list[Maps]:
    """Maps of rank at most LOW_RANK: ridge regressions of the coordinates on the heads, by conjugate gradients."""
    num_classes = len(directions.bias_C)
    index_BK, target_BD = torch.cat([p.index_BK for p in parts]), torch.cat([p.target_BD for p in parts])
    feature_BK = gauge.features(torch.cat([p.best_BK for p in parts]))
    typical = float(feature_BK.square().sum()) / num_classes

    def gram(ridge: float, matrix_CD: Tensor) -> Tensor:
        inner_BD = embedding_bag(index_BK, matrix_CD, per_sample_weights=feature_BK, mode="sum")
        back_CD = _transpose_apply(index_BK, feature_BK, inner_BD, len(matrix_CD))
        return back_CD + ridge * typical * matrix_CD

    right = _transpose_apply(index_BK, feature_BK, target_BD, num_classes)
    solved = [_conjugate_gradients(partial(gram, ridge), right) for ridge in RIDGES]
    return [(matrix_CD, directions.factor_DC, directions.bias_C) for matrix_CD in solved]


def _transpose_apply(index_BK: Tensor, weight_BK: Tensor, inner_BD: Tensor, num_classes: int) -> Tensor:
    out = torch.zeros((num_classes, inner_BD.shape[1]), device=inner_BD.device)
    for k in range(index_BK.shape[1]):
        out.index_add_(0, index_BK[:, k], inner_BD * weight_BK[:, k : k + 1])
    return out


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, steps: int = 30) -> Tensor:
    """Solves apply(x) = right for every column, float32 [C, D]."""
    solution, left_over = torch.zeros_like(right), right.clone()
    direction, error = left_over.clone(), left_over.square().sum(0)
    start = error.clone()
    for _ in range(steps):
        image = apply(direction)
        length = error / (direction * image).sum(0).clamp(min=1e-30)
        solution += length * direction
        left_over -= length * image
        before, error = error, left_over.square().sum(0)
        if bool((error <= 1e-8 * start).all()):
            break
        direction = left_over + error / before.clamp(min=1e-30) * direction
    return solution
