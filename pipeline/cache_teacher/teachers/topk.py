"""Teachers that have already spoken, to anybody: log-probabilities of the best classes of each answer.

What such a file does not say, nobody can know afterwards:

- the other classes. Their mass is what the row leaves of 1; it is spread evenly, none above the least of the head. No
  predictor is fitted, since there is nothing to fit it on.
- the scale of the logits. ``logsumexp`` is 0.
- the label's probability where the row does not name it. The store gives it the even share, says in how many rows, and
  losses that take the teacher's own probability of the label are refused.

Shapes: B answers, C classes, K entries of an answer, N examples.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.guessed_labels import labels_named
from logitbank.pipeline.cache_teacher.teachers import TOPK_PREFIX
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features, Rows, in_turn
from logitbank.pipeline.cache_teacher.teachers.arrays import declared_folds
from logitbank.pipeline.cache_teacher.teachers.claims import nothing_known
from logitbank.pipeline.cache_teacher.teachers.exported import files_digest
from logitbank.pipeline.cache_teacher.teachers.sparse import REST_SHARE
from logitbank.pipeline.cache_teacher.teachers.topk_files import open_heads
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.views import Views

OPTIONS = ("values", "indices")
NEVER = -9000.0
"""A log-probability from here down is padding: -inf, or the -10,000 of Megatron."""
MASS_TOLERANCE = 0.01  # by which the probabilities of a row may miss 1, besides the rounding of their numbers
_LEAST_ROUNDING = 2.0**-22  # of a log-probability that was computed in float32, whatever keeps it
_CHECKED_ROWS = 2**14

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


class TopKTeacher:
    """A file of log-probabilities at temperature 1 and class ids, in the data's order.

    The entries of a row may be in any order. One may be there twice, as in vLLM's own arrays, which name the sampled
    token before the best ones; one may be below the best K, as the token that was sampled or was there is. Entries of
    -inf, or with the id -1, are padding.

    Args:
        spec: ``topk:FILE?values=NAME&indices=NAME``; the names may be left out (`topk_files.NAMES`).
        split: The examples.
        views: One view, the examples as they are.
        plan: How rows were assigned to folds, when the answers are out-of-fold ones.

    Raises:
        ValueError: The file cannot be read, or its rows are no log-probabilities of the best of these classes.
    """

    features: Features | None = None

    def __init__(self, spec: str, split: Split, views: Views, *, plan: FoldPlan | None = None) -> None:
        self.path, names = _parse(spec)
        self.split, self.views = split, views
        if views.transform != "none" or views.num_views > 1:
            raise ValueError(f"{spec} answers the examples as they are; leave out --views and --transform")
        self._heads = open_heads(self.path, names, len(split))
        if self._heads.num_positions != split.positions:
            found, expected = (count or "no" for count in (self._heads.num_positions, split.positions))
            raise ValueError(f"{self.path}: has {found} positions, {split.spec} has {expected}; expected the same")
        self._labels_P = split.labels.reshape(-1)
        self._readable_P = None if split.readable is None else split.readable.reshape(-1)
        self._labels_named = self._check()
        self.folds, self.fold_attributes = declared_folds(plan, split)
        self.groups = split.groups if plan is None else plan.groups(split)
        self.seen = nothing_known(split)

    def identity(self) -> dict[str, Any]:
        return {
            "architecture": TOPK_PREFIX + self.path.name,
            "weights_sha256": [self._digest],
            "precision": self._heads.precision,
            "imported": {
                "from": TOPK_PREFIX + self.path.name,
                "top_k": self._heads.num_entries,
                "heads_only": True,
                **self._labels_named,
                "assumed": [
                    "rows are in the data's order",
                    "the mass that a row leaves is spread evenly over the classes that it does not name",
                    "logsumexp is 0: only log-probabilities were saved",
                    "label_log_prob and label_rank of a label that the row does not name are those of the even share",
                ],
            },
        }

    def __call__(self, rows: Rows, view: int) -> Tensor:
        num_classes, num_positions = self.split.num_classes, self.split.positions
        answers = rows if num_positions is None else (rows[:, None] * num_positions + np.arange(num_positions)).ravel()
        shape = (len(rows), *self.split.answer_shape)
        if self._readable_P is None:
            return self._read(answers).dense(num_classes).view(shape)
        readable = self._readable_P[answers]
        logits_PC = torch.zeros((len(answers), num_classes))
        logits_PC[torch.from_numpy(readable)] = self._read(answers[readable]).dense(num_classes)
        return logits_PC.view(shape)

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        return in_turn(self, rows, view, self.split)

    def _read(self, answers: Rows) -> "Head":
        values_BK, index_BK = self._heads.read(answers)
        try:
            return read_head(values_BK, index_BK, self._labels_P[answers], self.split.num_classes, self._heads.epsilon)
        except _WrongRow as wrong:
            row, position = divmod(int(answers[wrong.row]), self.split.positions or 1)
            where = f"row {row}" if self.split.positions is None else f"row {row} position {position}"
            raise ValueError(f"{self.path}: {where} {wrong.reason}") from wrong

    def _check(self) -> dict[str, Any]:
        """Reads every answer: how many of the labelled ones name their label."""
        rows = np.arange(len(self._labels_P)) if self._readable_P is None else np.flatnonzero(self._readable_P)
        self._refuse_logits(rows)
        parts = (rows[start : start + _CHECKED_ROWS] for start in range(0, len(rows), _CHECKED_ROWS))
        return labels_named((self._read(some).index_BK, self._labels_P[some]) for some in parts)

    def _refuse_logits(self, rows: Rows) -> None:
        """Raises ValueError when no row can be log-probabilities: then the numbers mean something else."""
        values_BK, _ = self._heads.read(rows[:_CHECKED_ROWS])
        sum_B = np.exp(np.minimum(values_BK, 700)).sum(1)
        if len(sum_B) and (sum_B > 1 + 2 * MASS_TOLERANCE).all():
            between = np.isfinite(values_BK).all() and values_BK.min() >= 0 and values_BK.max() <= 1
            if between and (values_BK.sum(1) <= 1 + MASS_TOLERANCE).all():
                raise ValueError(f"{self.path}: holds probabilities; expected their natural log: save np.log(values)")
            raise ValueError(
                f"{self.path}: no row's probabilities add to 1 or less, so its numbers are raw logits; expected"
                " log-probabilities at temperature 1: save the best K of torch.log_softmax(logits, -1) over all classes"
            )

    @cached_property
    def _digest(self) -> str:
        return files_digest([self.path])


@dataclass(frozen=True)
class Head:
    """What rows say of the classes that they name, and leave to the others.

    Attributes:
        index_BK: The classes, -1 where an entry is padding.
        log_prob_BK: Natural log-probabilities, -inf there.
        log_even_B: Log-probability of every other class.
    """

    index_BK: Ids
    log_prob_BK: Floats
    log_even_B: Floats

    def dense(self, num_classes: int) -> Tensor:
        """Log-probabilities of all classes, float32 [B, C]."""
        best_B1 = self.log_prob_BK.argmax(1)[:, None]
        absent_BK = self.index_BK < 0  # padding says again what the best class has
        index_BK, log_prob_BK = (
            np.where(absent_BK, np.take_along_axis(array, best_B1, 1), array)
            for array in (self.index_BK, self.log_prob_BK.astype(np.float32))
        )
        even_B1 = torch.from_numpy(self.log_even_B.astype(np.float32))[:, None]
        return even_B1.repeat(1, num_classes).scatter_(1, torch.from_numpy(index_BK), torch.from_numpy(log_prob_BK))


def read_head(values_BK: Floats, index_BK: Ids, labels_B: Ids, num_classes: int, epsilon: float) -> Head:
    """Checks rows and gives what they leave of the mass to the classes that they do not name.

    That mass is 1 less the sum, without cancellation on a confident row; where the numbers' rounding hides it, a
    twentieth of what the rounding may hide. No other class is above the least that is named, a label aside.

    Args:
        values_BK: Natural log-probabilities.
        index_BK: Their classes.
        labels_B: Labels, -1 where there is none.
        num_classes: C.
        epsilon: Distance from 1 to the next number of the values' dtype.

    Raises:
        _WrongRow: Rows that cannot be what they should.
    """
    absent_BK = (index_BK == -1) | (values_BK <= NEVER)
    log_prob_BK = np.where(absent_BK, -np.inf, values_BK)
    _refuse(~np.all(log_prob_BK < np.inf, axis=1), "holds NaN or infinity; expected log-probabilities")
    wrong_BK = ~absent_BK & ((index_BK < 0) | (index_BK >= num_classes))
    _refuse(wrong_BK.any(1), f"names a class outside 0 to {num_classes - 1}; pass the data that it is about")
    _refuse(absent_BK.all(1), "names no class; expected the best K")
    absent_BK |= _named_twice(index_BK, values_BK, absent_BK)
    log_prob_BK[absent_BK] = -np.inf
    log_rest_B, log_even_B = _rest(log_prob_BK, index_BK == labels_B[:, None], num_classes, epsilon)
    total_B = np.logaddexp(np.logaddexp.reduce(log_prob_BK, axis=1), log_rest_B)
    return Head(
        index_BK=np.where(absent_BK, -1, index_BK),
        log_prob_BK=log_prob_BK - total_B[:, None],
        log_even_B=log_even_B - total_B,
    )


def _named_twice(index_BK: Ids, values_BK: Floats, absent_BK: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The second mention of a class that a row names twice with one value; refused are more, and other values."""
    again_BK = np.zeros_like(absent_BK)
    ids_BK = np.where(absent_BK, -1 - np.arange(index_BK.shape[1]), index_BK)
    order_BK = np.argsort(ids_BK, axis=1, kind="stable")
    sorted_BK = np.take_along_axis(ids_BK, order_BK, 1)
    place, column = np.nonzero(sorted_BK[:, 1:] == sorted_BK[:, :-1])
    if len(place):
        first, second = order_BK[place, column], order_BK[place, column + 1]
        wrong_B = np.bincount(place, minlength=len(index_BK)) > 1
        wrong_B[place[values_BK[place, first] != values_BK[place, second]]] = True
        _refuse(wrong_B, "names a class twice; expected different classes")
        again_BK[place, second] = True
    return again_BK


