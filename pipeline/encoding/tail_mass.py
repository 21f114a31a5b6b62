"""The shift of a row that gives its tail the mass that the teacher gave it.

Shape suffixes: B rows, C classes, R rows with classes at the cap.
"""

import math

import torch
from torch import Tensor

from logitbank.pipeline.encoding.groups import best_of_groups, classes_of, group_width, in_rows, left_over

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
    best_BG = best_of_groups(free_BC)
    top_B = torch.cat([best_BG.amax(1, keepdim=True), left_over(free_BC)], 1).amax(1)
    scaled_BC, total_B = _scaled(free_BC, top_B[:, None].clamp(min=_LOWEST))
    shift_B = torch.where(total_B > 0, log_mass_B - top_B - total_B.log(), 0.0)
    over_R = (top_B + shift_B > cap_B).nonzero().squeeze(1)
    if len(over_R):
        if len(over_R) < len(free_BC):
            free_BC, scaled_BC, best_BG = free_BC[over_R], scaled_BC[over_R], best_BG[over_R]
        under = log_mass_B[over_R], cap_B[over_R], shift_B[over_R]
        shift_B[over_R] = _shift_under_cap(free_BC, scaled_BC, best_BG, top_B[over_R], *under)
    return shift_B


def _scaled(free_BC: Tensor, top_B1: Tensor) -> tuple[Tensor, Tensor]:
    """exp(free - top), and its sum over the classes, [B]; some rows after others, so that they stay in a cache."""
    scaled_BC, total_B = torch.empty_like(free_BC), torch.empty_like(top_B1[:, 0])
    for own in in_rows(*free_BC.shape):
        torch.sub(free_BC[own], top_B1[own], out=scaled_BC[own])
        torch.sum(scaled_BC[own].exp_(), 1, out=total_B[own])
    return scaled_BC, total_B


def _shift_under_cap(
    free_RC: Tensor,
    scaled_RC: Tensor,
    best_RG: Tensor,
    top_R: Tensor,
    log_mass_R: Tensor,
    cap_R: Tensor,
    shift_R: Tensor,
) -> Tensor:
    """Raises the shift of rows with classes at the cap until the others have the mass that is left.

    Few classes come near the cap: only these are looked at again and again. ``scaled_RC`` is exp(free - top);
    overwritten.
    """
    lowest_R = cap_R - shift_R - _NEAR
    class_RM, near_RM = _above(lowest_R, free_RC, best_RG)
    scaled_RC.scatter_(1, class_RM, 0.0)
    others_R = scaled_RC.sum(1).log() + top_R.clamp(min=_LOWEST)
    raised_R = _raise(near_RM, others_R, log_mass_R, cap_R, shift_R)
    far_S = (cap_R - raised_R < lowest_R).nonzero().squeeze(1)  # so far that others come near, too
    if len(far_S):
        nothing_S = torch.full_like(raised_R[far_S], -math.inf)
        raised_R[far_S] = _raise(free_RC[far_S], nothing_S, log_mass_R[far_S], cap_R[far_S], raised_R[far_S])
    return raised_R


def _above(lowest_R: Tensor, free_RC: Tensor, best_RG: Tensor) -> tuple[Tensor, Tensor]:
    """Classes above a row's lowest, and their numbers, [R, M]; where there are fewer, the first again, and -inf."""
    group_RN, spare_RN = _gathered(best_RG > lowest_R[:, None])
    class_RM = classes_of(group_RN, free_RC.shape[1])
    found_RM = free_RC.gather(1, class_RM)
    again_RM = spare_RN.repeat_interleave(group_width(free_RC.shape[1]), 1)
    found_RM[:, : again_RM.shape[1]].masked_fill_(again_RM, -math.inf)
    place_RN, spare_RN = _gathered(found_RM > lowest_R[:, None])
    return class_RM.gather(1, place_RN), found_RM.gather(1, place_RN).masked_fill_(spare_RN, -math.inf)


def _gathered(where_RX: Tensor) -> tuple[Tensor, Tensor]:
    """What is true of each row, int64 [R, N], and where it stands there to fill it up: first again, or 0."""
    row, place = where_RX.nonzero(as_tuple=True)
    count_R = row.bincount(minlength=len(where_RX))
    rank = torch.arange(len(row), device=row.device) - (count_R.cumsum(0) - count_R)[row]
    place_RN = place.new_zeros(len(where_RX), max(1, int(count_R.max())))
    place_RN[row, rank] = place
    spare_RN = torch.arange(place_RN.shape[1], device=row.device) >= count_R[:, None]
    return torch.where(spare_RN, place_RN[:, :1], place_RN), spare_RN


def _raise(near_RM: Tensor, others_R: Tensor, log_mass_R: Tensor, cap_R: Tensor, shift_R: Tensor) -> Tensor:
    """The shift of rows that have some classes which may be at the cap, and ``others_R``, the log mass of the rest.

    With the m best of them at the cap, the classes below share what is left: that is a shift for every m, and the right
    one is the first that leaves the next class below the cap. Where every class ends at the cap, the last just does.
    """
    falling_RM = near_RM.sort(1, descending=True).values.double()  # for sums of many classes that are much alike
    nothing_R1 = torch.full_like(falling_RM[:, :1], -math.inf)
    below_RN = torch.cat([falling_RM.flip(1).logcumsumexp(1).flip(1), nothing_R1], 1)  # N = M + 1 numbers at the cap
    below_RN = torch.logaddexp(below_RN, others_R[:, None])
    capped_N = torch.arange(below_RN.shape[1], device=near_RM.device).log()
    raised_RN = log_minus(log_mass_R[:, None].expand_as(below_RN), cap_R[:, None] + capped_N) - below_RN
    next_RN = torch.cat([falling_RM, nothing_R1], 1)
    first_R1 = (torch.isneginf(next_RN) | (next_RN + raised_RN <= cap_R[:, None])).int().argmax(1, keepdim=True)
    last_RN = torch.cat([cap_R[:, None] - shift_R[:, None], falling_RM], 1)  # the last at the cap; at 0: as it was
    raised_RN = torch.where(torch.isneginf(below_RN), cap_R[:, None] - last_RN, raised_RN)
    return torch.maximum(raised_RN.gather(1, first_R1).squeeze(1).float(), shift_R)
