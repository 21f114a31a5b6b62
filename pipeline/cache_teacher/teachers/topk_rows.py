"""Rows of log-probabilities of the best classes: checked, and what they leave to the classes that they do not name.

Shapes: B answers, C classes, K entries of an answer.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.teachers.sparse import REST_SHARE

NEVER = -9000.0
"""A log-probability from here down is padding: -inf, or the -10,000 of Megatron."""
MASS_TOLERANCE = 0.01  # by which the probabilities of a row may miss 1, besides the rounding of their numbers
_LEAST_ROUNDING = 2.0**-22  # of a log-probability that was computed in float32, whatever keeps it
_CLIFF = 0.1  # of the least class that is named: all others together have less only by chance
_MOST = 0.95  # of the answers

Floats = npt.NDArray[np.float64]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Head:
    """What rows say of the classes that they name, and leave to the others.

    Attributes:
        index_BK: The classes, -1 where an entry is padding.
        log_prob_BK: Natural log-probabilities, -inf there.
        log_even_B: Log-probability of every other class.
        cliff_B: What is left to all other classes, as a share of the least of the head's best; NaN where no class is
            left, or the numbers' rounding hides it.
    """

    index_BK: Ids
    log_prob_BK: Floats
    log_even_B: Floats
    cliff_B: Floats

    def dense(self, num_classes: int) -> Tensor:
        """Log-probabilities of all classes, float32 [B, C]."""
        best_B1 = self.log_prob_BK.argmax(1)[:, None]
        absent_BK = self.index_BK < 0  # padding says again what the best class has
        index_BK, log_prob_BK = (
            np.where(absent_BK, np.take_along_axis(array, best_B1, 1), array)
            for array in (self.index_BK, self.log_prob_BK.astype(np.float32))
        )
        even_B1 = torch.from_numpy(self.log_even_B.astype(np.float32))[:, None]
        return even_B1.repeat(1, num_classes).scatter_(1, torch.from_numpy(index_BK), torch.from_numpy(log_prob_BK))


def read_head(values_BK: Floats, index_BK: Ids, labels_B: Ids, num_classes: int, epsilon: float) -> Head:
    """Checks rows and gives what they leave of the mass to the classes that they do not name.

    That mass is 1 less the sum, without cancellation on a confident row; where the numbers' rounding hides it, a
    twentieth of what the rounding may hide. No other class is above the least that is named, a label aside.

    Args:
        values_BK: Natural log-probabilities.
        index_BK: Their classes.
        labels_B: Labels, -1 where there is none.
        num_classes: C.
        epsilon: Distance from 1 to the next number of the values' dtype.

    Raises:
        WrongRow: Rows that cannot be what they should.
    """
    absent_BK = (index_BK == -1) | (values_BK <= NEVER)
    log_prob_BK = np.where(absent_BK, -np.inf, values_BK)
    _refuse(~np.all(log_prob_BK < np.inf, axis=1), "holds NaN or infinity; expected log-probabilities")
    wrong_BK = ~absent_BK & ((index_BK < 0) | (index_BK >= num_classes))
    odd = f", such as {index_BK[wrong_BK][0]}" if wrong_BK.any() else ""
    _refuse(
        wrong_BK.any(1),
        f"names a class outside 0 to {num_classes - 1}{odd}; pass the data that it is about, and as its classes= how"
        " many the teacher has",
    )
    _refuse(
        absent_BK.all(1),
        "names no class; expected the best K of everything that the data have (of a text, vLLM's first entry is None:"
        " leave it out, since entry i + 1 answers at position i)",
    )
    absent_BK |= _named_twice(index_BK, values_BK, absent_BK)
    log_prob_BK[absent_BK] = -np.inf
    log_rest_B, log_even_B, cliff_B = _rest(log_prob_BK, index_BK == labels_B[:, None], num_classes, epsilon)
    total_B = np.logaddexp(np.logaddexp.reduce(log_prob_BK, axis=1), log_rest_B)
    return Head(
        index_BK=np.where(absent_BK, -1, index_BK),
        log_prob_BK=log_prob_BK - total_B[:, None],
        log_even_B=log_even_B - total_B,
        cliff_B=cliff_B,
    )


def _named_twice(index_BK: Ids, values_BK: Floats, absent_BK: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The second mention of a class that a row names twice with one value; refused are more, and other values."""
    again_BK = np.zeros_like(absent_BK)
    ids_BK = np.where(absent_BK, -1 - np.arange(index_BK.shape[1]), index_BK)
    order_BK = np.argsort(ids_BK, axis=1, kind="stable")
    sorted_BK = np.take_along_axis(ids_BK, order_BK, 1)
    place, column = np.nonzero(sorted_BK[:, 1:] == sorted_BK[:, :-1])
    if len(place):
        first, second = order_BK[place, column], order_BK[place, column + 1]
        wrong_B = np.bincount(place, minlength=len(index_BK)) > 1
        wrong_B[place[values_BK[place, first] != values_BK[place, second]]] = True
        _refuse(wrong_B, "names a class twice; expected different classes")
        again_BK[place, second] = True
    return again_BK


