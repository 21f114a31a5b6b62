"""Fits the basis in which a tail's residual is coded: directions, scales, and bits by what they remove.

Shape suffixes: C classes, M coefficients.
"""

import functools
import heapq
import math

import torch
from torch import Tensor

from logitbank.pipeline.encoding.tail_basis import MAX_WIDTH, TailBasis


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x.square() / 2) / math.sqrt(2 * math.pi)


def _edges(levels: Tensor) -> Tensor:
    """Where the nearest level changes, with far ends."""
    far = levels.new_tensor([40.0])
    return torch.cat([-far, (levels[1:] + levels[:-1]) / 2, far])


@functools.cache
def gaussian_levels(width: int) -> Tensor:
    """The 2^width levels of the quantiser of N(0, 1) with least mean squared error, float64, rising."""
    steps = (torch.arange(2**width, dtype=torch.float64) + 0.5) / 2**width
    levels: Tensor = torch.special.ndtri(steps) * math.sqrt(3.0)  # their density is the cube root of the normal's
    for _ in range(400):
        edges = _edges(levels)
        mass = torch.special.ndtr(edges).diff()
        levels = -_density(edges).diff() / mass.clamp(min=1e-300)
    return levels


@functools.cache
def gaussian_error(width: int) -> float:
    """Mean squared error of that quantiser; 1 for width 0."""
    if width == 0:
        return 1.0
    levels = gaussian_levels(width)
    return float(1 - (torch.special.ndtr(_edges(levels)).diff() * levels**2).sum())


def allocate_bits(variance_M: Tensor, total_bits: int) -> Tensor:
    """Bits for each coefficient, int64 [M], that leave the least squared error; `total_bits` or fewer."""
    error = [gaussian_error(width) for width in range(MAX_WIDTH + 1)]
    variances = variance_M.tolist()
    widths = [0] * len(variances)
    gains = [(-variance * (error[0] - error[1]), m) for m, variance in enumerate(variances)]
    heapq.heapify(gains)
    for _ in range(total_bits):
        if not gains or gains[0][0] >= 0:
            break
        _, m = heapq.heappop(gains)
        widths[m] += 1
        if widths[m] < MAX_WIDTH:
            heapq.heappush(gains, (-variances[m] * (error[widths[m]] - error[widths[m] + 1]), m))
    return torch.tensor(widths)


def eigen(matrix_CC: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues and -vectors of a symmetric matrix, also of one that few rows have left nearly singular."""
    try:
        values, vectors = torch.linalg.eigh(matrix_CC)
    except RuntimeError:  # torch.linalg.LinAlgError: too many eigenvalues are the same: tell them apart
        small = 1e-6 * matrix_CC.diagonal().abs().mean().clamp(min=1e-6)
        spread = torch.linspace(1, 2, len(matrix_CC), dtype=matrix_CC.dtype, device=matrix_CC.device)
        values, vectors = torch.linalg.eigh(matrix_CC + torch.diag(small * spread))
    return values, vectors


def fit_basis(residual_train: Tensor, residual_left_out: Tensor, num_bytes: int, max_rank: int) -> TailBasis:
    """Principal directions of the training residuals, bits by the variances of those left out.

    Args:
        residual_train: float32 [rows, C], zero in the head, zero mean in each row.
        residual_left_out: float32 [rows, C].
        num_bytes: Bytes of a row's code.
        max_rank: Most directions to keep.
    """
    num_rows, num_classes = residual_train.shape
    if num_classes <= num_rows or num_classes <= 4096:
        covariance = (residual_train.T @ residual_train).double()
        directions = eigen(covariance)[1].flip(1).T.float()
    else:
        values, left = eigen((residual_train @ residual_train.T).double())
        kept = (values > values[-1] * 1e-9).nonzero().squeeze(1).flip(0)[:max_rank]
        directions = (left[:, kept] / values[kept].sqrt()).T.float() @ residual_train
    directions = directions[:max_rank]
    variance = (residual_left_out @ directions.T).square().mean(0)
    widths = allocate_bits(variance, 8 * num_bytes)
    order = torch.argsort(widths, descending=True, stable=True)[: max(1, int((widths > 0).sum()))]
    return TailBasis(
        basis_FMC=directions[order][None],
        scale_FM=variance[order].sqrt()[None],
        width_FM=widths[order][None],
        levels=torch.cat([gaussian_levels(width) for width in range(1, MAX_WIDTH + 1)]).float(),
    )
