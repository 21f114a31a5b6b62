"""What stage two asks of one stored teacher, or of several that answer as one.

Shapes: B batch, C classes, N examples, V views.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.stored_batch import View


class Batch(Protocol):
    """What is said of the B rows of a batch, and how much of it is known: an ``Answer`` as losses take it.

    Where an example is answered at L positions, a row has L answers, and B is the number of answers here: those to the
    first row, one position after the other, then those to the second. ``shape`` is (rows, L).
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """(rows,), or (rows, L): ``batch.logits(...).reshape(*batch.shape, -1)``."""
        ...

    @property
    def offers(self) -> frozenset[str]:
        """Of dense, out_of_fold, fixed_tail, label_prob, embedding, sparse: what holds for the answer."""
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

    def part(self, some: slice) -> "Batch":
        """The same of some of the rows: no others are decoded."""
        ...

    def features(self) -> tuple[Tensor, Tensor]:
        """Where it offers ``embedding``: features of the teacher, float32 [B, K], and their folds, int64 [B]."""
        ...


class Answers(Protocol):
    """Answers to any rows of any view.

    Nothing that is called changes what another call returns: a row's answer is asked for by its number and view.
    Rows are int64 [B] on any device, a view is one number or one for each row, int64 [B].
    """

    tail: str
    grouping: Grouping | None
    """The order of rows in which the memory budget serves them fast; None when whole slabs fit: any."""

    @property
    def parts(self) -> Sequence[StoredAnswers]:
        """The single teachers behind the answers."""
        ...

    @property
    def num_views(self) -> int:
        """V; views count from 0."""
        ...

    @property
    def offers(self) -> frozenset[str]:
        """What losses may ask of answers and these have: of those that a ``Batch`` names."""
        ...

    def of(self, rows_B: Tensor, view: View) -> Batch:
        """What is said of the rows, and what of it is known; what a loss takes."""
        ...

    def logits(
        self, rows_B: Tensor, view: View, *, student_BC: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Dense, finite logits, float32 [B, C], or [B, L, C] where examples are answered at L positions.

        Student (of the same shape) and temperature matter to the ``bucket`` rule only. Positions that are not served
        hold no answer: ``of(rows, view).served()`` says which.

        Raises:
            ValueError: There is no such row or view, or no teacher serves one of the rows at any position.
        """
        ...

    def served(self, view: int) -> npt.NDArray[np.bool_]:
        """Rows that have an answer in the view, at some position, bool [N]."""
        ...

    def read_ahead(self, view: int, groups: Sequence[Tensor] = ()) -> None:
        """Says what will be asked for next, so that it comes sooner, and is the same.

        Args:
            view: Is read in a thread of its own.
            groups: Its rows in the order of a ``grouping``, group after group; whole slabs need none.
        """
        ...

    def close(self) -> None:
        """Gives back the memory that is held; what is asked for later is read again."""
        ...
