"""Losses that remember each example from epoch to epoch.

Shapes: B batch, C classes, N examples.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .kinds import Material

_LEAST = 1e-4  # of a probability, as in the authors' code


class Remembered(nn.Module):
    """A running mean of the student's own answers to each example; 0 for those not yet seen.

    Args:
        material: Says how many examples and classes there are.
        options: Unused.
    """

    def __init__(self, material: Material, **options: Any) -> None:
        super().__init__()
        self.register_buffer("mean_NC", torch.zeros(material.num_examples, material.num_classes))
        self.mean_NC: Tensor

    def update(self, rows_B: Tensor, prob_BC: Tensor, share: float) -> Tensor:
        """The means of some examples [B, C], of which an earlier one keeps its share."""
        rows_B = rows_B.to(self.mean_NC.device)
        mean_BC = share * self.mean_NC[rows_B] + (1 - share) * prob_BC.to(self.mean_NC)
        self.mean_NC[rows_B] = mean_BC
        return mean_BC.to(prob_BC)


def early_learning_regularization(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, module: Remembered, rows_B: Tensor, keep: float = 0.7
) -> Tensor:
    """log(1 - sum_c t_c q_c), where t <- keep t + (1 - keep) q is what the student has said of the example so far.

    A student learns wrong labels late; the pull to what it said before holds it back. q is clamped to 1e-4 from both
    ends. Rows without a label are left out: there a student would be held to itself alone.

    Args:
        student_BC: Student logits.
        teacher_BC: Unused.
        labels_B: Unused.
        module: What is remembered; each call writes to it.
        rows_B: Which examples these are, int64.
        keep: Share of the mean that is kept at each step, the paper's beta.

    Returns:
        Loss of each example, negative, shape [B].

    References:
        Liu et al. Early-Learning Regularization Prevents Memorization of Noisy Labels. NeurIPS 2020, equation 6.
    """
    prob_BC = student_BC.softmax(dim=1).clamp(_LEAST, 1 - _LEAST)
    said_BC = prob_BC.detach()
    mean_BC = module.update(rows_B, said_BC / said_BC.sum(dim=1, keepdim=True), keep)
    return torch.log1p(-(mean_BC * prob_BC).sum(dim=1))
