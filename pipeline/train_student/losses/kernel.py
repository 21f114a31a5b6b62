"""The one kernel of the divergence family: alpha-beta, with all its limits. Shapes: B batch, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .numerics import MAX_EXPONENT, bounded_exp, kl

NEAR_LIMIT = 0.1
"""An exponent this close to zero takes the form that has no denominators, where the plain one would cancel."""

NO_CLIP = 1e-3
"""An exponent this close to zero leaves a clip of the ratio nothing to do."""

FARTHEST = 1e10
"""Log-ratios beyond it are held: their square would leave float32."""

SERIES = 16
"""Terms of the series: enough for float64 where the three points lie within 1."""


def alpha_beta_rows(log_p_BC: Tensor, log_q_BC: Tensor, alpha: float, beta: float, ratio_clip: float = 0.0) -> Tensor:
    """Alpha-beta divergence of each row, from log-probabilities.

    -1 / (alpha beta) sum_c [p^alpha q^beta - alpha/(alpha+beta) p^(alpha+beta) - beta/(alpha+beta) q^(alpha+beta)],
    with its continuous limits where alpha, beta, alpha + beta, or all of them are 0.

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
    if (alpha, beta) == (1.0, 0.0):
        return kl(log_p_BC, log_q_BC)
    if (alpha, beta) == (0.0, 1.0):
        return kl(log_q_BC, log_p_BC)
    total = alpha + beta
    nearest = min(abs(alpha), abs(beta), abs(total))
    power = abs(total - 1.0) < 1e-9
    if nearest < (NO_CLIP if power and ratio_clip > 0.0 else NEAR_LIMIT):
        return _near_limits(log_p_BC, log_q_BC, alpha, beta).sum(1)
    if power:
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


def _near_limits(log_p_BC: Tensor, log_q_BC: Tensor, alpha: float, beta: float) -> Tensor:
    """The divergence's terms [B, C], exact on and near the lines where an exponent vanishes.

    With d = log p - log q a term is d^2 times the second divided difference of exp at (alpha + beta) log p,
    alpha log p + beta log q and (alpha + beta) log q. A divided difference has a series where its points are close,
    and is a difference of two means of exp where they are not; neither divides by an exponent.
    """
    mixed_BC = alpha * log_p_BC + beta * log_q_BC
    points = ((beta, (alpha + beta) * log_p_BC), (0.0, mixed_BC), (-alpha, (alpha + beta) * log_q_BC))
    (high, high_BC), (middle, middle_BC), (low, low_BC) = sorted(points, key=lambda point: -point[0])
    d_BC = (log_p_BC - log_q_BC).clamp(-FARTHEST, FARTHEST)
    spread = high - low
    near = min(1.0 / spread, FARTHEST) if spread > 0.0 else FARTHEST

    close_BC = d_BC.clamp(-near, near)
    scale = max(spread, 1.0 / FARTHEST)
    series_BC = _series(scale * close_BC, (high - middle) / scale, (low - middle) / scale)
    close_BC = close_BC.square() * bounded_exp(middle_BC) * series_BC
    if near >= FARTHEST:
        return close_BC
    far_BC = d_BC.abs().clamp(min=near)
    upper_BC = _mean_exp(high_BC, middle_BC, (high - middle) * far_BC)
    lower_BC = _mean_exp(middle_BC, low_BC, (middle - low) * far_BC)
    return torch.where(d_BC.abs() < near, close_BC, d_BC.sign() * far_BC * (upper_BC - lower_BC) / spread)


def _series(d_BC: Tensor, a: float, b: float) -> Tensor:
    """exp[a d, 0, b d] = sum_n h_n(a, b) d^n / (n + 2)!, h_n the complete homogeneous polynomial; |d| <= 1."""
    homogeneous, terms = 1.0, [0.5]
    for n in range(1, SERIES):
        homogeneous = a * homogeneous + b**n
        terms.append(homogeneous / math.factorial(n + 2))
    sum_BC = torch.full_like(d_BC, terms[-1])
    for term in terms[-2::-1]:
        sum_BC = sum_BC * d_BC + term
    return sum_BC


def _mean_exp(a_BC: Tensor, b_BC: Tensor, gap_BC: Tensor) -> Tensor:
    """Mean of exp between a and b, |a - b| = gap."""
    tiny = torch.finfo(gap_BC.dtype).tiny
    share_BC = torch.where(gap_BC > tiny, -torch.expm1(-gap_BC) / gap_BC.clamp(min=tiny), 1.0)
    return bounded_exp(torch.maximum(a_BC, b_BC)) * share_BC


def _clip_limit(log_p_BC: Tensor, beta: float, ratio_clip: float) -> float | Tensor:
    if ratio_clip <= 0.0:
        return MAX_EXPONENT
    return (log_p_BC + abs(beta) * math.log(max(ratio_clip, 1.0))).clamp(max=MAX_EXPONENT)
