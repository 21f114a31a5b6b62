"""What a store holds of the B rows of a batch, decoded when it is asked for.

Shapes: B batch, C classes. Where an example is answered at L positions, a batch of rows is one of B times L answers,
row by row: all but ``shape`` and the rows themselves speak of answers, and B stands for their number.
"""

import math
from functools import cached_property
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.answers.records import Records
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.encoding.sparse import SparseLogits

View = int | Tensor
"""One number, or one for each row, int64 [B]."""


class Source(Protocol):
    """What a batch asks of its teacher's answers."""

    decoder: TeacherRows
    labels: Tensor

    @property
    def offers(self) -> frozenset[str]: ...

    def mask(self, rows_B: Tensor, view_B: Tensor) -> Tensor | None: ...

    def records(self, rows_B: Tensor, view_B: Tensor) -> Records: ...


class StoredBatch:
    """One teacher's answer to rows of views, as a loss takes it.

    Args:
        answers: All that the teacher says.
        rows_B: Of the store, int64 [B] on the CPU.
        view_B: The view of each, int64 [B] on the CPU.
        whole: Of which this is a part.
        some: Which answers of the whole these are.
    """

    def __init__(
        self,
        answers: Source,
        rows_B: Tensor,
        view_B: Tensor,
        *,
        whole: "StoredBatch | None" = None,
        some: slice = slice(None),
    ) -> None:
        self.answers, self.rows_B, self.view_B = answers, rows_B, view_B
        self._whole, self._some = whole or self, some

    @property
    def offers(self) -> frozenset[str]:
        return self.answers.offers

    @property
    def shape(self) -> tuple[int, ...]:
        """(B,), or (B, L): ``batch.logits(...).reshape(*batch.shape, -1)`` has a row for each example.

        Of a part (answers,).
        """
        if self._whole is not self:
            return (len(self._places_B[0]),)
        return (len(self.rows_B), *self.answers.labels.shape[1:])

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        return self.decoded(student_BC, temperature)

    def decoded(self, student_BC: Tensor | None, temperature: float) -> Tensor:
        """Logits, with a student for the ``bucket`` rule; without that rule they are decoded once."""
        return self._decode(student_BC, temperature) if self.answers.decoder.tail == "bucket" else self._logits_BC

    def sparse(self) -> SparseLogits:
        """The same without a block of all classes, where the batch offers ``sparse``."""
        row_B, position_B = self._places_B
        return self.answers.decoder.sparse(self._decoded_from(), row_B, positions_B=position_B)

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        """True where the label is in the head, and as many classes decode at or above it as the teacher had there."""
        if not self.answers.decoder.encoding.has_tail:
            return None
        rank_B = self._arrays()["label_rank"].long().to(self.answers.decoder.device)
        known_B = rank_B <= self.answers.decoder.encoding.top_k
        if self.answers.decoder.tail != "bucket":  # no other tail rises above the head
            return known_B
        return known_B & ((self.above_label_BC(student_BC, temperature).sum(dim=1) == rank_B) | (rank_B == 0))

    def served(self) -> Tensor | None:
        served_B = self.answers.mask(self.rows_B, self.view_B)
        return None if served_B is None else served_B[self._some]

    def part(self, some: slice) -> "StoredBatch":
        """Some of the answers, in the batch's order: position by position where rows have several."""
        own = range(math.prod(self._whole.shape))[self._some][some]
        places = slice(own.start, own.stop, own.step)
        return StoredBatch(self.answers, self.rows_B, self.view_B, whole=self._whole, some=places)

    def features(self) -> tuple[Tensor, Tensor]:
        decoder, row_B = self.answers.decoder, self._places_B[0]
        fold_B = torch.zeros_like(row_B) if decoder.folds_N is None else decoder.folds_N[row_B]
        return self._arrays()["embedding"].float().to(decoder.device), fold_B.to(decoder.device)

    def refuse_unserved(self) -> None:
        """Raises ValueError when the teacher has no answer to one of the rows, at any position."""
        served_B = self.served()
        served_B = None if served_B is None else served_B.reshape(len(self.rows_B), -1).any(dim=1)
        if served_B is not None and not served_B.all():
            name, first = self.answers.decoder.teacher.name, int(self.rows_B[~served_B][0])
            raise ValueError(
                f"teacher {name!r} does not serve {int((~served_B).sum())} of {len(served_B)} rows, such as row"
                f" {first}; ask served(view) which rows have an answer"
            )

    def above_label_BC(self, student_BC: Tensor, temperature: float) -> Tensor:
        """Classes that decode at or above the label, the label's own included, bool [B, C]."""
        logits_BC = self.decoded(student_BC, temperature)
        row_B, position_B = self._places_B
        labels_B = self.answers.labels[row_B] if position_B is None else self.answers.labels[row_B, position_B]
        return logits_BC >= logits_BC.gather(1, labels_B.clamp(min=0)[:, None].to(logits_BC.device))

    def stored_BC(self) -> Tensor:
        """Classes whose logit the store holds by itself, the label's aside, bool [B, C]."""
        return self.answers.decoder.encoding.kept(self._decoded_from()).to(self.answers.decoder.device)

    def _decode(self, student_BC: Tensor | None, temperature: float) -> Tensor:
        row_B, position_B = self._places_B
        return self.answers.decoder.logits(
            self._decoded_from(), row_B, positions_B=position_B, student_BC=student_BC, temperature=temperature
        )

    def _decoded_from(self) -> dict[str, Tensor]:
        return {name: array for name, array in self._arrays().items() if name not in ("label_rank", "embedding")}

    def _arrays(self) -> dict[str, Tensor]:
        """What is stored of each answer, [B, *row_shape]."""
        return {name: array[self._some] for name, array in self._whole._every_array.items()}

    @cached_property
    def _every_array(self) -> dict[str, Tensor]:
        names, places = self._records_B.dtype.names or (), self.answers.labels.ndim
        arrays = {name: torch.from_numpy(np.asarray(self._records_B[name])) for name in names}
        return arrays if places == 1 else {name: array.flatten(0, 1) for name, array in arrays.items()}

    @cached_property
    def _places_B(self) -> tuple[Tensor, Tensor | None]:
        """Row of the store and position of each answer; None where rows have one answer each."""
        if self.answers.labels.ndim == 1:
            return self.rows_B[self._some], None
        num_rows, length = len(self.rows_B), self.answers.labels.shape[1]
        row_B, position_B = self.rows_B.repeat_interleave(length), torch.arange(length).repeat(num_rows)
        return row_B[self._some], position_B[self._some]

    @cached_property
    def _logits_BC(self) -> Tensor:
        return self._decode(None, 1.0)

    @cached_property
    def _records_B(self) -> Records:
        return self.answers.records(self.rows_B, self.view_B)
