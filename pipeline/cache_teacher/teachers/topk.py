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
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.answers.guessed_labels import labels_named
from logitbank.pipeline.cache_teacher.teachers import TOPK_PREFIX
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features, Rows, in_turn
from logitbank.pipeline.cache_teacher.teachers.arrays import declared_folds
from logitbank.pipeline.cache_teacher.teachers.claims import nothing_known
from logitbank.pipeline.cache_teacher.teachers.exported import files_digest
from logitbank.pipeline.cache_teacher.teachers.topk_files import open_heads
from logitbank.pipeline.cache_teacher.teachers.topk_rows import MASS_TOLERANCE, Fallen, Head, WrongRow, read_head
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.spec import tell
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.views import Views

OPTIONS = ("values", "indices")
_CHECKED_ROWS = 2**14


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
        if self._heads.last_id < split.num_classes - 1:
            raise ValueError(
                f"{self.path}: its ids are of a type that ends at {self._heads.last_id}, and {split.spec} has"
                f" {split.num_classes} classes, so larger ids have wrapped around; save them as int32"
            )
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

    def _read(self, answers: Rows) -> Head:
        values_BK, index_BK = self._heads.read(answers)
        try:
            return read_head(values_BK, index_BK, self._labels_P[answers], self.split.num_classes, self._heads.epsilon)
        except WrongRow as wrong:
            row, position = divmod(int(answers[wrong.row]), self.split.positions or 1)
            where = f"row {row}" if self.split.positions is None else f"row {row} position {position}"
            raise ValueError(f"{self.path}: {where} {wrong.reason}") from wrong

    def _check(self) -> dict[str, Any]:
        """Reads every answer: how many of the labelled ones name their label."""
        rows = np.arange(len(self._labels_P)) if self._readable_P is None else np.flatnonzero(self._readable_P)
        self._refuse_logits(rows)
        parts = (rows[start : start + _CHECKED_ROWS] for start in range(0, len(rows), _CHECKED_ROWS))
        fallen = Fallen()
        said = labels_named((fallen.seen(self._read(some)).index_BK, self._labels_P[some]) for some in parts)
        if fallen.most:
            tell(
                f"{self.path}: in {fallen.rows} of {fallen.judged} answers the probabilities of the classes that are"
                " named add to 1 although the least of them is not small, as if they had been renormalised over them;"
                " expected log-probabilities over all classes: save the best K of torch.log_softmax(logits, -1)"
            )
        return said

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
