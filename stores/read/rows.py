"""What rows say of themselves: sound bytes that cannot be a teacher's answer are found here.

Checksums prove that rows are those that were written. They cannot see rows that were shuffled, or computed wrongly,
by a tool that made new checksums as well. But a row names classes, adds up to 1 and speaks of its label twice, and a
row of another example contradicts itself.

Shapes: R rows, K kept classes, C classes, A answers (K beside `index`, else C).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from logitbank.stores.format.schema import GAP_GRID, GAP_NEVER, GAP_RATE, GAP_SCALE, ROW_ARRAYS
from logitbank.stores.read.tails import Tails, wrong_shift

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float32]

_AT_ONCE = 2**17  # numbers of one array that are looked at together, and stay in a cache
_FEW_KEPT = 24  # up to as many, comparing all pairs is faster than sorting
_MASS = 1.05  # rounding adds less than 5 % to a row's mass
_ABOVE_ZERO = 0.02  # nats by which rounding may raise a log-probability of 0
_NOT_FINITE = tuple(name for name, spec in ROW_ARRAYS.items() if spec.finite)


@dataclass(frozen=True)
class Rows:
    """Some rows of one view, with the labels of their examples."""

    arrays: Mapping[str, np.ndarray]
    labels_R: npt.NDArray[np.integer]
    num_classes: int
    tails: Tails | None = None
    folds_R: npt.NDArray[np.integer] | None = None
    _floats: dict[str, Floats] = field(default_factory=dict)

    def floats(self, name: str) -> Floats:
        """An array in float32, made once."""
        if name not in self._floats:
            self._floats[name] = np.asarray(self.arrays[name], dtype=np.float32)
        return self._floats[name]

    def has(self, *names: str) -> bool:
        return all(name in self.arrays for name in names)

    @cached_property
    def index_KR(self) -> np.ndarray:
        """Classes of the head; one class of all rows after the other, since arithmetic is fast along rows."""
        return np.ascontiguousarray(self.arrays["index"].T)

    @cached_property
    def place_R(self) -> npt.NDArray[np.int64]:
        """Where in the head the label is; K where it is not."""
        num_kept = len(self.index_KR)
        here_KR = (self.index_KR == self.labels_R.astype(self.index_KR.dtype)) & (self.labels_R >= 0)
        numbers_K1 = np.arange(1, num_kept + 1, dtype=np.uint8 if num_kept < 256 else np.uint32)[:, None]
        place_R = (here_KR * numbers_K1).max(0).astype(np.int64)
        return np.where(place_R > 0, place_R - 1, num_kept)

    @cached_property
    def head_KR(self) -> Floats | None:
        """Log-probabilities of the head up to a constant per row, which is 0 in 16 bits; best first."""
        if self.has("log_prob"):
            return np.ascontiguousarray(self.floats("log_prob").T)
        if not self.has("log_prob_code"):
            return None
        head_KR: Floats = _gap_drops()[np.ascontiguousarray(self.arrays["log_prob_code"].T)]
        head_KR[0] = 0
        for number in range(1, len(head_KR)):
            head_KR[number] += head_KR[number - 1]
        return head_KR


class Law(NamedTuple):
    """What must not be: words that go after "row 7", and the rows that it is true of, bool [R]; None: cannot say."""

    words: str
    broken: Callable[[Rows], Bools | None]


def broken_rows(
    arrays: Mapping[str, np.ndarray],
    labels_R: npt.NDArray[np.integer],
    num_classes: int,
    *,
    tails: Tails | None = None,
    folds_R: npt.NDArray[np.integer] | None = None,
) -> Iterator[tuple[str, npt.NDArray[np.int64]]]:
    """The laws that rows break, with the numbers of the rows; a row is blamed for the first law that it breaks.

    Args:
        arrays: Arrays [R, *row_shape] by name; laws about others are left out. Rows where `mask` is false mean nothing.
        labels_R: The labels of the examples, -1 where there is none.
        num_classes: C.
        tails: What the constants say of all classes, to judge `tail_shift` by; without it that is left out, since it
            takes some ten times as long as the other laws.
        folds_R: Folds of the examples, of a cross-fitted teacher.

    Yields:
        Words for what is wrong, and rows in order.
    """
    found: dict[str, list[npt.NDArray[np.int64]]] = {}
    widest = max((array[0].size for array in arrays.values() if len(array)), default=1)
    step = max(1, _AT_ONCE // max(widest, num_classes if tails is not None else 1))
    for start in range(0, len(labels_R), step):
        some = slice(start, start + step)
        part = Rows(
            {name: array[some] for name, array in arrays.items()},
            labels_R[some],
            num_classes,
            tails,
            None if folds_R is None else folds_R[some],
        )
        left_R = np.asarray(part.arrays["mask"], dtype=np.bool_).copy() if part.has("mask") else True
        for law in LAWS:
            with np.errstate(all="ignore"):  # strangers' numbers
                broken_R = law.broken(part)
            if broken_R is None or not (broken_R := broken_R & left_R).any():
                continue
            found.setdefault(law.words, []).append(start + np.flatnonzero(broken_R))
            left_R = left_R & ~broken_R
    for words, rows in found.items():
        yield words, np.concatenate(rows)


@cache
def _gap_drops() -> Floats:
    """What each code of a head takes off, float32 [256]."""
    drops = np.round(GAP_SCALE * np.expm1(GAP_RATE * np.arange(256.0)) * GAP_GRID) / -GAP_GRID
    drops[GAP_NEVER] = -np.inf
    return drops.astype(np.float32)


def _unknown_class(rows: Rows) -> Bools | None:
    if not rows.has("index"):
        return None
    if int(rows.arrays["index"].max(initial=0)) < rows.num_classes:
        return None
    return np.asarray((rows.arrays["index"] >= rows.num_classes).any(1))


def _class_twice(rows: Rows) -> Bools | None:
    if not rows.has("index"):
        return None
    index_KR = rows.index_KR
    if len(index_KR) > _FEW_KEPT:
        index_KR = np.sort(rows.arrays["index"], axis=1).T
    broken_R = np.zeros(len(rows.labels_R), np.bool_)
    for step in range(1, len(index_KR) if len(index_KR) <= _FEW_KEPT else 2):
        broken_R |= (index_KR[step:] == index_KR[:-step]).any(0)
    return broken_R


def _not_finite(rows: Rows) -> Bools | None:
    """NaN or infinity where a number must be; -inf may stand for the logit of a class of probability zero."""
    broken_R = np.zeros(len(rows.labels_R), np.bool_)
    for name in rows.arrays:
        values = rows.arrays[name]
        if name in _NOT_FINITE:
            flat = values.reshape(len(values), -1)
            broken_R |= ~np.isfinite(flat).all(1)
        elif name in ("log_prob", "logit"):
            best_R = rows.floats(name).max(1)  # NaN if one of them is
            broken_R |= ~np.isfinite(best_R)
        elif name in ("log_tail_mass", "tail_shift"):
            broken_R |= np.isnan(values) | np.isposinf(values)
    return broken_R


def _too_probable(rows: Rows) -> Bools | None:
    """Probabilities above 1."""
    broken_R = np.zeros(len(rows.labels_R), np.bool_)
    if rows.has("log_tail_mass"):
        broken_R |= rows.floats("log_tail_mass") >= 0
    if rows.has("log_prob"):
        broken_R |= rows.floats("log_prob").max(1) > _ABOVE_ZERO
    if rows.has("label_log_prob"):
        broken_R |= rows.floats("label_log_prob") > _ABOVE_ZERO
    if rows.has("log_prob_scale", "log_prob_floor"):
        broken_R |= ~(rows.floats("log_prob_scale") > 0) | (rows.floats("log_prob_floor") > _ABOVE_ZERO)
    return broken_R


def _not_best_first(rows: Rows) -> Bools | None:
    if not rows.has("index", "log_prob"):
        return None
    head_RK = rows.floats("log_prob")
    return np.asarray((head_RK[:, 1:] > head_RK[:, :-1]).any(1))


def _too_much_mass(rows: Rows) -> Bools | None:
    if rows.has("index", "log_prob", "log_tail_mass"):
        return np.asarray(np.exp(rows.floats("log_prob")).sum(1) + np.exp(rows.floats("log_tail_mass")) > _MASS)
    if rows.has("log_prob") and not rows.has("index") and rows.arrays["log_prob"].shape[1] == rows.num_classes:
        return np.asarray(np.exp(rows.floats("log_prob")).sum(1) > _MASS)
    if rows.has("log_prob_code", "log_prob_scale", "log_prob_floor"):
        log_prob_RC = _dense_log_prob(rows)
        return np.asarray(np.exp(log_prob_RC, out=log_prob_RC).sum(1) > _MASS * np.exp(_code_slack(rows)))
    return None


def _label_missing(rows: Rows) -> Bools | None:
    """A label that the example does not have, or none where it has one."""
    labelled_R = rows.labels_R >= 0
    broken_R = np.zeros(len(labelled_R), np.bool_)
    if rows.has("label_log_prob"):
        broken_R |= np.isnan(rows.arrays["label_log_prob"]) == labelled_R
    if rows.has("label_rank"):
        broken_R |= (rows.arrays["label_rank"] == 0) == labelled_R
        broken_R |= rows.arrays["label_rank"] > rows.num_classes
    return broken_R


def _other_rank(rows: Rows) -> Bools | None:
    """The label's place among the stored classes is not its rank; ties may be counted either way."""
    if not rows.has("label_rank"):
        return None
    labelled_R, rank_R = rows.labels_R >= 0, rows.arrays["label_rank"].astype(np.int64)
    if rows.has("index"):
        if rows.head_KR is None:
            return None
        stored_R, num_stored = rows.place_R < len(rows.index_KR), len(rows.index_KR)
        broken_R = labelled_R & ~stored_R & (rank_R <= num_stored)
        doubtful = np.flatnonzero(stored_R & (rank_R != rows.place_R + 1))  # in a tie, the rank may be another one
        order_SA, place_S = rows.head_KR[:, doubtful].T, rows.place_R[doubtful]
    else:
        order_RC = _ordered(rows)
        if order_RC is None:
            return None
        broken_R, num_stored = np.zeros(len(rank_R), np.bool_), order_RC.shape[1]
        place_R = np.maximum(rows.labels_R, 0).astype(np.int64)
        least_R = (order_RC >= np.take_along_axis(order_RC, place_R[:, None], 1)).sum(1)
        doubtful = np.flatnonzero(labelled_R & (least_R != rank_R))
        order_SA, place_S = order_RC[doubtful], place_R[doubtful]
    own_S1, rank_S = np.take_along_axis(order_SA, place_S[:, None], 1), rank_R[doubtful]
    above_S, least_S = (order_SA > own_S1).sum(1), (order_SA >= own_S1).sum(1)
    broken_R[doubtful] = (above_S >= rank_S) | (least_S < np.minimum(rank_S, num_stored))
    return np.asarray(broken_R)


