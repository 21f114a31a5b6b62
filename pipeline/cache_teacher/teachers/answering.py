"""What stage one asks of a teacher that answers now; what one has answered is a store's `Teacher`.

Shapes: B batch, C classes, D features, N examples. Where an example is answered at L positions, logits are [B, L, C].
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.teachers.claims import Seen
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import Folds
from logitbank.pipeline.views import Views

Rows = npt.NDArray[np.integer]
HELD_BYTES = 2**25
"""Of logits that are held at once."""


class Batch(NamedTuple):
    """Some answers: positions among the rows that were asked for, [B], their logits float32 [B, C], and features
    float32 [B, D] where the teacher gives them."""

    positions: npt.NDArray[np.int64]
    logits: Tensor
    features: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Features:
    """What a teacher gives beside logits.

    Attributes:
        layer: Where they are taken, by name.
        num_features: D.
        heads: Weight [C, D] and bias [C] of the last layer, of each fold's teacher, where that reads the features.
    """

    layer: str
    num_features: int
    heads: tuple[tuple[Tensor, Tensor], ...] | None


class AnsweringTeacher(Protocol):
    """Gives the logits of any rows of any view, and everything a store records about where they come from.

    ``seen`` says of each row whether the teacher that answers it was trained on it, int8 [N]; see ``claims``.
    ``features`` says what its batches hold beside logits, None where that is nothing.
    """

    split: Split
    views: Views
    folds: Folds | None
    fold_attributes: Mapping[str, Any] | None
    groups: npt.NDArray[np.uint64] | None
    seen: Seen
    features: Features | None

    def identity(self) -> dict[str, Any]:
        """Who answers: at least ``architecture`` and ``weights_sha256``."""
        ...

    def __call__(self, rows: Rows, view: int) -> Tensor:
        """Raw logits float32 [len(rows), C], or [len(rows), L, C]; the same for the same rows, whoever asks."""
        ...

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        """The same a batch at a time, each position once, in an order that does not depend on the size of batches."""
        ...


def held_rows(num_classes: int, positions: int | None = None) -> int:
    """How many rows' logits are held at once: fewer, the more classes and positions there are."""
    return max(1, max(16, HELD_BYTES // (4 * num_classes) // 16 * 16) // (positions or 1))


def in_turn(answer: Callable[[Rows, int], Tensor], rows: Rows, view: int, split: Split) -> Iterator[Batch]:
    """Batches of a teacher that answers each row by itself, in their order."""
    step = held_rows(split.num_classes, split.positions)
    for start in range(0, len(rows), step):
        own = rows[start : start + step]
        yield Batch(np.arange(start, start + len(own)), answer(own, view))


def gathered(batches: Iterable[Batch], num_rows: int, step: int) -> Iterator[tuple[npt.NDArray[np.int64], Tensor]]:
    """The logits of batches in their order, ``step`` rows at a time whatever the batches are; at last what is left.

    Args:
        batches: Answers to ``num_rows`` rows.
        num_rows: How many there are.
        step: Rows of each group.
    """
    positions, logits = np.empty(0, np.int64), torch.empty(0)
    filled, left = 0, num_rows
    for positions_B, logits_BC, _ in batches:
        taken = 0
        if not filled and 0 < len(positions_B) == min(step, left):
            yield positions_B, logits_BC  # most often: nothing is copied
            taken, left = len(positions_B), left - len(positions_B)
        while taken < len(positions_B):
            if not filled:
                size = min(step, left)
                positions, logits = np.empty(size, np.int64), logits_BC.new_empty((size, *logits_BC.shape[1:]))
            more = min(len(positions) - filled, len(positions_B) - taken)
            positions[filled : filled + more] = positions_B[taken : taken + more]
            logits[filled : filled + more] = logits_BC[taken : taken + more]
            filled, taken = filled + more, taken + more
            if filled == len(positions):
                yield positions, logits
                filled, left = 0, left - len(positions)
