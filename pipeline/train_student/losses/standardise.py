"""Logit standardisation, a wrapper for any loss. Shapes: B batch, C classes."""

from __future__ import annotations

from torch import Tensor

from .numerics import LARGEST_SQUARED, raised


def standardised(logits_BC: Tensor, eps: float = 1e-7) -> Tensor:
    """Z-score of each row of logits, so that a loss sees relations and not the teacher's scale.

    (x - mean(x)) / (eps + std(x)), with the standard deviation over C - 1.

    Args:
        logits_BC: Logits of the student or of the teacher; both take it before the temperature.
        eps: Added to the standard deviation.

    Returns:
        Standardised logits, shape [B, C].

    References:
        Sun, Ren, Li, Wang, Cao. Logit Standardization in Knowledge Distillation. CVPR 2024, section 4.
    """
    logits_BC = raised(logits_BC).clamp(-LARGEST_SQUARED, LARGEST_SQUARED)
    centred_BC = logits_BC - logits_BC.mean(1, keepdim=True)
    variance_B1 = centred_BC.square().sum(1, keepdim=True) / (logits_BC.shape[1] - 1)
    return centred_BC / (eps + variance_B1.clamp(min=1e-30).sqrt())