def _other_log_prob(rows: Rows) -> Bools | None:
    """The label's log-probability is not what the row says of that class, or above what it leaves to the tail."""
    if not rows.has("label_log_prob"):
        return None
    labelled_R, own_R = rows.labels_R >= 0, rows.floats("label_log_prob")
    if not rows.has("index"):
        said = _label_of_all(rows)
        return None if said is None else np.asarray(labelled_R & _differ(own_R, *said))
    if rows.head_KR is None or not rows.has("log_tail_mass", "logsumexp"):
        return None
    offset_R, last = _head_offset(rows), len(rows.head_KR) - 1
    said_R, last_R = (
        rows.head_KR[place, np.arange(len(own_R))] + offset_R for place in (np.minimum(rows.place_R, last), last)
    )
    slack_R, last_slack_R = (0.1 - each_R * np.float32(0.1) + _steps(rows) for each_R in (said_R, last_R))
    tail_R = rows.floats("log_tail_mass")
    above_R = (own_R > last_R + last_slack_R) | (own_R > tail_R + 0.1 - tail_R * np.float32(2.0**-6))
    return np.asarray(labelled_R & np.where(rows.place_R <= last, _differ(own_R, said_R, slack_R), above_R))


def _other_shift(rows: Rows) -> Bools | None:
    """The tail has another mass than the row says."""
    needed = ("index", "tail_shift", "label_log_prob", "log_tail_mass", "logsumexp")
    if rows.tails is None or not rows.has(*needed) or rows.head_KR is None:
        return None
    head_RK = (rows.head_KR + _head_offset(rows)).T
    total_R, index_RK = rows.floats("logsumexp"), rows.arrays["index"].astype(np.int64)
    outside_R = (rows.labels_R >= 0) & ~(index_RK == rows.labels_R[:, None]).any(1)
    folds_R = np.zeros(len(total_R), np.int64) if rows.folds_R is None else rows.folds_R.astype(np.int64)
    shape_RC = rows.tails.shape(index_RK, head_RK + total_R[:, None], folds_R, rows.arrays.get("tail_code"))
    return wrong_shift(
        shape_RC,
        rows.arrays["tail_shift"],
        index_RK,
        head_RK + total_R[:, None],
        np.where(outside_R, rows.labels_R, index_RK[:, 0]),
        np.where(outside_R, rows.floats("label_log_prob") + total_R, np.float32(-np.inf)),
        rows.floats("log_tail_mass") + total_R,
    )


