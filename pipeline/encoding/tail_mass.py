"""The shift of a row that gives its tail the mass that the teacher gave it.

Shape suffixes: B rows, C classes, R rows with classes at the cap.
"""

import math

import torch
from torch import Tensor

_LOWEST = -3e4
_NEAR = 1.0  # nats below the cap


def log_minus(log_a_B: Tensor, log_b_B: Tensor) -> Tensor:
    """log(exp(a) - exp(b)), with at least 2^-11 of exp(a) left: less than float16's rounding is noise."""
    gap_B = (log_a_B - log_b_B).clamp(min=2.0**-11)
    return torch.where(torch.isneginf(log_a_B), log_a_B, log_a_B + torch.log(-torch.expm1(-gap_B)))


def shift_to_mass(shape_BC: Tensor, known: Tensor, log_mass_B: Tensor, cap_B: Tensor) -> Tensor:
    """The shift of each row that gives its classes the mass exp(log_mass), no class above the cap.

    Args:
        shape_BC: float32 logits up to a constant per row; overwritten.
        known: int64 ids of classes that take no part, [B, any number], repeats allowed.
        log_mass_B: Log of the mass to reach, in the scale of the result; -inf where there is none.
        cap_B: Ceiling of `min(shape + shift, cap)`.

    Returns:
        float32 [B]; -inf where the mass is zero.
    """
    free_BC = shape_BC.scatter_(1, known, -math.inf)
    top_B = free_BC.amax(1)
    scaled_BC = (free_BC - top_B[:, None].clamp(min=_LOWEST)).exp_()
    total_B = scaled_BC.sum(1)
    shift_B = torch.where(total_B > 0, log_mass_B - top_B - total_B.log(), 0.0)
    over_R = (top_B + shift_B > cap_B).nonzero().squeeze(1)
    if len(over_R):
        if len(over_R) < len(free_BC):
            free_BC, scaled_BC = free_BC[over_R], scaled_BC[over_R]
        under = log_mass_B[over_R], cap_B[over_R], shift_B[over_R]
        shift_B[over_R] = _shift_under_cap(free_BC, scaled_BC, top_B[over_R], *under)
    return shift_B


def _shift_under_cap(
    free_RC: Tensor, scaled_RC: Tensor, top_R: Tensor, log_mass_R: Tensor, cap_R: Tensor, shift_R: Tensor
) -> Tensor:
    """Raises the shift of rows with classes at the cap until the others have the mass that is left.

    Few classes come near the cap: only these are looked at again and again. ``scaled_RC`` is exp(free - top);
    overwritten.
    """
    lowest_R = cap_R - shift_R - _NEAR
    row, _ = place = (free_RC > lowest_R[:, None]).nonzero(as_tuple=True)
    count_R = row.bincount(minlength=len(free_RC))
    rank = torch.arange(len(row), device=row.device) - (count_R.cumsum(0) - count_R)[row]
    near_RM = free_RC.new_full((len(free_RC), int(count_R.max())), -math.inf)
    near_RM[row, rank] = free_RC[place]
    scaled_RC[place] = 0.0
    others_R = scaled_RC.sum(1).log() + top_R.clamp(min=_LOWEST)
    raised_R = _raise(near_RM, others_R, log_mass_R, cap_R, shift_R)
    far_S = (cap_R - raised_R < lowest_R).nonzero().squeeze(1)  # so far that others come near, too
    if len(far_S):
        nothing_S = torch.full_like(raised_R[far_S], -math.inf)
        raised_R[far_S] = _raise(free_RC[far_S], nothing_S, log_mass_R[far_S], cap_R[far_S], raised_R[far_S])
    return raised_R


def _raise(near_RM: Tensor, others_R: Tensor, log_mass_R: Tensor, cap_R: Tensor, shift_R: Tensor) -> Tensor:
    """The shift of rows that have some classes which may be at the cap, and ``others_R``, the log mass of the rest."""
    for _ in range(8):
        over_RM = near_RM > (cap_R - shift_R)[:, None]
        left_R = log_minus(log_mass_R, cap_R + over_RM.sum(1).log())
        under_R = torch.logaddexp(near_RM.masked_fill(over_RM, -math.inf).logsumexp(1), others_R)
        raised_R = torch.where(torch.isneginf(under_R), shift_R, left_R - under_R)
        if not (raised_R > shift_R + 1e-5).any():
            break
        shift_R = torch.maximum(shift_R, raised_R)
    return shift_R
