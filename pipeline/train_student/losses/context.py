"""What a loss gets beyond the student's logits and the labels: the teacher's answer, and where the run is.

Both are required: nothing here has a default that would be wrong without a word.

Shapes: B rows of a batch (of examples with L positions B L, in row-major order), C classes, K features of the teacher,
N rows of a store, F folds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class SparseTarget(Protocol):
    """Finite teacher logits of every class without a block [B, C]: J classes of a row, and all others."""

    @property
    def index_BJ(self) -> Tensor:
        """Classes that a row says one by one, int64; one may stand there twice."""
        ...

    @property
    def logits_BJ(self) -> Tensor:
        """Theirs, float32."""
        ...

    @property
    def new_BJ(self) -> Tensor:
        """False where a class stands before, too."""
        ...

    @property
    def level_B1(self) -> Tensor | None:
        """The logit of every other class, where all have one."""
        ...

    def tail(self, classes: slice, out_Bc: Tensor) -> Tensor:
        """Else logits of some classes, float32 [B, c], in ``out_Bc``; of those said one by one they mean nothing."""
        ...

    def only(self, own_B: Tensor) -> SparseTarget:
        """The same of some of the rows, bool [B]."""
        ...


class Answer(Protocol):
    """What a teacher says of the B rows of a batch, and how much of it is known.

    The student's logits (detached) and the temperature matter to the tail rule ``bucket`` only, whose tail takes the
    student's shape.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows,), or (examples, L) where examples are answered at L positions: of what B counts."""
        ...

    @property
    def offers(self) -> frozenset[str]:
        """Which of ``OFFERS`` hold for the answer; ``SPARSE`` too where it is a ``SparseAnswer``."""
        ...

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        """Dense, finite teacher logits, float [B, C]; rows that are not served hold no answer."""
        ...

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        """Rows whose classes at or above the label are exactly those of the teacher, bool [B]; None: all rows."""
        ...

    def served(self) -> Tensor | None:
        """Rows that a teacher answers, bool [B]; None: all rows."""
        ...

    def part(self, some: slice) -> Answer:
        """The same of some of the rows: no others are decoded."""
        ...

    def features(self) -> tuple[Tensor, Tensor]:
        """Where it offers ``embedding``: the teacher's features, float32 [B, K], and the fold whose teacher's they are,
        int64 [B], 0 without folds."""
        ...


class SparseAnswer(Answer, Protocol):
    """An answer that has a sparse form as well, and offers ``SPARSE``."""

    def sparse(self) -> SparseTarget:
        """What ``logits`` gives, without a block of all classes."""
        ...


SPARSE = "sparse"
OFFERS = {
    "embedding": "one teacher's features: cache it with --embedding penultimate, and name that teacher alone",
    "dense": "every class's logit: cache with --encoding dense or topk+tail",
    "out_of_fold": "answers of a teacher that did not see the row: cache fold teachers",
    "label_prob": "the teacher's own probability of every label: cache its logits, or rows that also name the label",
    "fixed_tail": "classes outside the top k that do not follow the student: any --tail but bucket",
}
"""What a loss may need of an answer, and where to get it."""


@dataclass(frozen=True)
class ExactAnswer:
    """Every class's logit as the teacher itself gave it, such as that of a teacher which runs beside the student.

    Attributes:
        logits_BC: Dense and finite; [B, L, C] where examples are answered at L positions.
        out_of_fold: Whether the teacher has not seen the rows.
        features_BK: Its features, where a loss looks at them.
    """

    logits_BC: Tensor
    out_of_fold: bool = field(default=False, kw_only=True)
    features_BK: Tensor | None = field(default=None, kw_only=True)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.logits_BC.shape[:-1])

    @property
    def offers(self) -> frozenset[str]:
        lacking = {"out_of_fold": not self.out_of_fold, "embedding": self.features_BK is None}
        return frozenset(need for need in OFFERS if not lacking.get(need))

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        return self.logits_BC.flatten(0, -2)

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        return None

    def served(self) -> Tensor | None:
        return None

    def part(self, some: slice) -> ExactAnswer:
        features_BK = None if self.features_BK is None else self.features_BK[some]
        return ExactAnswer(self.logits_BC.flatten(0, -2)[some], out_of_fold=self.out_of_fold, features_BK=features_BK)

    def features(self) -> tuple[Tensor, Tensor]:
        assert self.features_BK is not None  # offered
        return self.features_BK, torch.zeros(len(self.features_BK), dtype=torch.int64)


@dataclass(frozen=True)
class TeacherFeatures:
    """Features of the teacher for the rows that a loss is asked about.

    Attributes:
        values_BK: float32.
        fold_B: Whose they are, int64; 0 without cross-fitting.
    """

    values_BK: Tensor
    fold_B: Tensor


@dataclass(frozen=True, kw_only=True)
class StoredFeatures:
    """Features of the rows that a module is fitted on.

    Attributes:
        values_NK: float32.
        fold_N: Whose they are, int64.
        class_N: Label of each row, or, without one, the class that the teacher thinks best; int64.
        head_FCK: Weight of the last layer of each fold's teacher, where the store has it.
        num_folds: F; 1 without cross-fitting.
    """

    values_NK: Tensor
    fold_N: Tensor
    class_N: Tensor
    head_FCK: Tensor | None
    num_folds: int

    def of_fold(self, fold: int, label: int | None = None) -> Tensor:
        """Features of one fold's rows, [N, K]; of those of one class."""
        own_N = self.fold_N == fold
        return self.values_NK[own_N if label is None else own_N & (self.class_N == label)]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where in the run an optimiser step is: what warm-ups and schedules of losses go by.

    Attributes:
        step: Counts from 0 over the whole run.
        steps_per_epoch: Optimiser steps of an epoch.
        num_epochs: Epochs of the run.
        rows_B: Which examples it shows, int64 [B]; losses that remember them need it.
    """

    step: int
    steps_per_epoch: int
    num_epochs: int
    rows_B: Tensor | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.step < self.num_steps:
            raise ValueError(
                f"step is {self.step}; expected 0 to {self.num_steps - 1}, counted over the whole run of"
                f" {self.num_epochs} epochs of {self.steps_per_epoch} steps"
            )

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.steps_per_epoch * self.num_epochs

    @property
    def epoch(self) -> int:
        """Counts from 1."""
        return self.step // self.steps_per_epoch + 1

    @property
    def progress(self) -> float:
        """0 at the first step of the run, 1 at the last."""
        return self.step / max(self.num_steps - 1, 1)
