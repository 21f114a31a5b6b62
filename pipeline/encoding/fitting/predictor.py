"""Fits a tail predictor from a stream of a teacher's own logits.

Ridge regression with an intercept from streaming normal equations in float64 (`update`, then `fit`). The
strength of the ridge, the gauge of the features and whether there is a predictor at all are decided by the
KL of decoded rows that took no part in the equations. Memory: two [C, C] float64 matrices for each of two
gauges plus the kept rows (up to 256 MiB); time: one symmetric eigenproblem of size C. Above 4,096 classes
both give way to a low-rank form, whose directions are those of the kept rows and whose regression, by conjugate
gradients, takes all (`low_rank`).

Shape suffixes: B rows, C classes, K kept classes, R left-out rows, D inner dimension.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from logitbank.pipeline.encoding.fitting.basis import eigen, fit_basis
from logitbank.pipeline.encoding.fitting.low_rank import (
    LOW_RANK,
    Coordinates,
    Directions,
    Maps,
    coordinates,
    fit_low_rank,
    principal_directions,
    regression_target,
)
from logitbank.pipeline.encoding.settings import DENSE_CLASSES, MAX_BASIS
from logitbank.pipeline.encoding.tail_mass import shift_to_mass
from logitbank.pipeline.encoding.tail_predictor import FLOOR, Gauge, TailPredictor, tail_residual

KEPT_BYTES = 2**28
BASIS_ROWS = 20_000
MATRIX_GRID = 2.0**10  # entries are multiples of 2^-10: half the bytes after compression
TEMPERATURES = (1.0, 2.0, 4.0)
RIDGES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # times the mean diagonal of the equations
_MOST_FLOAT16 = 6e4  # features and maps meet in float16
_FEWEST_LEFT_OUT = 16  # rows that can tell whether a prediction helps
_USEFUL = 0.97  # of the uniform tail's KL; above it a predictor is dropped


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
        gauges: Choose among these instead of what the first rows suggest; fold teachers share theirs.
    """

    def __init__(self, num_classes: int, top_k: int, *, gauges: tuple[Gauge, ...] = ()) -> None:
        self.num_classes, self.top_k = num_classes, top_k
        self._gauges, self._first_best, self._room, self._left_out_room = gauges, list[Tensor](), 0, 0
        self._sums: list[_Sums] = []
        self._train: list[Tensor] = []
        self._left_out: list[Tensor] = []
        self._directions: Directions | None = None
        self._further: list[Coordinates] = []  # of rows that there is no room for, where classes are many
        self._seen = 0
        self._kept_bytes = 0
        self._fitted: tuple[int, TailPredictor | None] | None = None

    @property
    def gauges(self) -> tuple[Gauge, ...]:
        """Those to choose among; suggested by the rows of the first update."""
        if not self._gauges and self._first_best:
            self._gauges, self._first_best = _suggest_gauges(torch.cat(self._first_best)), []
        return self._gauges

    def update(self, logits_BC: Tensor, held_out_B: Tensor | None = None, *, more: bool = False) -> None:
        """Adds rows.

        Args:
            logits_BC: Raw logits.
            held_out_B: True for rows that only validate; every eighth row when left out. Views of one example
                belong on one side.
            more: These rows go on with the last update: together they count as one.
        """
        logits_BC = logits_BC.detach().float()
        if held_out_B is None:
            held_out_B = (torch.arange(len(logits_BC), device=logits_BC.device) + self._seen) % 8 == 7
        self._seen += len(logits_BC)
        if not more:
            self._room = max(0, KEPT_BYTES - self._kept_bytes) // (4 * self.num_classes)
            self._left_out_room, self._gauges = self._room // 4, self.gauges
        kept, left_out = logits_BC[~held_out_B], logits_BC[held_out_B]
        self._keep(kept, left_out)
        if not len(kept):
            return
        best_BK, index_BK = torch.topk(kept, self.top_k, dim=1)
        if not self._gauges:
            self._first_best.append(best_BK)
        if self.num_classes <= DENSE_CLASSES:
            if not self._sums:
                self._sums = [self._empty(gauge, kept.device) for gauge in self.gauges]
            target_BC = regression_target(kept, best_BK)
            for sums in self._sums:
                x_BC = torch.zeros_like(kept).scatter_(1, index_BK, sums.gauge.features(best_BK))
                sums.add(x_BC, target_BC)

    def _keep(self, train: Tensor, left_out: Tensor) -> None:
        """Keeps rows as far as there is room; what is not kept is not held by a view of it."""
        further, train, left_out = train[self._room :], train[: self._room], left_out[: self._left_out_room]
        self._train += [train.to("cpu", copy=True)] if len(train) else []
        self._left_out += [left_out.to("cpu", copy=True)] if len(left_out) else []
        self._room, self._left_out_room = self._room - len(train), self._left_out_room - len(left_out)
        self._kept_bytes += 4 * self.num_classes * (len(train) + len(left_out))
        if self.num_classes > DENSE_CLASSES and len(further) and self._train:
            self._further.append(coordinates(further.cpu(), self.top_k, self._along()))

    def _along(self) -> Directions:
        """The principal directions of the rows that are kept, once there is no room for more."""
        if self._directions is None:
            self._train = [torch.cat(self._train)]
            self._directions = principal_directions(self._train[0], self.top_k)
        return self._directions

    def use_gauge(self, gauge: Gauge) -> None:
        """Fits with this one of its gauges only: fold teachers that are stacked share one."""
        self._gauges = (gauge,)
        self._sums = [sums for sums in self._sums if sums.gauge == gauge]

    def _empty(self, gauge: Gauge, device: torch.device) -> _Sums:
        size = self.num_classes
        square = torch.zeros((2, size, size), dtype=torch.float64, device=device)
        line = torch.zeros((2, size), dtype=torch.float64, device=device)
        return _Sums(gauge, square[0], square[1], line[0], line[1])

    def fit(self, tail_bytes: int = 0) -> TailPredictor | None:
        """The best predictor by left-out KL.

        Args:
            tail_bytes: Bytes of a row's coded residual; 0 for "topk".

        Returns:
            On the CPU. None when none beats a uniform tail clearly and no residual is coded.
        """
        nothing = torch.empty((0, self.num_classes))
        self._train, self._left_out = [torch.cat([nothing, *self._train])], [torch.cat([nothing, *self._left_out])]
        train, left_out = self._train[0], self._left_out[0]
        if self._fitted is None or self._fitted[0] != self._seen:
            best = self._best(train, left_out) if len(train) > 1 and len(left_out) else None
            self._fitted = self._seen, best
        predictor = self._fitted[1]
        if not tail_bytes:
            return predictor
        if not len(train) or not len(left_out):
            raise ValueError(f"expected 8 or more rows to fit a tail code, found {self._seen}; raise --predictor-rows")
        predictor = predictor or no_prediction(self.num_classes, self.gauges[0])
        most = self.num_classes if self.num_classes <= DENSE_CLASSES else MAX_BASIS
        fitted, measured = (
            tail_residual(logits, *torch.topk(logits, self.top_k, dim=1), predictor)
            for logits in (train[:BASIS_ROWS], left_out[:BASIS_ROWS])
        )
        return predictor.with_basis(fit_basis(fitted, measured, tail_bytes, most))

    def _best(self, train: Tensor, left_out: Tensor) -> TailPredictor | None:
        if self.top_k == self.num_classes or len(left_out) < _FEWEST_LEFT_OUT:
            return None
        judge = _Judge(left_out, self.top_k)
        best, best_score = None, _USEFUL
        if self.num_classes <= DENSE_CLASSES:
            candidates = [(sums.gauge, maps) for sums in self._sums for maps in _ridge_path(sums)]
        else:
            gauge, directions = self.gauges[0], self._directions or principal_directions(train, self.top_k)
            parts = [coordinates(some, self.top_k, directions) for some in torch.split(train, 256)]
            candidates = [(gauge, maps) for maps in fit_low_rank([*parts, *self._further], directions, gauge)]
        for gauge, (matrix, factor, bias) in candidates:
            predictor = TailPredictor(
                matrix_FCD=(matrix[None] * MATRIX_GRID).round() / MATRIX_GRID,
                bias_FC=bias[None],
                factor_FDC=None if factor is None else factor[None],
                gauge=gauge,
            ).to("cpu")
            score = judge.relative_kl(predictor)
            if score < best_score:
                best, best_score = predictor, score
        return best


