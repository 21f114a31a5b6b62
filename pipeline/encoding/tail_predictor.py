"""Predicts a row's tail from its head, and carries what of the tail is coded in bits.

What a teacher says about the classes outside its top K is largely a function of what it says inside. The
predictor is an affine map, fitted once per teacher (`fitting`), from the row's sparse vector of K head
logits [C] to all its logits [C]. Only the shape counts: one shift per row (`tail_mass`) then gives the
tail its exact mass at T = 1, so the map is defined up to a constant per row.

A head logit z enters as `z - gauge_kth * z_kth + gauge_offset`, clipped to +-gauge_limit: gauge_kth = 0
keeps the teacher's own scale, gauge_kth = 1 measures from the row's K-th.

Constants in a store, F = fold teachers (1 without folds), D = C or the rank of the low-rank form, float16:
tail_matrix [F, C, D], tail_bias [F, C], tail_factor [F, D, C] (low-rank only), tail_gauge float32 [3], and
those of `tail_basis` for "topk+tail". The matrix is small beside a store: 2 MB for C = 1000; for C = 21,841
the low-rank form with D = 128 is 11 MB.

Shape suffixes: B rows, C classes, K kept classes, F folds, D inner dimension of the map.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from logitbank.pipeline.encoding.sparse import LowRank
from logitbank.pipeline.encoding.tail_basis import TailBasis

_LOWEST = -3e4
FLOOR = 40.0  # a logit further than this below the row's K-th counts as this far


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """How a head logit enters the map: `z - kth * z_kth + offset`, clipped to +-limit."""

    kth: float = 0.0
    offset: float = 0.0
    limit: float = 1e4

    def features(self, head_BK: Tensor) -> Tensor:
        """Features of raw head logits, best first, float32 [B, K]; finite for any head."""
        if self.kth or self.offset:
            head_BK = head_BK.clamp(min=_LOWEST)
            head_BK = head_BK - self.kth * head_BK[:, -1:] + self.offset
        return head_BK.clamp(-self.limit, self.limit)


class TailPredictor:
    """Head logits -> shape of the dense logits, one affine map per fold teacher.

    Args:
        matrix_FCD: float16.
        bias_FC: float16.
        factor_FDC: float16, for the low-rank form; else D = C.
        gauge: How head logits enter.
        basis: Decodes the residual codes of "topk+tail".
    """

    def __init__(
        self,
        *,
        matrix_FCD: Tensor,
        bias_FC: Tensor,
        factor_FDC: Tensor | None = None,
        gauge: Gauge,
        basis: TailBasis | None = None,
    ) -> None:
        self.matrix_FCD = matrix_FCD.to(torch.float16)
        self.bias_FC = bias_FC.to(torch.float16)
        self.factor_FDC = None if factor_FDC is None else factor_FDC.to(torch.float16)
        self.gauge = gauge
        self.basis = basis
        self.num_folds, self.num_classes, inner = self.matrix_FCD.shape
        # The table that embedding_bag reads: F * C rows; without factors in float16 and followed by F biases.
        if self.factor_FDC is None:
            self._table = torch.cat([self.matrix_FCD.reshape(-1, inner), self.bias_FC])
        else:
            self._table = self.matrix_FCD.float().reshape(-1, inner)
            self._factor_FDC = torch.cat([self.factor_FDC, self.bias_FC[:, None]], 1).float()  # one coordinate is 1

    def to(self, device: torch.device | str) -> "TailPredictor":
        """The same predictor on another device."""
        if self.matrix_FCD.device == torch.empty(0, device=device).device:
            return self
        return TailPredictor(
            matrix_FCD=self.matrix_FCD.to(device),
            bias_FC=self.bias_FC.to(device),
            factor_FDC=None if self.factor_FDC is None else self.factor_FDC.to(device),
            gauge=self.gauge,
            basis=None if self.basis is None else self.basis.to(device),
        )

    def with_basis(self, basis: TailBasis) -> "TailPredictor":
        """The same prediction with coded residuals on top."""
        return TailPredictor(
            matrix_FCD=self.matrix_FCD,
            bias_FC=self.bias_FC,
            factor_FDC=self.factor_FDC,
            gauge=self.gauge,
            basis=basis,
        )

    def predict(
        self,
        index_BK: Tensor,
        head_BK: Tensor,
        folds_B: Tensor | None = None,
        *,
        tail_code: Tensor | None = None,
        shift_B: Tensor | None = None,
        limit_B: Tensor | None = None,
    ) -> Tensor:
        """Logits of every class, up to a constant per row unless `shift_B` is given.

        Args:
            index_BK: int64 class ids of the head.
            head_BK: float32 raw logits of the head, best first.
            folds_B: Fold of each row; needed when there is more than one.
            tail_code: uint8 [B, bytes], the coded residual, added when there is one.
            shift_B: Added to each row.
            limit_B: What no logit of a row exceeds then.

        Returns:
            float32 [B, C]; what it says of the head's own classes means nothing.
        """
        if self.factor_FDC is not None:
            low_rank = self.low_rank(index_BK, head_BK, folds_B, tail_code=tail_code, shift_B=shift_B, limit_B=limit_B)
            return low_rank.every_class()
        fold_B = self._folds(folds_B, index_BK)
        shape_BC = self._full(index_BK, self.gauge.features(head_BK), fold_B, shift_B)
        if tail_code is not None and self.basis is not None:
            shape_BC += self.basis.decode(tail_code, fold_B)
        return shape_BC if limit_B is None else shape_BC.clamp_(max=limit_B[:, None])

    def low_rank(
        self,
        index_BK: Tensor,
        head_BK: Tensor,
        folds_B: Tensor | None = None,
        *,
        tail_code: Tensor | None = None,
        shift_B: Tensor | None = None,
        limit_B: Tensor | None = None,
    ) -> LowRank:
        """What `predict` multiplies out, for the low-rank form."""
        fold_B, basis = self._folds(folds_B, index_BK), None if tail_code is None else self.basis
        row_BK = index_BK if fold_B is None else index_BK + (fold_B * self.num_classes)[:, None]
        features_BK = self.gauge.features(head_BK)
        inner_BD = embedding_bag(row_BK, self._table, per_sample_weights=features_BK, mode="sum")
        return LowRank(
            inner_BD=torch.cat([inner_BD, torch.ones_like(inner_BD[:, :1])], 1),
            factor_FDC=self._factor_FDC,
            fold_B=fold_B,
            basis=basis,
            values=[] if basis is None or tail_code is None else basis.every_value(tail_code),
            shift_B1=None if shift_B is None else shift_B[:, None],
            limit_B1=None if limit_B is None else limit_B[:, None],
        )

    def _folds(self, folds_B: Tensor | None, index_BK: Tensor) -> Tensor | None:
        if self.num_folds == 1:
            return None
        if folds_B is None:
            raise ValueError(f"expected each row's fold among {self.num_folds} fold teachers, found none; pass folds_B")
        return folds_B.to(index_BK.device).long()

    def _full(self, index_BK: Tensor, feature_BK: Tensor, fold_B: Tensor | None, shift_B: Tensor | None) -> Tensor:
        bias_B1 = index_BK.new_full((len(index_BK), 1), self.num_folds * self.num_classes)
        if fold_B is not None:
            index_BK = index_BK + (fold_B * self.num_classes)[:, None]
            bias_B1 += fold_B[:, None]
        row = torch.cat([index_BK, bias_B1], 1)
        weight = torch.cat([feature_BK, torch.ones_like(feature_BK[:, :1])], 1).half()
        shape_BC = embedding_bag(row, self._table, per_sample_weights=weight, mode="sum")
        shape_BC = shape_BC.float()
        return shape_BC if shift_B is None else shape_BC.add_(shift_B[:, None])

    def constants(self) -> dict[str, np.ndarray]:
        """What a store keeps once per teacher; `from_constants` is the inverse."""
        gauge = np.array([self.gauge.kth, self.gauge.offset, self.gauge.limit], dtype=np.float32)
        arrays = {
            "tail_matrix": self.matrix_FCD.cpu().numpy(),
            "tail_bias": self.bias_FC.cpu().numpy(),
            "tail_gauge": gauge,
        }
        if self.factor_FDC is not None:
            arrays["tail_factor"] = self.factor_FDC.cpu().numpy()
        return arrays | ({} if self.basis is None else self.basis.constants())

    @classmethod
    def from_constants(cls, constants: Mapping[str, np.ndarray]) -> "TailPredictor | None":
        """The predictor that a store's constants hold, None when they hold none."""
        if "tail_matrix" not in constants:
            return None
        absent = next((name for name in ("tail_bias", "tail_gauge") if name not in constants), None)
        if absent is not None:
            raise ValueError(f"expected {absent} beside tail_matrix, found none; fetch the store again")
        matrix, bias, gauge = (
            torch.from_numpy(np.array(constants[f"tail_{part}"])) for part in ("matrix", "bias", "gauge")
        )
        factor = torch.from_numpy(np.array(constants["tail_factor"])) if "tail_factor" in constants else None
        inner = bias.shape[-1] if factor is None else factor.shape[1] if factor.dim() == 3 else -1
        expected = (*bias.shape, inner), (bias.shape[0], inner, bias.shape[-1])
        if bias.dim() != 2 or matrix.shape != expected[0] or (factor is not None and factor.shape != expected[1]):
            shapes = f"tail_matrix {list(matrix.shape)} and tail_bias {list(bias.shape)}"
            raise ValueError(f"expected a tail predictor of one shape, found {shapes}; fetch the store again")
        if gauge.shape != (3,) or not gauge.isfinite().all():
            raise ValueError(
                f"expected three finite numbers in tail_gauge, found {gauge.tolist()}; fetch the store again"
            )
        kth, offset, limit = gauge.tolist()
        basis = TailBasis.from_constants(constants)
        if basis is not None and (len(basis.basis_FMC), basis.basis_FMC.shape[2]) != tuple(bias.shape):
            raise ValueError("expected tail_basis and tail_bias of the same folds and classes; fetch the store again")
        return cls(
            matrix_FCD=matrix,
            bias_FC=bias,
            factor_FDC=factor,
            gauge=Gauge(kth=kth, offset=offset, limit=limit),
            basis=basis,
        )

    @classmethod
    def stack(cls, predictors: "Sequence[TailPredictor]") -> "TailPredictor":
        """One predictor with a map per fold, in the order given; all must share the gauge."""
        first = predictors[0]
        if any(p.gauge != first.gauge for p in predictors):
            raise ValueError("expected fold predictors with one gauge, found several; fit them together")
        factors = [p.factor_FDC for p in predictors if p.factor_FDC is not None]
        bases = [p.basis for p in predictors if p.basis is not None]
        return cls(
            matrix_FCD=torch.cat([p.matrix_FCD for p in predictors]),
            bias_FC=torch.cat([p.bias_FC for p in predictors]),
            factor_FDC=torch.cat(factors) if factors else None,
            gauge=first.gauge,
            basis=TailBasis.stack(bases) if bases else None,
        )


def tail_residual(
    logits_BC: Tensor, head_BK: Tensor, index_BK: Tensor, predictor: TailPredictor, folds_B: Tensor | None = None
) -> Tensor:
    """What the prediction leaves of the tail: zero in the head, zero mean in each row, float32 [B, C]."""
    residual_BC = torch.maximum(logits_BC, head_BK[:, -1:].clamp(min=-1e6) - FLOOR)
    residual_BC -= predictor.predict(index_BK, head_BK, folds_B)
    tail_size = max(1, logits_BC.shape[1] - head_BK.shape[1])
    residual_BC.scatter_(1, index_BK, 0.0)
    residual_BC -= residual_BC.sum(1, keepdim=True) / tail_size
    return residual_BC.scatter_(1, index_BK, 0.0)
