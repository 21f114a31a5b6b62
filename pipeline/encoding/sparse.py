"""Rows of dense logits without a block [B, C]: some classes one by one, and all others by what shapes them.

Shape suffixes: B rows, C classes, J classes that a row says one by one, D inner dimension of the predictor's map,
M coefficients of a coded tail, c some classes that follow each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from logitbank.pipeline.encoding.tail_basis import TailBasis

_BLOCK = 2048  # classes of a block of a few hundred rows that a cache holds


@dataclass(frozen=True, kw_only=True)
class LowRank:
    """Predicted logits: coordinates [B, D] times directions [D, C], up to a constant per row unless it is given.

    Args:
        inner_BD: float32.
        factor_FDC: Directions of each fold teacher's map, float32.
        fold_B: Whose map each row takes; None where there is one.
        basis: Of a coded residual, which is added; None without one.
        values: Of each fold, the rows' levels along the basis, float32 [B, M]; empty without one.
        shift_B1: Added to each row.
        limit_B1: What no logit of a row exceeds then.
    """

    inner_BD: Tensor
    factor_FDC: Tensor
    fold_B: Tensor | None = None
    basis: TailBasis | None = None
    values: Sequence[Tensor] = ()
    shift_B1: Tensor | None = None
    limit_B1: Tensor | None = None

    def logits(self, classes: slice, out_Bc: Tensor) -> Tensor:
        """Those of some classes, written into ``out_Bc``, float32 [B, c]."""
        if self.fold_B is None:
            self._multiply(0, classes, out_Bc)
        else:
            for fold in range(len(self.factor_FDC)):
                mine_B = self.fold_B == fold
                part_Bc = out_Bc.new_empty(int(mine_B.sum()), out_Bc.shape[1])
                out_Bc[mine_B] = self.only(mine_B)._multiply(fold, classes, part_Bc)
        if self.shift_B1 is not None:
            out_Bc.add_(self.shift_B1)
        return out_Bc if self.limit_B1 is None else torch.minimum(out_Bc, self.limit_B1, out=out_Bc)

    def every_class(self) -> Tensor:
        """Those of all classes, float32 [B, C], some after others, so that they are in a cache while they are made."""
        logits_BC = self.inner_BD.new_empty(len(self.inner_BD), self.factor_FDC.shape[2])
        width = _BLOCK if logits_BC.device.type == "cpu" else logits_BC.shape[1]
        for start in range(0, logits_BC.shape[1], width):
            own = slice(start, start + width)
            self.logits(own, logits_BC[:, own])
        return logits_BC

    def _multiply(self, fold: int, classes: slice, out_Bc: Tensor) -> Tensor:
        torch.mm(self.inner_BD, self.factor_FDC[fold, :, classes], out=out_Bc)
        return out_Bc if self.basis is None else out_Bc.addmm_(self.values[fold], self.basis.scaled(fold, classes))

    def only(self, own_B: Tensor) -> "LowRank":
        """The same of some of the rows, bool [B]."""
        return replace(self, **_own(vars(self), own_B), values=[each[own_B] for each in self.values])


@dataclass(frozen=True, kw_only=True)
class SparseLogits:
    """Finite raw logits of every class, as `decode` and `finite` give them: what a loss can work from.

    Args:
        num_classes: C.
        index_BJ: Classes that a row says one by one, int64; the last is its label, or stands there twice.
        logits_BJ: Theirs, float32.
        new_BJ: False where a class stands before, too.
        lowest_B1: What no class falls below.
        level_B1: The logit of every other class, where all have one; None where they are predicted.
        predicted: Else.
    """

    num_classes: int
    index_BJ: Tensor
    logits_BJ: Tensor
    new_BJ: Tensor
    lowest_B1: Tensor
    level_B1: Tensor | None = None
    predicted: LowRank | None = None

    def tail(self, classes: slice, out_Bc: Tensor) -> Tensor:
        """Predicted logits of some classes, written into ``out_Bc``; of those said one by one they mean nothing."""
        assert self.predicted is not None  # there is no level
        return torch.maximum(self.predicted.logits(classes, out_Bc), self.lowest_B1, out=out_Bc)

    def only(self, own_B: Tensor) -> "SparseLogits":
        """The same of some of the rows, bool [B]."""
        predicted = None if self.predicted is None else self.predicted.only(own_B)
        return replace(self, **_own(vars(self), own_B), predicted=predicted)


def _own(values: Mapping[str, Any], own_B: Tensor) -> dict[str, Any]:
    """Of what is there for each row, that of some."""
    of_rows = ("_BD", "_B", "_BJ", "_B1")
    return {name: value[own_B] for name, value in values.items() if value is not None and name.endswith(of_rows)}