def _differ(own_R: Floats, said_R: Floats, slack_R: Floats) -> Bools:
    lowest = float(np.finfo(np.float16).min)  # what is lower is stored as that
    apart_R = np.abs(np.maximum(own_R, lowest) - np.maximum(said_R, lowest))
    return np.asarray(~(apart_R <= slack_R))


def _ordered(rows: Rows) -> np.ndarray | None:
    """Numbers in the order of the logits of all classes, [R, C]."""
    if rows.has("logit"):
        return rows.arrays["logit"]
    if rows.has("log_prob"):
        return rows.floats("log_prob")
    if rows.has("log_prob_code", "log_prob_floor"):
        return rows.arrays["log_prob_code"]
    return None


def _label_of_all(rows: Rows) -> tuple[Floats, Floats] | None:
    """What a row of all classes says of its label, and how far rounding may be from it, [R]."""
    place_R1 = np.maximum(rows.labels_R, 0)[:, None]
    if rows.has("logit"):
        logit_RC = rows.floats("logit")
        best_R = logit_RC.max(1)
        total_R = np.log(np.exp(logit_RC - best_R[:, None]).sum(1)) + best_R
        said_R = np.take_along_axis(logit_RC, place_R1, 1)[:, 0] - total_R
        return said_R, 0.02 - said_R * np.float32(2.0**-9) + np.abs(total_R) * np.float32(2.0**-20)
    if rows.has("log_prob", "logsumexp"):
        said_R = np.take_along_axis(rows.arrays["log_prob"], place_R1, 1)[:, 0].astype(np.float32)
        return said_R, 0.02 - said_R * np.float32(2.0**-9) + _steps(rows)
    if rows.has("log_prob_code", "log_prob_scale", "log_prob_floor", "logsumexp"):
        code_R = np.take_along_axis(rows.arrays["log_prob_code"], place_R1, 1)[:, 0]
        said_R = code_R * rows.floats("log_prob_scale") + rows.floats("log_prob_floor")
        said_R[code_R == 0] = -np.inf
        return said_R, 0.02 - said_R * np.float32(2.0**-9) + 2 * _code_slack(rows) + _steps(rows)
    return None


