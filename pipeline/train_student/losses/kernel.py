"""The one kernel of the divergence family: alpha-beta, with all its limits. Shapes: B batch, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .numerics import MAX_EXPONENT, bounded_exp, kl

NEAR_LIMIT = 1e-4
"""An exponent this close to zero takes the limit's own formula, where the general one would cancel."""


def alpha_beta_rows(log_p_BC: Tensor, log_q_BC: Tensor, alpha: float, beta: float, ratio_clip: float = 0.0) -> Tensor:
    """Alpha-beta divergence of each row, from log-probabilities.

    -1 / (alpha beta) sum_c [p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta)],
    with its continuous limits where alpha, beta or alpha + beta is 0.

    Args:
        log_p_BC: Log-probabilities of the first distribution.
        log_q_BC: Log-probabilities of the second distribution.
        alpha: Exponent of p.
        beta: Exponent of q.
        ratio_clip: 0 for none; else, on alpha + beta = 1, where the class weight (p/q)^(-beta) stops growing.

    Returns:
        Divergence of each example, shape [B], without a factor T^2.

    References:
        Cichocki, Cruces, Amari. Generalized Alpha-Beta Divergences. Entropy 13, 2011, equation 20.
    """
    total = alpha + beta
    if abs(beta) < NEAR_LIMIT:
        if alpha == 1.0:
            return kl(log_p_BC, log_q_BC)
        return _log_ratio_limit(alpha * log_p_BC, alpha * log_q_BC) / alpha**2
    if abs(alpha) < NEAR_LIMIT:
        if beta == 1.0:
            return kl(log_q_BC, log_p_BC)
        return _log_ratio_limit(beta * log_q_BC, beta * log_p_BC) / beta**2
    if abs(total) < NEAR_LIMIT:
        rise_BC = alpha * (log_q_BC - log_p_BC)
        return (rise_BC + bounded_exp(-rise_BC) - 1.0).sum(1) / alpha**2
    if abs(total - 1.0) < 1e-9:
        mixed_BC = torch.lerp(log_q_BC, log_p_BC, alpha)
        powers_BC = _exp(mixed_BC, alpha, beta, _clip_limit(log_p_BC, beta, ratio_clip))
        # sum p = sum q = 1: subtracting p from each term keeps the sum exact near p = q.
        return (powers_BC - log_p_BC.exp()).sum(1) / (-alpha * beta)
    mixed_B = _exp(alpha * log_p_BC + beta * log_q_BC, alpha, beta).sum(1)
    own_p_B, own_q_B = (_exp(total * log_BC, total, total).sum(1) for log_BC in (log_p_BC, log_q_BC))
    return (mixed_B - (alpha / total) * own_p_B - (beta / total) * own_q_B) / (-alpha * beta)


def _exp(log_BC: Tensor, alpha: float, beta: float, limit: float | Tensor = MAX_EXPONENT) -> Tensor:
    """exp of alpha log p + beta log q: it can only overflow when an exponent is negative."""
    return log_BC.exp() if min(alpha, beta) >= 0.0 else bounded_exp(log_BC, limit)


def _log_ratio_limit(log_u_BC: Tensor, log_v_BC: Tensor) -> Tensor:
    """sum_c u log(u/v) - u + v: the limit where one exponent is 0; u and v need not sum to 1."""
    u_BC = bounded_exp(log_u_BC)
    return (u_BC * (log_u_BC - log_v_BC) - u_BC + bounded_exp(log_v_BC)).sum(1)


def _clip_limit(log_p_BC: Tensor, beta: float, ratio_clip: float) -> float | Tensor:
    if ratio_clip <= 0.0:
        return MAX_EXPONENT
    return (log_p_BC + abs(beta) * math.log(max(ratio_clip, 1.0))).clamp(max=MAX_EXPONENT)
