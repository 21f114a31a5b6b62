"""An answer with how often its teachers were right about each row. Shapes: B batch, C classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .context import SPARSE, Answer


@dataclass(frozen=True)
class RatedAnswer:
    """What ``paced_by=views`` goes by.

    Attributes:
        answer: Of the rows.
        rate_B: Share of views, or of teachers, that are right about the row; nan where nobody knows.
    """

    answer: Answer
    rate_B: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.answer.shape

    @property
    def offers(self) -> frozenset[str]:
        return self.answer.offers - {SPARSE}  # row weights that go by rates look at every class

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        return self.answer.logits(student_BC, temperature)

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        return self.answer.order_known(student_BC, temperature)

    def served(self) -> Tensor | None:
        return self.answer.served()

    def features(self) -> tuple[Tensor, Tensor]:
        return self.answer.features()

    def part(self, some: slice) -> RatedAnswer:
        return RatedAnswer(self.answer.part(some), self.rate_B[some])
