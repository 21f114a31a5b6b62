"""Small numbers in few bytes: class ids, log-probability gaps, rounded floats.

Everything here is a pure function of tensors and the same on CPU and GPU. Shape suffixes: B rows, C classes,
K kept classes.

The gap code. A row's kept log-probabilities fall from the best down, and each is stored as its distance below
the one before it, the best as its distance below 0, one byte each: code 0 is a tie, code c in 1..254 is
`GAP_SCALE * (exp(GAP_RATE * c) - 1)` nats rounded to a multiple of 2^-10, code 255 is a class of
probability zero (logit -inf). Steps are fine where gaps are small and coarse (7 %) where they are large.
Each gap is measured from the previous *decoded* value, so errors do not add up.

Order. Order is judged on the raw logits, before a row's logsumexp is subtracted (which merges close
values), and a class that must decode strictly below another is put `least_step` below it, which survives
adding it again.
"""

import functools
import math

import torch
from torch import Tensor

from logitbank.stores.format.schema import GAP_GRID, GAP_NEVER, GAP_RATE, GAP_SCALE

FLOAT16_LOWEST = -65504.0


def smallest_uint(largest: int) -> str:
    """Name of the smallest unsigned dtype that holds 0..largest."""
    for name, bits in (("uint8", 8), ("uint16", 16), ("uint32", 32)):
        if largest < 2**bits:
            return name
    raise ValueError(f"expected at most 2^32 - 1 classes, found {largest}; store fewer classes")


@functools.cache
def gap_levels(device: torch.device) -> Tensor:
    """Gap in nats of each code, float32 [256]; the last is +inf."""
    code = torch.arange(256, dtype=torch.float64)
    levels = torch.round(GAP_SCALE * torch.expm1(GAP_RATE * code) * GAP_GRID) / GAP_GRID
    levels[GAP_NEVER] = math.inf
    return levels.to(torch.float32).to(device)


@functools.cache
def _drops(device: torch.device) -> Tensor:
    return -gap_levels(device)


@functools.cache
def _lowest(device: torch.device) -> Tensor:
    return torch.tensor(-math.inf, device=device)


def below(values: Tensor) -> Tensor:
    """The next lower float32 numbers."""
    return torch.nextafter(values, _lowest(values.device))


def _nearest_gap(gap_B: Tensor) -> Tensor:
    code_B = torch.log1p(gap_B.clamp(min=0) * (1 / GAP_SCALE)) * (1 / GAP_RATE)
    return code_B.clamp(max=GAP_NEVER - 1.0).round()


def least_step(logsumexp_B: Tensor) -> Tensor:
    """Smallest distance in nats that float32 keeps apart beside the row's logsumexp, float32 [B]."""
    return (logsumexp_B.abs() * 2.0**-21).clamp(min=2.0**-10)


def gap_encode(logits_BK: Tensor, logsumexp_B: Tensor, rank_B: Tensor) -> Tensor:
    """Codes of the gaps between neighbours of rows that fall from left to right.

    Args:
        logits_BK: float32 raw logits, best first; -inf allowed after the first.
        logsumexp_B: float32, over all classes.
        rank_B: Number of classes at or above the label (0: no label). Position `rank` is the first class
            below the label, and it decodes strictly below it; so does position 1 below position 0, if it
            is.

    Returns:
        uint8 [B, K].
    """
    top_k = logits_BK.shape[1]
    levels = gap_levels(logits_BK.device)
    below_best_BK = logits_BK[:, :1] - logits_BK
    label_B1 = logits_BK.gather(1, (rank_B.long() - 1).clamp(0, top_k - 1)[:, None])
    before_BK = logits_BK.roll(1, 1)
    after_label_BK = torch.arange(top_k, device=rank_B.device) == rank_B[:, None]
    least_BK = ((logits_BK < before_BK) & (after_label_BK | (before_BK == logits_BK[:, :1]))).float()
    most_BK = torch.where((logits_BK == label_B1) & (before_BK == label_B1), 0.0, GAP_NEVER - 1.0)
    columns = [_nearest_gap(logsumexp_B - logits_BK[:, 0])]
    reached_B = torch.zeros_like(logsumexp_B)
    for i in range(1, top_k):
        code_B = _nearest_gap(below_best_BK[:, i] - reached_B)
        columns.append(torch.minimum(torch.maximum(code_B, least_BK[:, i]), most_BK[:, i]))
        reached_B = reached_B + levels[columns[-1].int()]
    code_BK = torch.stack(columns, 1).to(torch.uint8)
    return torch.where(torch.isneginf(logits_BK), GAP_NEVER, code_BK)


