"""What a loss hears beyond the student's logits and the labels: the teacher's answer, and where the run is.

Both are required: nothing here has a default that would be wrong without a word.

Shapes: B rows of a batch (of examples with L positions B L, in row-major order), C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor


class Answer(Protocol):
    """What a teacher says of the B rows of a batch, and how much of it is known.

    The student's logits (detached) and the temperature matter to the tail rule ``bucket`` only, whose tail takes the
    student's shape.
    """

    @property
    def offers(self) -> frozenset[str]:
        """Which of ``OFFERS`` hold for the answer."""
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


OFFERS = {
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
    """

    logits_BC: Tensor
    out_of_fold: bool = field(default=False, kw_only=True)

    @property
    def offers(self) -> frozenset[str]:
        return frozenset(OFFERS) if self.out_of_fold else frozenset(OFFERS) - {"out_of_fold"}

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        return self.logits_BC.flatten(0, -2)

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        return None

    def served(self) -> Tensor | None:
        return None

    def part(self, some: slice) -> ExactAnswer:
        return ExactAnswer(self.logits_BC.flatten(0, -2)[some], out_of_fold=self.out_of_fold)


@dataclass(frozen=True, kw_only=True)
class Step:
    """Where in the run an optimiser step is: what warm-ups and schedules of losses go by.

    Attributes:
        step: Counts from 0 over the whole run.
        steps_per_epoch: Optimiser steps of an epoch.
        num_epochs: Epochs of the run.
    """

    step: int
    steps_per_epoch: int
    num_epochs: int

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
