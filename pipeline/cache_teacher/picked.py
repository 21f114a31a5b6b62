"""Some answers of a teacher: of whole examples, or of a few positions of each.

Where an example is answered at many positions, a thousand answers to one text say less than a few to each of many, and
all answers to many do not fit into memory: positions are drawn, and the others are let go batch by batch.

Shapes: R examples, L positions, Q picked answers, C classes.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.datasets import Split

Rows = npt.NDArray[np.int64]
FEWEST_EXAMPLES = 64  # that answers are drawn from, where there are as many
_FEWEST_APART = 16  # examples of a fold, of which some can be left out whole


@dataclass(frozen=True)
class Picked:
    """Answers to some examples, in their order.

    Attributes:
        split: The examples.
        rows: Row numbers, int64 [R].
        places: int64 [Q], which of the R times L answers, rising; None: each example has one, and it is picked.
    """

    split: Split
    rows: Rows
    places: Rows | None = None

    def __len__(self) -> int:
        return len(self.rows) if self.places is None else len(self.places)

    @property
    def example_of(self) -> Rows:
        """Which of the examples each answer is about, int64 [Q]."""
        return np.arange(len(self.rows)) if self.places is None else self.places // (self.split.positions or 1)

    @property
    def labels(self) -> Tensor:
        """int64 [Q]."""
        labels_R = self.split.labels[self.rows]
        return torch.from_numpy(labels_R if self.places is None else labels_R.reshape(-1)[self.places])

    def folds(self, folds_N: npt.NDArray[np.uint16] | None) -> Tensor | None:
        """The fold of each answer, int64 [Q]; None without cross-fitting."""
        return None if folds_N is None else torch.from_numpy(folds_N[self.rows[self.example_of]].astype(np.int64))

    def left_out(self, folds_N: npt.NDArray[np.uint16] | None) -> npt.NDArray[np.bool_] | None:
        """Answers that a fit leaves out to judge itself, bool [Q]: an eighth of a fold, by examples if there are many.

        None where each example has one answer: every eighth, whoever fits.
        """
        if self.places is None:
            return None
        fold_Q = np.zeros(len(self)) if folds_N is None else folds_N[self.rows[self.example_of]]
        left_Q = np.zeros(len(self), np.bool_)
        for fold in np.unique(fold_Q):
            own = np.flatnonzero(fold_Q == fold)
            examples, ordinal = np.unique(self.example_of[own], return_inverse=True)
            left_Q[own] = (ordinal if len(examples) >= _FEWEST_APART else np.arange(len(own))) % 8 == 7
        return left_Q

    def first(self, num_answers: int) -> "Picked":
        """The first so many answers."""
        if self.places is None:
            return Picked(self.split, self.rows[:num_answers])
        places = self.places[:num_answers]
        return Picked(self.split, self.rows[: int(self.example_of[len(places) - 1]) + 1], places)

    def of_batch(self, positions: Rows, logits_BC: Tensor) -> tuple[Rows, Tensor]:
        """Which of the Q answers are in a batch of the examples at ``positions`` among R, and their logits [q, C]."""
        if self.places is None:
            return positions, logits_BC
        length = logits_BC.shape[1]
        flat_P = (positions[:, None] * length + np.arange(length)).reshape(-1)
        place_P = np.minimum(np.searchsorted(self.places, flat_P), len(self.places) - 1)
        own_P = np.flatnonzero(self.places[place_P] == flat_P)
        return place_P[own_P], logits_BC.flatten(0, 1)[torch.from_numpy(own_P).to(logits_BC.device)]

    def only(self, some: Rows) -> tuple["Picked", Rows]:
        """The answers to some of the examples, which are given by their places among R; and which of Q they are."""
        if self.places is None:
            return Picked(self.split, self.rows[some]), some
        some = np.sort(some)
        own_Q = np.flatnonzero(np.isin(self.example_of, some))
        length = self.split.positions or 1
        places = np.searchsorted(some, self.example_of[own_Q]) * length + self.places[own_Q] % length
        return Picked(self.split, self.rows[some], places), own_Q


def pick(split: Split, order: Rows, num_answers: int, seed: int, *, most: int | None = None) -> tuple[Picked, Rows]:
    """Answers to the first examples of an order, and the examples that are left.

    Args:
        split: The examples.
        order: Row numbers.
        num_answers: How many answers; examples of one answer each give one.
        seed: Which positions are drawn.
        most: Examples with positions that they are drawn from, at most.
    """
    if split.positions is None:
        return Picked(split, np.sort(order[:num_answers])), order[num_answers:]
    wanted = max(-(-num_answers // split.positions), min(FEWEST_EXAMPLES, num_answers))
    wanted = wanted if most is None else min(wanted, most)
    rows = np.sort(order[:wanted])
    all_R = np.ones((len(rows), split.positions), np.bool_) if split.readable is None else split.readable[rows]
    there = np.flatnonzero(all_R)
    drawn = np.random.default_rng([seed, len(rows)]).permutation(there)[:num_answers]
    return Picked(split, rows, np.sort(drawn)), order[wanted:]


def shown_rows(split: Split, order: Rows) -> Rows:
    """Those of some rows of which something could be read."""
    if split.readable is None:
        return order
    return order[split.readable[order].reshape(len(order), -1).any(axis=1)]
