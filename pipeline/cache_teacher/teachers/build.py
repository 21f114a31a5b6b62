"""From what a user names on the command line to who answers.

Shapes: N examples.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers import (
    ARRAY_PREFIX,
    EXPORT_PREFIX,
    NO_WEIGHTS,
    SKLEARN_PREFIX,
    TINYVIT_PREFIX,
    TOPK_PREFIX,
)
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher, Batch, Rows
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.estimators import ESTIMATORS, EstimatorTeacher
from logitbank.pipeline.cache_teacher.teachers.exported import ExportTeacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.teachers.tinyvit import TinyVitTeacher
from logitbank.pipeline.cache_teacher.teachers.topk import TopKTeacher
from logitbank.pipeline.datasets import Split, few_rows, take
from logitbank.pipeline.folds import FoldPlan, Folds, fold_digest
from logitbank.pipeline.models import Given, find_model
from logitbank.pipeline.models.causal_lm import says_weights
from logitbank.pipeline.views import Views

# Caches that are not read, and why.
_REFUSED = {
    "fkd:": "FKD's labels are pickles, one an image, and nothing is unpickled here: it could run any code",
    "ml-dr:": "ml-dr's reinforcements are pickles, one an image, and nothing is unpickled here: it could run any code",
    "distillkit:": "its bytes mean nothing without a configuration that is not in the file; unpack them for topk:FILE",
}


def build_teacher(
    split: Split,
    teacher: str,
    weights: str,
    views: Views,
    *,
    plan: FoldPlan | None = None,
    preprocessing: Given | None = None,
    device: torch.device | None = None,
    compute: Compute | None = None,
    embedding: str = "",
) -> AnsweringTeacher:
    """Who answers: somebody who has already spoken, an estimator that is fitted here, or networks with weights.

    Args:
        split: The examples.
        teacher: ``array:FILE.npy``, ``topk:FILE``, ``export:FILE.npz``,
            ``tinyvit:DIR?keys=paths&pixels=plain``, ``sklearn:NAME?option=value``, or a name of the model table.
        weights: Of a network: a file, a folder that ``train-teacher`` wrote, a pattern with ``{fold}``, or
            ``random-init``; empty for those that have none, and for ``causal-lm:FOLDER`` with the folder's own.
        views: Which pixels they see.
        plan: Cross-fitting folds.
        preprocessing: Overrides the network's own input scaling.
        device: Where networks run.
        compute: How networks run.
        embedding: Which of a network's features it gives beside logits; empty: none.

    Raises:
        ValueError: Something is missing, unknown, or does not fit together.
    """
    for prefix, reason in _REFUSED.items():
        if teacher.startswith(prefix):
            raise ValueError(
                f"{teacher}: {reason}; docs/how-to/exchange.md says how, and array:FILE.npy takes logits in the data's"
                " order"
            )
    if teacher.startswith(NO_WEIGHTS) and weights:
        raise ValueError(f"--weights is {weights!r}, but {teacher} has none; leave it out")
    if teacher.startswith(NO_WEIGHTS) and embedding:
        raise ValueError(f"--embedding is {embedding!r}, but {teacher} is no network with features here; leave it out")
    if embedding:
        split.refuse_positions("--embedding")
    if teacher.startswith(ARRAY_PREFIX):
        return ArrayTeacher(Path(teacher.removeprefix(ARRAY_PREFIX)), split, views, plan=plan)
    if teacher.startswith((TINYVIT_PREFIX, SKLEARN_PREFIX)):
        split.refuse_positions(teacher)
    if teacher.startswith(TOPK_PREFIX):
        return TopKTeacher(teacher, split, views, plan=plan)
    if teacher.startswith(EXPORT_PREFIX):
        return ExportTeacher(Path(teacher.removeprefix(EXPORT_PREFIX)), split, views, plan=plan)
    if teacher.startswith(TINYVIT_PREFIX):
        return TinyVitTeacher(teacher, split, views, plan=plan)
    if teacher.startswith(SKLEARN_PREFIX):
        if views.transform != "none" or views.num_views > 1:
            raise ValueError(f"{teacher} answers the examples as they are; leave out --views and --transform")
        return EstimatorTeacher(teacher, split, plan=plan)
    if teacher in ESTIMATORS:
        raise ValueError(f"unknown model {teacher!r}; an estimator of scikit-learn is {SKLEARN_PREFIX}{teacher}")
    find_model(teacher)
    if not weights and not says_weights(teacher, weights):
        raise ValueError(
            "--weights is missing; give a file, a folder that train-teacher wrote, 'run/fold{fold}.pt', or random-init"
        )
    teachers = load_teachers(split, teacher, weights, plan=plan, preprocessing=preprocessing)
    return NetworkTeacher(split, teachers, views, device=device, compute=compute, embedding=embedding)


class LimitedTeacher:
    """A trial on a few rows of a split, answered by the teachers of the whole.

    The rows are those of the data spec's ``limit`` option, so stage two reads them with ``limit=n``.

    Args:
        teacher: About the whole split.
        limit: How many rows.
    """

    def __init__(self, teacher: AnsweringTeacher, limit: int) -> None:
        if teacher.views.mixes:
            raise ValueError(
                "--limit would change whom mixup and cutmix mix with; limit the data instead: DATA?limit=n"
            )
        whole = teacher.split
        self._teacher, self._rows = teacher, few_rows(len(whole), limit)
        self.split, self.views = take(whole, limit), teacher.views
        self.folds: Folds | None = None
        self.fold_attributes: Mapping[str, Any] | None = None
        if teacher.folds is not None:
            self.folds = teacher.folds[self._rows]
            digest = fold_digest(self.split.keys, self.folds)
            self.fold_attributes = {**(teacher.fold_attributes or {}), "digest": digest}
        self.groups = None if teacher.groups is None else teacher.groups[self._rows]
        self.seen, self.features = teacher.seen[self._rows], teacher.features
        self.identity = teacher.identity

    def __call__(self, rows: Rows, view: int) -> Tensor:
        return self._teacher(self._rows[rows], view)

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        return self._teacher.batches(self._rows[rows], view)
