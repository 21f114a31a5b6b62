"""What a student is trained on: an objective over the answers to the rows of a batch.

Shapes: B batch, C classes, N examples.
"""

from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit.loop import BatchLoss
from logitbank.pipeline.models.features import Place
from logitbank.pipeline.train_student.losses import Answer, MixedAnswer, Objective, RatedAnswer, Step


class DistillationLoss(BatchLoss):
    """An objective over the answers to the rows of a batch in the view of their epoch."""

    def __init__(
        self,
        objective: Objective,
        answers: Answers,
        split: Split,
        *,
        epochs: int,
        grouping: Grouping | None = None,
        places: Mapping[str, Place] | None = None,
        rates: Tensor | None = None,
    ) -> None:
        self.objective, self.answers, self.epochs, self.grouping = objective, answers, epochs, grouping
        self.modules = objective.modules if len(objective.modules) else None
        self.places = places or {}
        self._rates = rates
        self.mixes_answers = objective.mixes_answers
        self._announce = split.announce
        self.labels = torch.from_numpy(split.labels)

    def order(
        self, rows: Tensor, generator: torch.Generator, *, view: int, next_view: int | None, shown: int = 0
    ) -> Tensor:
        """The same for every objective, so that students of one seed see the same rows, whatever they listen to."""
        groups = [] if self.grouping is None else self.grouping.groups(rows, generator)
        self._announce([group.numpy() for group in _from(groups, shown)])
        if self.objective.uses_teacher:
            self.answers.read_ahead(view, _from(groups, shown))
            if next_view is not None and next_view != view:
                self.answers.read_ahead(next_view)
        return (
            torch.cat(groups) if groups else super().order(rows, generator, view=view, next_view=next_view, shown=shown)
        )

    def notes(self) -> dict[str, int]:
        return self.objective.notes()

    def __call__(
        self,
        logits_BC: Tensor,
        rows_B: Tensor,
        *,
        view: int,
        step: int,
        steps_per_epoch: int,
        captured: Mapping[str, Tensor] | None = None,
        mixed: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """As of any ``BatchLoss``; ``mixed``: rows that the samples are mixed with, and the share of their own."""
        answer: Answer = self.answers.of(rows_B, view)
        labels_B = self.labels[rows_B].to(logits_BC.device)
        if self._rates is not None:
            answer = RatedAnswer(answer, self._rates[rows_B].flatten().to(logits_BC.device))
        if mixed is not None:
            share_P = mixed[1].repeat_interleave(labels_B.shape[1:].numel())
            answer = MixedAnswer(answer, self.answers.of(mixed[0], view), share_P)
            labels_B = torch.full_like(labels_B, -1)
        return self.objective(
            logits_BC,
            answer,
            labels_B,
            Step(step=step, steps_per_epoch=steps_per_epoch, num_epochs=self.epochs, rows_B=rows_B),
            captured,
        )


def _from(groups: list[Tensor], shown: int) -> list[Tensor]:
    """The groups of which rows are still to be shown."""
    ends = accumulate(map(len, groups))
    return [group for group, end in zip(groups, ends, strict=True) if end > shown]