def _suggest_gauges(best_BK: Tensor) -> tuple[Gauge, ...]:
    """The teacher's own scale, and distances from the row's K-th."""
    limit = 4 * float(best_BK[torch.isfinite(best_BK)].abs().max().clamp(min=1.0))
    limit = min(limit, _MOST_FLOAT16)
    spread = float((best_BK[:, 0] - best_BK[:, -1]).clamp(max=FLOOR).mean())
    return Gauge(limit=limit), Gauge(kth=1.0, offset=max(0.5 * spread, 0.1), limit=limit)


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


def _ridge_path(sums: _Sums) -> list[Maps]:
    """Maps for every ridge strength from one eigendecomposition: (matrix [C, C], None, bias [C])."""
    mean_x, mean_y = sums.x_C / sums.rows, sums.y_C / sums.rows
    xx = sums.xx_CC - sums.rows * torch.outer(mean_x, mean_x)
    xy = sums.xy_CC - sums.rows * torch.outer(mean_x, mean_y)
    values, vectors = eigen(xx)
    values, rotated = values.clamp(min=0), vectors.T @ xy
    typical = float(xx.diagonal().mean().clamp(min=1e-6))
    path: list[Maps] = []
    for ridge in RIDGES:
        matrix = vectors @ (rotated / (values + ridge * typical)[:, None])
        path.append((matrix.float(), None, (mean_y - mean_x @ matrix).float()))
    return path


