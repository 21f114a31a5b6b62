"""What teachers say of mixed samples, made of what they said of the two examples. Shapes: B batch, C classes."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .context import SPARSE, Answer


@dataclass(frozen=True)
class MixedAnswer:
    """The logits of two answers, mixed as the student's inputs are: what ``target_transform=mix_targets`` goes by.

    Attributes:
        first, second: Answers to the examples that each sample is mixed of.
        share_B: Share of the first, one for each row.
    """

    first: Answer
    second: Answer
    share_B: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    @property
    def offers(self) -> frozenset[str]:
        return (self.first.offers & self.second.offers) - {"embedding", SPARSE}

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        first_BC, second_BC = (part.logits(student_BC, temperature) for part in (self.first, self.second))
        share_B1 = self.share_B.to(first_BC)[:, None]
        return share_B1 * first_BC + (1.0 - share_B1) * second_BC

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        return None  # there is no label whose place could matter

    def features(self) -> tuple[Tensor, Tensor]:
        raise ValueError("a mixed sample has no features that a teacher gave; leave mix_targets out")

    def part(self, some: slice) -> MixedAnswer:
        return MixedAnswer(self.first.part(some), self.second.part(some), self.share_B[some])

    def served(self) -> Tensor | None:
        """Rows of which both examples have an answer."""
        first_B, second_B = self.first.served(), self.second.served()
        if first_B is None or second_B is None:
            return second_B if first_B is None else first_B
        return first_B & second_B