def _head_offset(rows: Rows) -> Floats | np.float32:
    """What makes log-probabilities of the head's numbers, [R]."""
    if rows.has("log_prob") or rows.head_KR is None:
        return np.float32(0)
    return np.asarray(np.log(-np.expm1(rows.floats("log_tail_mass"))) - np.log(np.exp(rows.head_KR).sum(0)))


def _steps(rows: Rows) -> Floats:
    """By how much classes were moved to keep their order beside a large logsumexp, [R]."""
    return np.abs(rows.floats("logsumexp")) * np.float32(2.0**-18)


def _code_slack(rows: Rows) -> Floats:
    """How far a row of 8-bit codes may be off: a step; nearly even rows were once put 254 steps too high."""
    scale_R = rows.floats("log_prob_scale")
    least_R = np.maximum(np.float32(2.0**-10), _steps(rows) / 8 if rows.has("logsumexp") else 0)
    return np.where(scale_R <= 1.01 * least_R, 255 * scale_R, scale_R)


def _dense_log_prob(rows: Rows) -> Floats:
    code_RC = rows.arrays["log_prob_code"]
    values_RC = code_RC * rows.floats("log_prob_scale")[:, None]
    values_RC += rows.floats("log_prob_floor")[:, None]
    values_RC[code_RC == 0] = -np.inf
    return np.asarray(values_RC, dtype=np.float32)


LAWS = (
    Law("names a class that the data does not have", _unknown_class),
    Law("names a class twice", _class_twice),
    Law("holds NaN or infinity where a number must be", _not_finite),
    Law("holds a probability above 1", _too_probable),
    Law("does not name its best class first", _not_best_first),
    Law("has probabilities that add to more than 1", _too_much_mass),
    Law("speaks of a label where the example has none, or of none where it has one", _label_missing),
    Law("contradicts its example's label: another class has the rank that it gives the label", _other_rank),
    Law("contradicts its example's label: another class has the probability that it gives it", _other_log_prob),
    Law("has a tail_shift that does not give its tail the mass that it says", _other_shift),
)