def _rest(
    log_prob_BK: Floats, label_BK: npt.NDArray[np.bool_], num_classes: int, epsilon: float
) -> tuple[Floats, Floats]:
    """Logs of the mass that is left, and of what each class has of it, [B]."""
    named_BK = log_prob_BK > -np.inf
    prob_BK = np.exp(log_prob_BK)
    best_B1 = log_prob_BK.argmax(1)[:, None]
    others_B = prob_BK.sum(1) - np.take_along_axis(prob_BK, best_B1, 1)[:, 0]
    left_B = -np.expm1(np.take_along_axis(log_prob_BK, best_B1, 1)[:, 0]) - others_B
    error_BK = np.maximum(np.abs(np.where(named_BK, log_prob_BK, 0.0)) * epsilon / 2, min(2 * epsilon, _LEAST_ROUNDING))
    rounding_B = (prob_BK * error_BK).sum(1)
    num_left_B = num_classes - named_BK.sum(1)
    least_B = np.where(named_BK & ~label_BK, prob_BK, np.inf).min(1)
    most_B = num_left_B * np.where(np.isfinite(least_B), least_B, 1.0)  # as no class is above the head's least
    _refuse(left_B < -rounding_B - MASS_TOLERANCE, "has probabilities that add to more than 1; expected at most 1")
    _refuse(
        left_B - rounding_B > most_B + MASS_TOLERANCE,
        f"leaves more to the {num_classes} classes than they can have below its least; expected the best K at"
        " temperature 1",
    )
    rest_B = np.clip(left_B, REST_SHARE * np.minimum(rounding_B, most_B), most_B)
    with np.errstate(divide="ignore"):
        log_rest_B = np.log(rest_B)
        log_even_B = np.minimum(log_rest_B - np.log(np.maximum(num_left_B, 1)), np.log(least_B) - 1e-6)
    return log_rest_B, log_even_B


class _WrongRow(ValueError):
    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)
        self.row, self.reason = row, reason


def _refuse(wrong_B: "npt.NDArray[np.bool_] | np.bool_", reason: str) -> None:
    if np.any(wrong_B):
        raise _WrongRow(int(np.flatnonzero(wrong_B)[0]), reason)


def _parse(spec: str) -> tuple[Path, tuple[str, str] | None]:
    path, _, query = spec.removeprefix(TOPK_PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in OPTIONS:
            raise ValueError(f"{spec}: {unknown('option', option, OPTIONS)}")
    if not options:
        return Path(path), None
    if set(options) != set(OPTIONS):
        raise ValueError(f"{spec}: names one array; expected values=NAME&indices=NAME")
    return Path(path), (options["values"], options["indices"])
