"""What every loss shares: temperatures, log-probabilities, label entries, and pieces that stay finite.

Shapes: B batch, C classes. Half precision is raised to float32 here, once; float64 stays float64.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Temperature: TypeAlias = float | Tensor
"""T > 0: one number for the batch, or one per row, shape [B]."""

EXCLUDED = -1e38
"""Logit of a class that a softmax leaves out: probability exactly 0, below any other logit, and no infinity."""

LARGEST_SQUARED = 1e15
"""Numbers beyond it are held where they are squared."""

MAX_EXPONENT = 40.0
"""Above it `bounded_exp` goes on as a straight line, so that exp never overflows float32."""

FARTHEST_LINE = 1e6
"""How far the straight line goes before its value is held."""


def raised(logits_BC: Tensor) -> Tensor:
    """Logits in float32 at least."""
    return logits_BC if logits_BC.dtype in (torch.float32, torch.float64) else logits_BC.float()


def scaled(logits_BC: Tensor, temperature: Temperature) -> Tensor:
    """Logits / T, with T one number or one number per row."""
    logits_BC = raised(logits_BC)
    if isinstance(temperature, Tensor):
        return logits_BC / temperature.to(logits_BC.dtype)[:, None]
    return logits_BC if temperature == 1.0 else logits_BC * (1.0 / temperature)


def log_probs(logits_BC: Tensor, temperature: Temperature = 1.0) -> Tensor:
    """log softmax(logits / T) over the classes."""
    return F.log_softmax(scaled(logits_BC, temperature), dim=1)


def probs(logits_BC: Tensor, temperature: Temperature = 1.0) -> Tensor:
    """softmax(logits / T) over the classes."""
    return F.softmax(scaled(logits_BC, temperature), dim=1)


def at(values_BC: Tensor, class_B: Tensor) -> Tensor:
    """The entry of one class in each row, shape [B]."""
    return values_BC.gather(1, class_B[:, None])[:, 0]


def without(logits_BC: Tensor, class_B: Tensor) -> Tensor:
    """Logits with one class of each row left out of any softmax that follows."""
    return logits_BC.scatter(1, class_B[:, None], EXCLUDED)


def dot(a_BC: Tensor, b_BC: Tensor) -> Tensor:
    """sum_c a_c b_c of each row, with no [B, C] product in memory."""
    rows_B: Tensor = torch.linalg.vecdot(a_BC, b_BC)
    return rows_B


def kl(log_p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """sum_c p_c (log p_c - log q_c) of each row."""
    return dot(log_p_BC.exp(), log_p_BC - log_q_BC)


def cross_entropy(p_BC: Tensor, log_q_BC: Tensor) -> Tensor:
    """-sum_c p_c log q_c of each row."""
    return -dot(p_BC, log_q_BC)


def mean_square(x_BC: Tensor) -> Tensor:
    """1/C sum_c x_c^2 of each row; beyond 1e30 it is held and has no gradient, so that it stays within float32."""
    return x_BC.square().mean(1).clamp(max=LARGEST_SQUARED**2)


def binary_kl(log_odds_p_B: Tensor, log_odds_q_B: Tensor) -> Tensor:
    """KL between two coins given by their log-odds; exact where a probability is within 1e-30 of 0 or 1."""
    yes_B, no_B = F.logsigmoid(log_odds_p_B), F.logsigmoid(-log_odds_p_B)
    return yes_B.exp() * (yes_B - F.logsigmoid(log_odds_q_B)) + no_B.exp() * (no_B - F.logsigmoid(-log_odds_q_B))


class _BoundedExp(torch.autograd.Function):
    """exp up to a limit and its tangent beyond, in two buffers instead of the six of plain operations."""

    @staticmethod
    def forward(x: Tensor, limit: Tensor | float) -> tuple[Tensor, Tensor]:
        beyond = (x - limit).clamp_(0.0, FARTHEST_LINE)
        slope = x.clamp(max=limit).exp_()
        return beyond.mul_(slope).add_(slope), slope

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.saved_tensors[0], None


def bounded_exp(x: Tensor, limit: float | Tensor = MAX_EXPONENT) -> Tensor:
    """exp(x) up to `limit`, its tangent beyond: finite, increasing, and its gradient never vanishes."""
    values, _ = _BoundedExp.apply(x, limit)  # type: ignore[no-untyped-call]
    assert isinstance(values, Tensor)
    return values
