"""Codes a tail's residual about its prediction in a fixed number of bits, by the optimal linear transform.

The residuals of a teacher's tail are far from independent between classes, so coding each class by itself
wastes bits. `basis` holds the principal directions of the residual, found in rows used for fitting; a row's
coefficients along them, scaled to unit variance, are rounded to the levels of the optimal (Lloyd-Max)
quantiser of a Gaussian. How many bits a coefficient gets (0 to 8) follows from its variance in rows left
out: every next bit goes where it removes most error. At equal fidelity this takes less than half the bytes
of coding every class by itself.

Constants in a store: tail_basis float16 [F, M, C], tail_scale float32 [F, M], tail_width uint8 [F, M] (bits
of each coefficient, unused ones 0), tail_levels float32 [2 + 4 + ... + 256] (all widths one after another).
A row's tail_code holds its codes one after another, the lowest bit first.

Shape suffixes: B rows, C classes, F folds, M coefficients.
"""

import functools
import heapq
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

MAX_WIDTH = 8


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


class TailBasis:
    """Residual logits <-> packed bits, one basis per fold teacher.

    Args:
        basis_FMC: float16, unit rows.
        scale_FM: float32, standard deviation of each coefficient.
        width_FM: uint8, bits of each coefficient; those with none come last.
        levels: float32, `gaussian_levels` of widths 1..8, one after another.
    """

    def __init__(self, *, basis_FMC: Tensor, scale_FM: Tensor, width_FM: Tensor, levels: Tensor | None = None) -> None:
        self.basis_FMC = basis_FMC.to(torch.float16)
        self.scale_FM = scale_FM.float()
        self.width_FM = width_FM.to(torch.uint8)
        if levels is None:
            levels = torch.cat([gaussian_levels(width) for width in range(1, MAX_WIDTH + 1)]).float()
        self.levels = levels.to(self.basis_FMC.device)
        self._dense_FMC = self.basis_FMC.float()
        self._scaled_FMC = self._dense_FMC * self.scale_FM[:, :, None]
        width_long_FM = self.width_FM.long()
        self._start_FM = width_long_FM.cumsum(1) - width_long_FM

    @classmethod
    def fit(cls, residual_train: Tensor, residual_left_out: Tensor, num_bytes: int, max_rank: int) -> "TailBasis":
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
            kept = values > values[-1] * 1e-9
            directions = ((left[:, kept] / values[kept].sqrt()).T.float() @ residual_train).flip(0)
        directions = directions[:max_rank]
        variance = (residual_left_out @ directions.T).square().mean(0)
        widths = allocate_bits(variance, 8 * num_bytes)
        order = torch.argsort(widths, descending=True, stable=True)[: max(1, int((widths > 0).sum()))]
        return cls(
            basis_FMC=directions[order][None],
            scale_FM=variance[order].sqrt()[None],
            width_FM=widths[order][None],
        )

    def encode(self, residual_BC: Tensor, folds_B: Tensor | None, num_bytes: int) -> Tensor:
        """Codes of residuals (zero in the head), uint8 [B, num_bytes]."""
        out = torch.zeros((len(residual_BC), num_bytes), dtype=torch.uint8, device=residual_BC.device)
        for fold, rows in self._by_fold(folds_B, len(residual_BC)):
            scale_M = self.scale_FM[fold].clamp(min=1e-12)
            coefficient = residual_BC[rows] @ self._dense_FMC[fold].T / scale_M
            width_M = self.width_FM[fold].long()
            codes = torch.zeros(coefficient.shape, dtype=torch.int64, device=out.device)
            for width in range(1, MAX_WIDTH + 1):
                columns = (width_M == width).nonzero().squeeze(1)
                if len(columns):
                    level = self.levels[2**width - 2 : 2 ** (width + 1) - 2]
                    edges = (level[1:] + level[:-1]) / 2
                    codes[:, columns] = torch.bucketize(coefficient[:, columns].contiguous(), edges)
            start_M = self._start_FM[fold]
            shifted = codes << (start_M % 8)
            packed = torch.zeros((len(codes), num_bytes + 2), dtype=torch.int64, device=out.device)
            packed.index_add_(1, start_M // 8, shifted & 255)
            packed.index_add_(1, start_M // 8 + 1, shifted >> 8)
            out[rows] = packed[:, :num_bytes].to(torch.uint8)
        return out

    def decode(self, code: Tensor, folds_B: Tensor | None) -> Tensor:
        """Residual logits of codes uint8 [B, bytes], float32 [B, C]."""
        parts = list(self._by_fold(folds_B, len(code)))
        if len(parts) == 1 and isinstance(parts[0][1], slice):
            return self._values(code, parts[0][0]) @ self._scaled_FMC[parts[0][0]]
        out_BC = torch.zeros((len(code), self.basis_FMC.shape[2]), device=code.device)
        for fold, rows in parts:
            out_BC[rows] = self._values(code[rows], fold) @ self._scaled_FMC[fold]
        return out_BC

    def _values(self, code: Tensor, fold: int) -> Tensor:
        start_M, width_M = self._start_FM[fold], self.width_FM[fold].long()
        padded = torch.nn.functional.pad(code, (0, 2)).int()
        pair = padded[:, start_M // 8] | (padded[:, start_M // 8 + 1] << 8)
        levels_start = (1 << width_M) - 2
        position = (pair >> (start_M % 8).int()) & ((1 << width_M) - 1).int()
        value = self.levels[position.long() + levels_start]
        return value * (width_M > 0)

    def _by_fold(self, folds_B: Tensor | None, num_rows: int) -> "list[tuple[int, slice | Tensor]]":
        if folds_B is None:
            return [(0, slice(0, num_rows))]
        rows = [(fold, (folds_B == fold).nonzero().squeeze(1)) for fold in range(len(self.basis_FMC))]
        return [(fold, rows_R) for fold, rows_R in rows if len(rows_R)]

    def to(self, device: torch.device | str) -> "TailBasis":
        """The same basis on another device."""
        return TailBasis(
            basis_FMC=self.basis_FMC.to(device),
            scale_FM=self.scale_FM.to(device),
            width_FM=self.width_FM.to(device),
            levels=self.levels.to(device),
        )

    def constants(self) -> dict[str, np.ndarray]:
        """What a store keeps once per teacher."""
        return {
            "tail_basis": self.basis_FMC.cpu().numpy(),
            "tail_scale": self.scale_FM.cpu().numpy(),
            "tail_width": self.width_FM.cpu().numpy(),
            "tail_levels": self.levels.cpu().numpy(),
        }

    @classmethod
    def from_constants(cls, constants: Mapping[str, np.ndarray]) -> "TailBasis | None":
        """The basis that a store's constants hold, None when they hold none."""
        if "tail_basis" not in constants:
            return None
        basis, scale, width, levels = (
            torch.from_numpy(np.array(constants[name]))
            for name in ("tail_basis", "tail_scale", "tail_width", "tail_levels")
        )
        sound = basis.dim() == 3 and scale.shape == width.shape == basis.shape[:2]
        if not sound or levels.shape != (2 ** (MAX_WIDTH + 1) - 2,) or (width > MAX_WIDTH).any():
            raise ValueError("expected a tail basis as the format says, found other shapes; fetch the store again")
        return cls(basis_FMC=basis, scale_FM=scale, width_FM=width, levels=levels)

    @classmethod
    def stack(cls, bases: "Sequence[TailBasis]") -> "TailBasis":
        """One basis per fold, padded to the most coefficients."""
        most = max(basis.basis_FMC.shape[1] for basis in bases)

        def pad(array: Tensor) -> Tensor:
            missing = most - array.shape[1]
            return torch.nn.functional.pad(array, (0, 0, 0, missing) if array.dim() == 3 else (0, missing))

        return cls(
            basis_FMC=torch.cat([pad(basis.basis_FMC) for basis in bases]),
            scale_FM=torch.cat([pad(basis.scale_FM) for basis in bases]),
            width_FM=torch.cat([pad(basis.width_FM) for basis in bases]),
            levels=bases[0].levels,
        )
