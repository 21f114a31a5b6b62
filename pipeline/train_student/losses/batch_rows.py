"""Some rows of a batch, as the terms of an objective see them.

Shapes: B batch, C classes, K features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor

from .context import SPARSE, Answer, SparseAnswer, SparseTarget, TeacherFeatures
from .numerics import raised
from .rated import RatedAnswer
from .transforms import Transform


class Rows:
    """Some rows of a batch with their teacher, which is asked once for each temperature."""

    def __init__(
        self,
        student_BC: Tensor,
        answer: Answer,
        labels_B: Tensor,
        captured: Mapping[str, Tensor],
        transforms: Sequence[Transform] = (),
    ) -> None:
        self.student_BC, self.labels_B = student_BC, labels_B
        self._captured, self._transforms = captured, transforms
        self._all_BC, self._all_labels_B, self._answer = student_BC, labels_B, answer
        self._own_B: Tensor | None = None  # all
        self._asked: dict[float, Tensor] = {}  # answers for the whole batch
        self._targets: dict[float, Tensor] = {}  # what transforms make of them
        self._sparse: list[SparseTarget] = []  # of the whole batch, once it was asked for

    def only(self, own_B: Tensor) -> Rows:
        """Those of the rows that are True in a mask of the whole batch."""
        own_B = own_B.to(self._all_BC.device)
        own_B = own_B if self._own_B is None else own_B & self._own_B
        if int(own_B.sum()) == len(self.labels_B):
            return self
        part = Rows(self._all_BC, self._answer, self._all_labels_B, self._captured, self._transforms)
        part.student_BC, part.labels_B = self._all_BC[own_B], self._all_labels_B[own_B]
        part._own_B, part._asked, part._targets, part._sparse = own_B, self._asked, self._targets, self._sparse
        return part

    def teacher(self, temperature: float) -> Tensor:
        """Teacher logits of the rows, float, without gradient."""
        return self._own(self._asked_of_all(temperature))

    def _asked_of_all(self, temperature: float) -> Tensor:
        if temperature not in self._asked:
            self._asked[temperature] = raised(self._answer.logits(self._all_BC.detach(), temperature).detach())
        return self._asked[temperature]

    def target(self, temperature: float) -> Tensor:
        """Logits of the target of the rows: the teacher's, as transforms leave them."""
        if not self._transforms:
            return self.teacher(temperature)
        if temperature not in self._targets:
            whole = self._asked_of_all(temperature).to(self._all_BC.device)
            with torch.no_grad():
                for transform in self._transforms:
                    whole = transform(whole, self._all_labels_B)
            self._targets[temperature] = whole
        return self._own(self._targets[temperature])

    def sparse(self) -> SparseTarget | None:
        """The teacher of the rows without a block of all classes, where its answer has that form."""
        if SPARSE not in self._answer.offers:
            return None
        if not self._sparse:
            self._sparse.append(cast(SparseAnswer, self._answer).sparse())
        target = self._sparse[0]
        if target.index_BJ.device != self._all_BC.device:
            return None
        return target if self._own_B is None else target.only(self._own_B)

    def rates(self) -> Tensor:
        """How often teachers are right about each of the rows."""
        assert isinstance(self._answer, RatedAnswer)
        return self._own(self._answer.rate_B)

    def captured(self, name: str) -> Tensor:
        """What was captured of the student, for these rows."""
        return self._own(self._captured[name])

    def features(self) -> TeacherFeatures:
        """The teacher's features of the rows."""
        values_BK, fold_B = self._answer.features()
        return TeacherFeatures(self._own(raised(values_BK)), self._own(fold_B))

    def order_known(self, temperature: float) -> Tensor | None:
        known_B = self._answer.order_known(self._all_BC.detach(), temperature)
        return None if known_B is None else self._own(known_B)

    def spread(self, values_B: Tensor, other: float) -> Tensor:
        """Values of the rows at their places in the batch, ``other`` elsewhere."""
        if self._own_B is None:
            return values_B
        return torch.full_like(self._all_BC[:, 0], other).masked_scatter(self._own_B, values_B)

    def of_batch(self, values_B: Tensor | None) -> Tensor:
        """What the rows have of values of the whole batch."""
        assert values_B is not None  # refused before
        return self._own(values_B)

    def _own(self, values: Tensor) -> Tensor:
        values = values.to(self._all_BC.device)
        return values if self._own_B is None else values[self._own_B]