def gap_decode(code_BK: Tensor) -> Tensor:
    """Log-probabilities of gap codes up to a constant per row, float32 [B, K]; the first column is 0.

    The best class's own code is left out: the mass of the kept classes, where known, says it better.
    """
    value_BK = _drops(code_BK.device).take(code_BK.long()).cumsum(1)
    return value_BK - value_BK[:, :1]


def round_mantissa(values: Tensor, bits: int) -> Tensor:
    """float32 rounded to `bits` bits after the leading one; the low bytes are zero and compress away."""
    mantissa, exponent = torch.frexp(values.float())
    rounded = torch.ldexp(torch.round(mantissa * 2.0 ** (bits + 1)) / 2.0 ** (bits + 1), exponent)
    return torch.where(torch.isfinite(values), rounded, values)


def to_float16(values: Tensor) -> Tensor:
    """float16, with finite numbers kept finite: what lies outside +-65,504 becomes that."""
    clamped = values.clamp(FLOAT16_LOWEST, -FLOAT16_LOWEST)
    return torch.where(torch.isinf(values), values, clamped).to(torch.float16)


def float16_keeping_order(logits_BC: Tensor, logsumexp_B: Tensor, label_logit_B: Tensor) -> Tensor:
    """Log-probabilities in float16; what is below the label or below the best stays strictly below it.

    Args:
        logits_BC: float32 raw logits.
        logsumexp_B: float32, over all classes.
        label_logit_B: The label's own raw logit in the same rows, -inf where there is no label.

    Returns:
        float16 [B, C].
    """
    step_B = least_step(logsumexp_B)
    half_BC = to_float16(logits_BC - logsumexp_B[:, None])
    best_B = logits_BC.amax(1)
    best_half_B = half_BC.amax(1)
    label_half_B = to_float16(label_logit_B - logsumexp_B)
    label_half_B = torch.where(
        label_logit_B < best_B, torch.minimum(label_half_B, _under(best_half_B, step_B)), best_half_B
    )
    for limit_B, limit_half_B in ((best_B, best_half_B), (label_logit_B, label_half_B)):
        low_BC = torch.minimum(half_BC, _under(limit_half_B, step_B)[:, None])
        high_BC = torch.maximum(half_BC, limit_half_B[:, None])
        half_BC = torch.where(logits_BC < limit_B[:, None], low_BC, high_BC)
    return half_BC


def _under(half_B: Tensor, step_B: Tensor) -> Tensor:
    """The float16 numbers that lie strictly, and at least one step, below these."""
    lowest = torch.tensor(-math.inf, dtype=torch.float16, device=half_B.device)
    return torch.minimum(torch.nextafter(half_B, lowest), (half_B.float() - step_B).to(torch.float16))


def affine_encode(logits_BC: Tensor, logsumexp_B: Tensor, label_logit_B: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities in one byte each: code 0 is -inf, code c is `floor + c * scale`.

    Arguments and order as in `float16_keeping_order`.

    Returns:
        (uint8 [B, C] codes, float32 [B] scale, float32 [B] floor).
    """
    log_prob_BC = logits_BC - logsumexp_B[:, None]
    finite_BC = torch.isfinite(log_prob_BC)
    lowest_B = round_mantissa(torch.where(finite_BC, log_prob_BC, math.inf).amin(1), 12)
    scale_B = (log_prob_BC.amax(1) - lowest_B) / 254
    step_B = least_step(logsumexp_B)
    even_B = scale_B < step_B  # code 255 is the best class all the same
    scale_B = round_mantissa(torch.maximum(scale_B, step_B), 12)
    lowest_B = torch.where(even_B, round_mantissa(log_prob_BC.amax(1) - 254 * scale_B, 12), lowest_B)
    code_BC = ((log_prob_BC - lowest_B[:, None]) / scale_B[:, None]).round().clamp(0, 254).nan_to_num(0) + 1
    code_BC = torch.where(logits_BC < logits_BC.amax(1, keepdim=True), code_BC.clamp(max=254), 255.0)
    below_BC = logits_BC < label_logit_B[:, None]
    has_below_B1 = (below_BC & finite_BC).any(1, keepdim=True)
    label_B1 = torch.where(below_BC, 255.0, code_BC).amin(1, keepdim=True)
    label_B1 = torch.where(has_below_B1, label_B1.clamp(min=2), label_B1)
    code_BC = torch.where(below_BC, torch.minimum(code_BC, label_B1 - 1), torch.maximum(code_BC, label_B1))
    return torch.where(finite_BC, code_BC, 0.0).to(torch.uint8), scale_B, lowest_B - scale_B


def affine_decode(code_BC: Tensor, scale_B: Tensor, floor_B: Tensor) -> Tensor:
    """float32 log-probabilities of `affine_encode`'s codes, [B, C]."""
    value_BC = floor_B[:, None] + code_BC.float() * scale_B[:, None]
    return torch.where(code_BC == 0, -math.inf, value_BC)
