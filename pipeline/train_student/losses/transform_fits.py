"""What target transforms are fitted by: labelled rows whose teacher has not seen them.

Each fit is also judged: the NLL of the labels before, and after by what the rows of other folds alone would have given.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

RIDGE = 1e-4
"""Penalty on log a and b for each row: keeps the scales of classes finite that are told apart without a mistake."""

LARGEST_LOG_SCALE = 4.0
MOST_CLASSES = 4096  # of a C x C matrix, 134 MB


class Fitted(NamedTuple):
    """Tensors by name of an argument, and numbers to be told."""

    tensors: dict[str, Tensor]
    found: dict[str, float]


Fit = Callable[[Tensor, Tensor, Tensor, Mapping[str, Any]], Fitted]
"""Of logits [N, C] in float64, labels [N], folds [N] and the transform's options."""


def fit_scaling(logits_NC: Tensor, labels_N: Tensor, folds_N: Tensor, options: Mapping[str, Any]) -> Fitted:
    """Temperature or vector scaling by the least NLL."""
    per_class = options["method"] == "vector"
    log_scale, shift = _least_nll(logits_NC, labels_N, per_class=per_class)
    after = 0.0
    for kept_N in _other_folds(folds_N):
        own = _least_nll(logits_NC[kept_N], labels_N[kept_N], per_class=per_class, start=(log_scale, shift))
        after += _nll_sum(logits_NC[~kept_N] * own[0].exp() + own[1], labels_N[~kept_N])
    found = {} if per_class else {"T": _short(float((-log_scale).exp()))}
    num_classes = logits_NC.shape[1]
    tensors = {"scale_C": log_scale.exp().expand(num_classes).clone(), "shift_C": shift.expand(num_classes).clone()}
    return Fitted(tensors, found | _judged(logits_NC, labels_N, after))


def fit_transition(logits_NC: Tensor, labels_N: Tensor, folds_N: Tensor, options: Mapping[str, Any]) -> Fitted:
    """The matrix from what the teacher says to the labels."""
    num_classes = logits_NC.shape[1]
    if num_classes > MOST_CLASSES:
        raise ValueError(
            f"noise_transition holds a matrix of all pairs of classes, at most {MOST_CLASSES} of them, found"
            f" {num_classes}; leave it out"
        )
    p_NC = F.softmax(logits_NC, dim=1)
    strength, prior = float(options["strength"]), float(options["prior"])
    after = 0.0
    for kept_N in _other_folds(folds_N):
        transition_CC = _transition(p_NC[kept_N], labels_N[kept_N], prior)
        moved_NC = (1.0 - strength) * p_NC[~kept_N] + strength * (p_NC[~kept_N] @ transition_CC)
        after += _nll_sum(moved_NC.clamp(min=torch.finfo(torch.float32).tiny).log(), labels_N[~kept_N])
    transition_CC = _transition(p_NC, labels_N, prior)
    found = {"kept": _short(float(transition_CC.diagonal().mean()))}
    return Fitted({"transition_CC": transition_CC}, found | _judged(logits_NC, labels_N, after))


def _transition(p_NC: Tensor, labels_N: Tensor, prior: float) -> Tensor:
    num_classes = p_NC.shape[1]
    counts_CC = torch.zeros(num_classes, num_classes, dtype=p_NC.dtype).index_add_(0, labels_N, p_NC).T
    smoothed_CC = counts_CC + prior * torch.eye(num_classes, dtype=p_NC.dtype)
    return smoothed_CC / smoothed_CC.sum(1, keepdim=True)


def _least_nll(
    logits_NC: Tensor, labels_N: Tensor, *, per_class: bool, start: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """log a and b: [C] each, or one number and 0."""
    size = logits_NC.shape[1] if per_class else 1
    zero = torch.zeros(size, dtype=logits_NC.dtype)
    log_scale, shift = (zero.clone(), zero.clone()) if start is None else (start[0].clone(), start[1].clone())
    searched = [log_scale.requires_grad_(), shift.requires_grad_()] if per_class else [log_scale.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        searched, max_iter=100, tolerance_grad=1e-9, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        bounded = log_scale.clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE)
        loss = F.cross_entropy(logits_NC * bounded.exp() + shift, labels_N)
        loss = loss + RIDGE * sum(((part**2).mean() for part in searched), torch.zeros_like(loss))
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.enable_grad():
        optimizer.step(closure)  # type: ignore[no-untyped-call]
    return log_scale.detach().clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE), shift.detach()


def _other_folds(folds_N: Tensor) -> list[Tensor]:
    """For each fold that has rows, the rows of all others, bool [N]."""
    return [folds_N != fold for fold in torch.unique(folds_N)]


def _judged(logits_NC: Tensor, labels_N: Tensor, after: float) -> dict[str, float]:
    number = len(labels_N)
    return {
        "fitted_rows": number,
        "nll_before": _short(_nll_sum(logits_NC, labels_N) / number),
        "nll_after": _short(after / number),
    }


def _nll_sum(logits_NC: Tensor, labels_N: Tensor) -> float:
    return float(F.cross_entropy(logits_NC, labels_N, reduction="sum"))


def _short(value: float) -> float:
    """Four digits: the same on every machine, whose last bits are not."""
    return float(f"{value:.4g}")
