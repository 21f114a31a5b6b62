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
from logitbank.pipeline.train_student.losses import Objective, Step


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
    ) -> None:
        self.objective, self.answers, self.epochs, self.grouping = objective, answers, epochs, grouping
        self.modules = objective.modules if len(objective.modules) else None
        self.places = places or {}
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
        heard: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        return self.objective(
            logits_BC,
            self.answers.of(rows_B, view),
            self.labels[rows_B].to(logits_BC.device),
            Step(step=step, steps_per_epoch=steps_per_epoch, num_epochs=self.epochs),
            heard,
        )


def _from(groups: list[Tensor], shown: int) -> list[Tensor]:
    """The groups of which rows are still to be shown."""
    ends = accumulate(map(len, groups))
    return [group for group, end in zip(groups, ends, strict=True) if end > shown]
