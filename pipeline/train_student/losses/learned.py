"""What objectives learn beside the student: temperatures, and how much each term weighs. Shapes: B batch."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

LARGEST_LOG_VARIANCE = 6.0
"""Weights that are learned lie between exp(-6) and exp(6)."""


class _Scaled(torch.autograd.Function):
    """The same number, whose gradient is multiplied by a factor."""

    @staticmethod
    def forward(value: Tensor, factor: float) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float], output: Tensor) -> None:
        ctx.factor = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.factor, None


class LearnedTemperature(nn.Module):
    """T = lowest + width sigmoid(theta), which climbs the loss that the student descends.

    Args:
        temperature: T at the start.
        lowest, width: T stays between lowest and lowest + width.
        epochs: How long its gradient takes to grow from nothing to the whole, along a cosine.
    """

    def __init__(self, temperature: float, *, lowest: float, width: float, epochs: float) -> None:
        super().__init__()
        if not lowest < temperature < lowest + width:
            raise ValueError(
                f"temperature_rule=learned goes from temperature={temperature:g}; expected it between"
                f" learned_lowest={lowest:g} and {lowest + width:g}, learned_width={width:g} above"
            )
        self.lowest, self.width, self.epochs = lowest, width, epochs
        share = (temperature - lowest) / width
        self.theta = nn.Parameter(torch.tensor(math.log(share / (1.0 - share))))

    def forward(self, epoch: int) -> Tensor:
        """T, a number with a gradient that is turned round; epochs count from 1."""
        factor = 0.5 * (math.cos(math.pi * min(epoch / self.epochs, 1.0)) + 1.0) - 1.0
        scaled = _Scaled.apply(self.theta, factor)  # type: ignore[no-untyped-call]
        assert isinstance(scaled, Tensor)
        return self.lowest + self.width * torch.sigmoid(scaled)


class LearnedWeights(nn.Module):
    """A log variance s for each term of a sum: the term counts exp(-s) times its loss, plus s / 2.

    Args:
        num_terms: How many.

    References:
        Kendall, Gal, Cipolla. Multi-Task Learning Using Uncertainty to Weigh Losses for Scene Geometry and Semantics.
        CVPR 2018, section 3.2 (the form for cross-entropy, s = log sigma^2).
    """

    def __init__(self, num_terms: int) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(num_terms))

    def forward(self, loss_B: Tensor, term: int) -> Tensor:
        """The loss of each row as the term counts."""
        held = self.log_variance[term].clamp(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
        return (-held).exp() * loss_B + 0.5 * held

    @property
    def weights(self) -> list[float]:
        """What each term's loss is multiplied by."""
        held = self.log_variance.detach().clamp(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
        return (-held).exp().tolist()
