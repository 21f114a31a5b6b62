"""Codes a tail's residual about its prediction in a fixed number of bits, by the optimal linear transform.

The residuals of a teacher's tail are far from independent between classes, so coding each class by itself
wastes bits. The basis holds the principal directions of the residual, found in rows used for fitting; a row's
coefficients along them, scaled to unit variance, are rounded to the levels of the optimal (Lloyd-Max)
quantiser of a Gaussian. How many bits a coefficient gets (0 to 8) follows from its variance in rows left
out: every next bit goes where it removes most error. At equal fidelity this takes less than half the bytes
of coding every class by itself.

Constants in a store: tail_basis float16 [F, M, C], tail_scale float32 [F, M], tail_width uint8 [F, M] (bits
of each coefficient, unused ones 0), tail_levels float32 [2 + 4 + ... + 256] (all widths one after another).
A row's tail_code holds its codes one after another, the lowest bit first.

Shape suffixes: B rows, C classes, F folds, M coefficients.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

MAX_WIDTH = 8
_KEPT = 2**25  # numbers of a basis that is kept in float32 as well
_BLOCK = 8192  # classes of a basis that are in float32 at once
_EVERY = slice(None)


class TailBasis:
    """Residual logits <-> packed bits, one basis per fold teacher.

    Args:
        basis_FMC: float16, unit rows.
        scale_FM: float32, standard deviation of each coefficient.
        width_FM: uint8, bits of each coefficient; those with none come last.
        levels: float32, those of widths 1..8, one after another.
    """

    def __init__(self, *, basis_FMC: Tensor, scale_FM: Tensor, width_FM: Tensor, levels: Tensor) -> None:
        self.basis_FMC = basis_FMC.to(torch.float16)
        self.scale_FM = scale_FM.float()
        self.width_FM = width_FM.to(torch.uint8)
        self.levels = levels.to(self.basis_FMC.device)
        small = self.basis_FMC.numel() <= _KEPT
        self._scaled_FMC = self.basis_FMC.float() * self.scale_FM[:, :, None] if small else None
        width_long_FM = self.width_FM.long()
        self._start_FM = width_long_FM.cumsum(1) - width_long_FM

    def encode(self, residual_BC: Tensor, folds_B: Tensor | None, num_bytes: int) -> Tensor:
        """Codes of residuals (zero in the head), uint8 [B, num_bytes]."""
        out = torch.zeros((len(residual_BC), num_bytes), dtype=torch.uint8, device=residual_BC.device)
        for fold, rows in self._by_fold(folds_B, len(residual_BC)):
            scale_M = self.scale_FM[fold].clamp(min=1e-12)
            coefficient = self._along(residual_BC[rows], fold) / scale_M
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
            return self.values(code, parts[0][0]) @ self.scaled(parts[0][0])
        out_BC = torch.zeros((len(code), self.basis_FMC.shape[2]), device=code.device)
        for fold, rows in parts:
            out_BC[rows] = self.values(code[rows], fold) @ self.scaled(fold)
        return out_BC

    def scaled(self, fold: int, classes: slice = _EVERY) -> Tensor:
        """What a level of 1 along each direction adds to the logits of some classes, float32 [M, those]."""
        if self._scaled_FMC is not None:
            return self._scaled_FMC[fold, :, classes]
        return self.basis_FMC[fold, :, classes].float() * self.scale_FM[fold, :, None]

    def _along(self, residual_BC: Tensor, fold: int) -> Tensor:
        """Coefficients of residuals, float32 [B, M]; the basis is never whole in float32."""
        basis_MC, num_classes = self.basis_FMC[fold], residual_BC.shape[1]
        blocks = [slice(start, start + _BLOCK) for start in range(0, num_classes, _BLOCK)]
        found = residual_BC[:, blocks[0]] @ basis_MC[:, blocks[0]].float().T
        for own in blocks[1:]:
            found.addmm_(residual_BC[:, own], basis_MC[:, own].float().T)
        return found

    def values(self, code: Tensor, fold: int) -> Tensor:
        """The levels that codes of a fold stand for, float32 [B, M]."""
        start_M, width_M = self._start_FM[fold], self.width_FM[fold].long()
        padded = torch.nn.functional.pad(code, (0, 2)).int()
        pair = padded[:, start_M // 8] | (padded[:, start_M // 8 + 1] << 8)
        levels_start = (1 << width_M) - 2
        position = (pair >> (start_M % 8).int()) & ((1 << width_M) - 1).int()
        value = self.levels[position.long() + levels_start]
        return value * (width_M > 0)

    def every_value(self, code: Tensor) -> list[Tensor]:
        """The same for each fold."""
        return [self.values(code, fold) for fold in range(len(self.basis_FMC))]

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