class _Judge:
    """KL of left-out rows with an exact head and a predicted tail, relative to a uniform tail."""

    def __init__(self, logits_RC: Tensor, top_k: int) -> None:
        rows = max(16, min(len(logits_RC), 2_000_000 // logits_RC.shape[1]))
        self.logits = logits_RC[:rows]
        self.best_RK, self.index_RK = torch.topk(self.logits, top_k, dim=1)
        self.log_mass = self.logits.scatter(1, self.index_RK, -math.inf).logsumexp(1)
        self.uniform = self._kl(torch.zeros_like(self.logits))

    def relative_kl(self, predictor: TailPredictor) -> float:
        """Mean over the temperatures of KL / KL of a uniform tail."""
        ours = self._kl(predictor.predict(self.index_RK, self.best_RK))
        return sum(a / max(b, 1e-12) for a, b in zip(ours, self.uniform, strict=True)) / len(ours)

    def _kl(self, shape_RC: Tensor) -> list[float]:
        cap_R = self.best_RK[:, -1]
        shift_R = shift_to_mass(shape_RC.clone(), self.index_RK, self.log_mass, cap_R)
        decoded = torch.minimum(shape_RC + shift_R[:, None], cap_R[:, None])
        decoded.scatter_(1, self.index_RK, self.best_RK)
        return [mean_kl(self.logits, decoded, temperature) for temperature in TEMPERATURES]


def mean_kl(teacher_BC: Tensor, decoded_BC: Tensor, temperature: float) -> float:
    """Mean over rows of `row_kl`."""
    return float(row_kl(teacher_BC, decoded_BC, temperature).mean())


def row_kl(teacher_BC: Tensor, decoded_BC: Tensor, temperature: float) -> Tensor:
    """T^2 KL(teacher || decoded) in nats, float64 [B]; classes that the teacher masks do not count."""
    log_p = torch.log_softmax(teacher_BC.float() / temperature, 1)
    log_q = torch.log_softmax(decoded_BC.float() / temperature, 1)
    term = torch.where(torch.isneginf(log_p), 0.0, log_p.exp() * (log_p - log_q))
    return term.sum(1).double() * temperature**2