def _rest(
    log_prob_BK: Floats, label_BK: npt.NDArray[np.bool_], num_classes: int, epsilon: float
) -> tuple[Floats, Floats, Floats]:
    """Logs of the mass that is left, and of what each class has of it, [B]; and ``Head.cliff_B``."""
    named_BK = log_prob_BK > -np.inf
    prob_BK = np.exp(log_prob_BK)
    best_B1 = log_prob_BK.argmax(1)[:, None]
    others_B = prob_BK.sum(1) - np.take_along_axis(prob_BK, best_B1, 1)[:, 0]
    left_B = -np.expm1(np.take_along_axis(log_prob_BK, best_B1, 1)[:, 0]) - others_B
    error_BK = np.maximum(np.abs(np.where(named_BK, log_prob_BK, 0.0)) * epsilon / 2, min(2 * epsilon, _LEAST_ROUNDING))
    rounding_B = (prob_BK * error_BK).sum(1)
    num_left_B = num_classes - named_BK.sum(1)
    least_B = np.where(named_BK & ~label_BK, prob_BK, np.inf).min(1)
    most_B = num_left_B * np.where(np.isfinite(least_B), least_B, 1.0)  # as no class is above the head's least
    _refuse(left_B < -rounding_B - MASS_TOLERANCE, "has probabilities that add to more than 1; expected at most 1")
    _refuse(
        left_B - rounding_B > most_B + MASS_TOLERANCE,
        f"leaves more to the {num_classes} classes than they can have below its least; expected the best K at"
        " temperature 1",
    )
    rest_B = np.clip(left_B, REST_SHARE * np.minimum(rounding_B, most_B), most_B)
    with np.errstate(divide="ignore"):
        log_rest_B = np.log(rest_B)
        log_even_B = np.minimum(log_rest_B - np.log(np.maximum(num_left_B, 1)), np.log(least_B) - 1e-6)
        cliff_B = np.where((num_left_B > 0) & (rounding_B < _CLIFF * least_B), left_B / least_B, np.nan)
    return log_rest_B, log_even_B, cliff_B


@dataclass
class Fallen:
    """Counts answers whose probabilities fall off a cliff behind the classes that are named."""

    rows: int = 0
    judged: int = 0

    def seen(self, head: Head) -> Head:
        """The head itself, counted."""
        known_B = np.isfinite(head.cliff_B)
        self.judged += int(known_B.sum())
        self.rows += int((head.cliff_B[known_B] < _CLIFF).sum())
        return head

    @property
    def most(self) -> bool:
        """Whether nearly all do, which no softmax over more classes gives."""
        return self.rows > _MOST * self.judged


class WrongRow(ValueError):
    def __init__(self, row: int, reason: str) -> None:
        super().__init__(row, reason)
        self.row, self.reason = row, reason


def _refuse(wrong_B: "npt.NDArray[np.bool_] | np.bool_", reason: str) -> None:
    if np.any(wrong_B):
        raise WrongRow(int(np.flatnonzero(wrong_B)[0]), reason)
