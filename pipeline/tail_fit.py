"""Fits a tail predictor from a stream of a teacher's own logits.

Ridge regression with an intercept from streaming normal equations in float64 (`update`, then `fit`). The
strength of the ridge, the gauge of the features and whether there is a predictor at all are decided by the
KL of decoded rows that took no part in the equations. Memory: two [C, C] float64 matrices for each of two
gauges plus the kept rows (up to 256 MiB); time: one symmetric eigenproblem of size C. Above 4,096 classes
both give way to a low-rank form that is solved on the kept rows alone by conjugate gradients
(`_fit_low_rank`): C = 21,841 with 6,000 kept rows takes about a minute and 2 GB.

Shape suffixes: B rows, C classes, K kept classes, R left-out rows, D inner dimension.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from pipeline.tail_basis import TailBasis
from pipeline.tail_predictor import Gauge, TailPredictor, shift_to_mass

DENSE_CLASSES = 4096
LOW_RANK = 128
MAX_BASIS = 1024
KEPT_BYTES = 2**28
TEMPERATURES = (1.0, 2.0, 4.0)
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # times the mean diagonal of the equations
LOW_RANK_RIDGES = (0.1, 1.0, 10.0)
_FLOOR = 40.0  # a logit further than this below the row's K-th counts as this far
_USEFUL = 0.97  # of the uniform tail's KL; above it a predictor is dropped


_Maps = tuple[Tensor, Tensor | None, Tensor]  # matrix [C, D], factor [D, C] or None (D = C), bias [C]


@dataclass
class _Sums:
    """Normal equations of one gauge, float64."""

    gauge: Gauge
    xx_CC: Tensor
    xy_CC: Tensor
    x_C: Tensor
    y_C: Tensor
    rows: int = 0

    def add(self, x_BC: Tensor, y_BC: Tensor) -> None:
        self.xx_CC += (x_BC.T @ x_BC).double()
        self.xy_CC += (x_BC.T @ y_BC).double()
        self.x_C += x_BC.sum(0).double()
        self.y_C += y_BC.sum(0).double()
        self.rows += len(x_BC)


class TailFit:
    """Streaming fit of one teacher's predictor.

    Args:
        num_classes: C.
        top_k: K of the store.
        tail_bytes: Bytes of coded residual per row; 0 for "topk".
        gauge: Use this gauge instead of choosing one; fold teachers that are stacked must share it.
    """

    def __init__(
        self, num_classes: int, top_k: int, *, tail_bytes: int = 0, gauge: Gauge | None = None
    ) -> None:
        self.num_classes, self.top_k, self.tail_bytes = num_classes, top_k, tail_bytes
        self._gauges: tuple[Gauge, ...] | None = None if gauge is None else (gauge,)
        self._sums: list[_Sums] = []
        self._train: list[Tensor] = []
        self._left_out: list[Tensor] = []
        self._seen = 0
        self._kept_bytes = 0

    def update(self, logits_BC: Tensor, held_out_B: Tensor | None = None) -> None:
        """Adds rows.

        Args:
            logits_BC: Raw logits.
            held_out_B: True for rows that only validate; every eighth row when left out. Views of one example
                belong on one side.
        """
        logits_BC = logits_BC.detach().float()
        if held_out_B is None:
            held_out_B = (torch.arange(len(logits_BC), device=logits_BC.device) + self._seen) % 8 == 7
        self._seen += len(logits_BC)
        room = max(0, KEPT_BYTES - self._kept_bytes) // (4 * self.num_classes)
        kept, left_out = logits_BC[~held_out_B], logits_BC[held_out_B]
        self._train.append(kept[:room].cpu())
        self._left_out.append(left_out[: max(0, room // 4)].cpu())
        self._kept_bytes += 4 * self.num_classes * (len(self._train[-1]) + len(self._left_out[-1]))
        if self.num_classes <= DENSE_CLASSES and len(kept):
            best_BK, index_BK = torch.topk(kept, self.top_k, dim=1)
            if not self._sums:
                self._sums = [self._empty(gauge, kept.device) for gauge in self._choices(best_BK)]
            target_BC = _target(kept, best_BK)
            for sums in self._sums:
                x_BC = torch.zeros_like(kept).scatter_(1, index_BK, sums.gauge.features(best_BK))
                sums.add(x_BC, target_BC)

    def _choices(self, best_BK: Tensor) -> tuple[Gauge, ...]:
        if self._gauges is None:
            limit = 4 * float(best_BK[torch.isfinite(best_BK)].abs().max().clamp(min=1.0))
            spread = float((best_BK[:, 0] - best_BK[:, -1]).clamp(max=_FLOOR).mean())
            self._gauges = (Gauge(limit=limit), Gauge(kth=1.0, offset=max(0.5 * spread, 0.1), limit=limit))
        return self._gauges

    def _empty(self, gauge: Gauge, device: torch.device) -> _Sums:
        size = self.num_classes
        square = torch.zeros((2, size, size), dtype=torch.float64, device=device)
        line = torch.zeros((2, size), dtype=torch.float64, device=device)
        return _Sums(gauge, square[0], square[1], line[0], line[1])

    def fit(self) -> TailPredictor | None:
        """The best predictor by left-out KL; None when none beats a uniform tail and no residual is coded."""
        nothing = torch.empty((0, self.num_classes))
        train, left_out = torch.cat([nothing, *self._train]), torch.cat([nothing, *self._left_out])
        if len(train) < 2 or len(left_out) < 1 or self.top_k == self.num_classes:
            return self._flat(train, left_out) if self.tail_bytes else None
        judge = _Judge(left_out, self.top_k)
        best, best_score = None, 1.0 if self.tail_bytes else _USEFUL
        if self.num_classes <= DENSE_CLASSES:
            candidates = [(sums.gauge, maps) for sums in self._sums for maps in _ridge_path(sums)]
        else:
            gauge = self._choices(torch.topk(train[:1024], self.top_k, dim=1).values)[0]
            candidates = [(gauge, maps) for maps in _fit_low_rank(train, self.top_k, gauge)]
        for gauge, (matrix, factor, bias) in candidates:
            predictor = TailPredictor(
                matrix_FCD=matrix[None],
                bias_FC=bias[None],
                factor_FDC=None if factor is None else factor[None],
                gauge=gauge,
            )
            score = judge.relative_kl(predictor)
            if score < best_score:
                best, best_score = predictor.to("cpu"), score
        if not self.tail_bytes:
            return best
        return self._flat(train, left_out) if best is None else self._with_basis(best, train, left_out)

    def _flat(self, train: Tensor, left_out: Tensor) -> TailPredictor:
        """No prediction, only the coded residual."""
        gauge = self._gauges[0] if self._gauges else Gauge()
        return self._with_basis(no_prediction(self.num_classes, gauge), train, left_out)

    def _with_basis(self, predictor: TailPredictor, train: Tensor, left_out: Tensor) -> TailPredictor:
        if not len(train) or not len(left_out):
            raise ValueError(
                f"expected 8 or more rows to fit a tail code, found {self._seen}; raise --predictor-rows"
            )
        basis = TailBasis.fit(
            residual(train[:20_000], self.top_k, predictor),
            residual(left_out, self.top_k, predictor),
            self.tail_bytes,
            self.num_classes if self.num_classes <= DENSE_CLASSES else MAX_BASIS,
        )
        return TailPredictor(
            matrix_FCD=predictor.matrix_FCD,
            bias_FC=predictor.bias_FC,
            factor_FDC=predictor.factor_FDC,
            gauge=predictor.gauge,
            basis=basis,
        )


def no_prediction(num_classes: int, gauge: Gauge) -> TailPredictor:
    """The predictor of a uniform tail, in the form that other predictors of so many classes have."""
    dense = num_classes <= DENSE_CLASSES
    inner = num_classes if dense else LOW_RANK
    return TailPredictor(
        matrix_FCD=torch.zeros(1, num_classes, inner),
        bias_FC=torch.zeros(1, num_classes),
        factor_FDC=None if dense else torch.zeros(1, inner, num_classes),
        gauge=gauge,
    )


def _target(logits_BC: Tensor, best_BK: Tensor) -> Tensor:
    """What is regressed: logits clipped from below, zero mean in each row."""
    floor_B1 = best_BK[:, -1:].clamp(min=-1e6) - _FLOOR
    target_BC = torch.maximum(logits_BC, floor_B1)
    return target_BC - target_BC.mean(1, keepdim=True)


def residual(
    logits_BC: Tensor,
    top_k: int,
    predictor: TailPredictor,
    folds_B: Tensor | None = None,
    head: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """What the prediction leaves of the tail: zero in the head, zero mean in each row, float32 [B, C]."""
    best_BK, index_BK = torch.topk(logits_BC, top_k, dim=1) if head is None else head
    floored_BC = torch.maximum(logits_BC, best_BK[:, -1:].clamp(min=-1e6) - _FLOOR)
    residual_BC = floored_BC - predictor.predict(index_BK, best_BK, folds_B)
    tail_size = max(1, logits_BC.shape[1] - top_k)
    residual_BC.scatter_(1, index_BK, 0.0)
    residual_BC -= residual_BC.sum(1, keepdim=True) / tail_size
    return residual_BC.scatter_(1, index_BK, 0.0)


def _ridge_path(sums: _Sums) -> list[_Maps]:
    """Maps for every ridge strength from one eigendecomposition: (matrix [C, C], None, bias [C])."""
    mean_x, mean_y = sums.x_C / sums.rows, sums.y_C / sums.rows
    xx = sums.xx_CC - sums.rows * torch.outer(mean_x, mean_x)
    xy = sums.xy_CC - sums.rows * torch.outer(mean_x, mean_y)
    values, vectors = torch.linalg.eigh(xx)
    values, rotated = values.clamp(min=0), vectors.T @ xy
    typical = float(xx.diagonal().mean().clamp(min=1e-6))
    path: list[_Maps] = []
    for ridge in RIDGES:
        matrix = vectors @ (rotated / (values + ridge * typical)[:, None])
        path.append((matrix.float(), None, (mean_y - mean_x @ matrix).float()))
    return path


def _fit_low_rank(train: Tensor, top_k: int, gauge: Gauge) -> list[_Maps]:
    """Maps of rank at most LOW_RANK from kept rows: principal directions of the logits, then ridge by CG."""
    best_BK, index_BK = torch.topk(train, top_k, dim=1)
    feature_BK = gauge.features(best_BK)
    target_BC = _target(train, best_BK)
    bias = target_BC.mean(0)
    target_BC -= bias
    some = target_BC[:: max(1, len(target_BC) // 3000)]
    values, left = torch.linalg.eigh((some @ some.T).double())
    kept = (values > values[-1] * 1e-9).nonzero().squeeze(1)[-LOW_RANK:]
    factor_DC = (left[:, kept] / values[kept].sqrt()).T.float() @ some
    factor_DC = torch.nn.functional.pad(factor_DC, (0, 0, 0, LOW_RANK - len(factor_DC)))
    target_BD = target_BC @ factor_DC.T
    typical = float(feature_BK.square().sum()) / train.shape[1]

    def gram(ridge: float, matrix_CD: Tensor) -> Tensor:
        inner_BD = embedding_bag(index_BK, matrix_CD, per_sample_weights=feature_BK, mode="sum")
        back_CD = _transpose_apply(index_BK, feature_BK, inner_BD, len(matrix_CD))
        return back_CD + ridge * typical * matrix_CD

    right = _transpose_apply(index_BK, feature_BK, target_BD, train.shape[1])
    solved = [_conjugate_gradients(partial(gram, ridge), right) for ridge in LOW_RANK_RIDGES]
    return [(matrix_CD, factor_DC, bias) for matrix_CD in solved]


def _transpose_apply(index_BK: Tensor, weight_BK: Tensor, inner_BD: Tensor, num_classes: int) -> Tensor:
    out = torch.zeros((num_classes, inner_BD.shape[1]), device=inner_BD.device)
    for k in range(index_BK.shape[1]):
        out.index_add_(0, index_BK[:, k], inner_BD * weight_BK[:, k : k + 1])
    return out


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], right: Tensor, steps: int = 30) -> Tensor:
    """Solves apply(x) = right for every column, float32 [C, D]."""
    solution, left_over = torch.zeros_like(right), right.clone()
    direction, error = left_over.clone(), left_over.square().sum(0)
    start = error.clone()
    for _ in range(steps):
        image = apply(direction)
        length = error / (direction * image).sum(0).clamp(min=1e-30)
        solution += length * direction
        left_over -= length * image
        before, error = error, left_over.square().sum(0)
        if bool((error <= 1e-8 * start).all()):
            break
        direction = left_over + error / before.clamp(min=1e-30) * direction
    return solution


class _Judge:
    """KL of left-out rows with an exact head and a predicted tail, relative to a uniform tail."""

    def __init__(self, logits_RC: Tensor, top_k: int) -> None:
        rows = max(16, min(len(logits_RC), 2_000_000 // logits_RC.shape[1]))
        self.logits = logits_RC[:rows]
        self.best_RK, self.index_RK = torch.topk(self.logits, top_k, dim=1)
        self.known = torch.zeros(self.logits.shape, dtype=torch.bool).scatter_(1, self.index_RK, True)
        self.log_mass = self.logits.masked_fill(self.known, -math.inf).logsumexp(1)
        self.uniform = self._kl(torch.zeros_like(self.logits))

    def relative_kl(self, predictor: TailPredictor) -> float:
        """Mean over the temperatures of KL / KL of a uniform tail."""
        ours = self._kl(predictor.to(self.logits.device).predict(self.index_RK, self.best_RK))
        return sum(a / max(b, 1e-12) for a, b in zip(ours, self.uniform, strict=True)) / len(ours)

    def _kl(self, shape_RC: Tensor) -> list[float]:
        cap_R = self.best_RK[:, -1]
        shift_R = shift_to_mass(shape_RC, self.known, self.log_mass, cap_R)
        decoded = torch.minimum(shape_RC + shift_R[:, None], cap_R[:, None])
        decoded.scatter_(1, self.index_RK, self.best_RK)
        return [mean_kl(self.logits, decoded, temperature) for temperature in TEMPERATURES]


def mean_kl(teacher_BC: Tensor, decoded_BC: Tensor, temperature: float) -> float:
    """Mean over rows of T^2 KL(teacher || decoded) in nats; classes that the teacher masks do not count."""
    log_p = torch.log_softmax(teacher_BC.float() / temperature, 1)
    log_q = torch.log_softmax(decoded_BC.float() / temperature, 1)
    term = torch.where(torch.isneginf(log_p), 0.0, log_p.exp() * (log_p - log_q))
    return float(term.sum(1).double().mean()) * temperature**2
