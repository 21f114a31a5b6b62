"""AlphaNet's adaptive divergence, with the clip of its authors. Shapes: B batch, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .kernel import alpha_beta_rows
from .numerics import Temperature, dot, kl, log_probs

NEAR_LIMIT = 1e-3
"""Orders this close to 0 or 1 are KL, as in the authors' code."""


def alpha_divergence(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    alpha_min: float = -1.0,
    alpha_max: float = 1.0,
    ratio_clip: float = 5.0,
) -> Tensor:
    """Adaptive alpha-divergence: the larger of two orders, row by row.

    T^2 max over a in {alpha_min, alpha_max} of (sum_c q_c w_c - 1) / (a (a - 1)), w_c = min((p_c / q_c)^a, clip),
    p, q = softmax(logits / T); a = 1 is KL(p || q) and a = 0 KL(q || p). The gradient is that of the unclipped
    divergence with the clipped weights in it, d/d log q_c = -q_c w_c / a, as the authors take it: where the clip
    holds it is not the derivative of the value. Equal orders give the plain alpha-divergence.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        alpha_min: First order; negative orders punish where the student believes and the teacher does not.
        alpha_max: Second order; 1 is KL.
        ratio_clip: 0 for none; else the largest class weight w (of the ratio itself at order 0; order 1 has none).

    Returns:
        Loss of each example, shape [B].

    References:
        Wang et al. AlphaNet: Improved Training of Supernets with Alpha-Divergence. ICML 2021, section 4, and the
        authors' code.
    """
    log_p_BC, log_q_BC = log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)
    rows_B = _order(log_p_BC, log_q_BC, alpha_max, ratio_clip)
    if alpha_min != alpha_max:
        other_B = _order(log_p_BC, log_q_BC, alpha_min, ratio_clip)
        rows_B = torch.where(other_B > rows_B, other_B, rows_B)
    return rows_B * temperature**2


def _order(log_p_BC: Tensor, log_q_BC: Tensor, alpha: float, ratio_clip: float) -> Tensor:
    """Divergence of one order: the clipped value, and the gradient with clipped weights."""
    if ratio_clip <= 0.0:
        return alpha_beta_rows(log_p_BC, log_q_BC, alpha, 1.0 - alpha)
    if abs(alpha - 1.0) < NEAR_LIMIT:
        return kl(log_p_BC, log_q_BC)
    q_BC, limit = log_q_BC.detach().exp(), math.log(ratio_clip)
    log_ratio_BC = log_p_BC - log_q_BC.detach()
    if abs(alpha) < NEAR_LIMIT:
        log_ratio_BC = log_ratio_BC.clamp(max=limit)
        value_B, slope_B = -dot(q_BC, log_ratio_BC), dot(q_BC * (1.0 - log_ratio_BC), log_q_BC)
    else:
        growth_BC = (alpha * log_ratio_BC).clamp(max=limit)
        value_B = dot(q_BC, torch.expm1(growth_BC)) / (alpha * (alpha - 1.0))
        slope_B = dot(q_BC * growth_BC.exp(), log_q_BC) / -alpha
    return value_B + (slope_B - slope_B.detach())
