"""Do answers belong to their examples: judged by the labels alone, with the likely cause where they do not.

Shapes: N examples, C classes. Of examples with positions each answer is a row, the first ones alone.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from logitbank.pipeline.answers.teacher_rows import encoding_of
from logitbank.pipeline.views import Views
from logitbank.stores import Store, Teacher

Ids = npt.NDArray[np.int64]

_CHANCE_SIGMA, _SIGMA = 3.0, 5.0
_LEAST_GAIN = 0.25  # of what luck leaves: other readings of an untrained teacher are better by luck
_FEWEST = 20  # labelled rows that a word is said about
_MOST_CLASSES = 2000  # of which the best permutation is looked for
_MOST_PROCESSES = 16
_READ = 2**28  # bytes of rows
_MOST_ANSWERS = 2**18  # of examples with positions


class _Guess(NamedTuple):
    """Another reading of the answers: what would be wrong, and the best class that each row would then have."""

    words: str
    best_N: Ids


def label_warnings(store: Store, teacher: Teacher) -> list[str]:
    """A line when a teacher's first view knows the labels no better than luck, or than it would if read otherwise."""
    if Views.from_attributes(store.views).mixes:
        return []  # two examples and two labels in a picture
    best_N, labels_N = best_classes(teacher), np.asarray(store.labels, np.int64)
    if store.positions is not None:
        some = slice(max(1, _MOST_ANSWERS // store.positions))
        best_N, labels_N = best_N[some].reshape(-1), labels_N[some].reshape(-1)
    line = suspicion(best_N, labels_N, store.num_classes, at_positions=store.positions is not None)
    return [] if line is None else [f"teacher {teacher.name!r}: {line}"]


def best_classes(teacher: Teacher) -> Ids:
    """The best class of each answer of the first view, int64 [N], or [N, L]; -1: none, or not read."""
    encoding = encoding_of(teacher)
    name = encoding.best_array
    names = [name, *({"mask"} & set(teacher.arrays))]
    lead = () if teacher.positions is None else (teacher.positions,)
    best_N = np.full((teacher.num_examples, *lead), -1, np.int64)
    num_blocks = max(1, _READ // (teacher.block_rows * teacher.row_arrays[name].row_bytes))
    for block in range(min(teacher.num_blocks, num_blocks)):
        arrays = teacher.answers(0, block, names)
        values = arrays[name]
        best_B = encoding.best_class(values.reshape(-1, values.shape[-1])).reshape(values.shape[:-1])
        best_N[teacher.rows(block)] = np.where(arrays["mask"], best_B, -1) if "mask" in arrays else best_B
    return best_N


def suspicion(best_N: Ids, labels_N: Ids, num_classes: int, *, at_positions: bool = False) -> str | None:
    """Words about answers that do not fit the labels; None when they do.

    Args:
        best_N: The best class of each row, in order; -1 where there is none.
        labels_N: Labels, -1 where there is none.
        num_classes: C.
        at_positions: A row is a position of an example, next to the example's others.
    """
    known_N = (best_N >= 0) & (labels_N >= 0)
    num_known = int(known_N.sum())
    if num_known < _FEWEST:
        return None
    best, labels = best_N[known_N], labels_N[known_N]
    if (labels == labels[0]).all():
        return None  # nothing to know about them
    accuracy = float((best == labels).mean())
    chance, sigma = _luck(best, labels, num_classes)
    at_chance = accuracy <= min(chance + _CHANCE_SIGMA * sigma, chance + _LEAST_GAIN * (1 - chance))
    said = f"its best class is the label of {accuracy:.1%} of {num_known} rows"
    if at_chance:
        said += f", no more than luck would give ({chance:.1%})"
    found: tuple[float, str] | None = None
    for guess in _guesses(best_N, labels_N, num_classes, at_positions):
        share = _better(guess.best_N, best_N, labels_N)
        likely = share is not None and share >= chance + _LEAST_GAIN * (1 - chance)
        if share is not None and likely and (found is None or share > found[0] + 0.01):
            found = share, guess.words
    if found is not None:
        return f"{said}, and would be of {found[0]:.1%} if {found[1]}; put it right and cache again"
    if at_chance:
        return (
            f"{said}: an untrained teacher, another input scaling, rows that are shuffled or of other data, or other"
            " class numbers"
        )
    return None


def _luck(best_N: Ids, labels_N: Ids, num_classes: int) -> tuple[float, float]:
    """Mean and standard deviation of the accuracy if the rows of one side were shuffled, exactly.

    References:
        Hoeffding. A Combinatorial Central Limit Theorem. 1951, theorem 1.
    """
    count = len(best_N)
    a_C, b_C = (np.bincount(ids, minlength=num_classes).astype(np.float64) for ids in (best_N, labels_N))
    pairs = float(a_C @ b_C)
    variance = (pairs - float((a_C * b_C) @ (a_C + b_C)) / count + (pairs / count) ** 2) / (count - 1)
    return pairs / count**2, float(np.sqrt(max(variance, 0.0))) / count


def _guesses(best_N: Ids, labels_N: Ids, num_classes: int, at_positions: bool) -> Iterator[_Guess]:
    """The mistakes that people make, the simplest first."""
    unit = "position" if at_positions else "row"
    for shift in (1, -1, 2, -2):
        units = f"a {unit}" if abs(shift) == 1 else f"{abs(shift)} {unit}s"
        where = "later" if shift > 0 else "earlier"
        why = ", or an untrained network repeats its input" if at_positions and shift == -1 else ""
        yield _Guess(f"answers stood {units} {where}: {unit}s are shifted{why}", np.roll(best_N, shift))
    yield _Guess("the last row were the first: rows are in reverse order", best_N[::-1])
    for count in range(2, _MOST_PROCESSES + 1):
        order = np.concatenate([np.arange(rank, len(best_N), count) for rank in range(count)])
        gathered = np.empty_like(best_N)
        gathered[order] = best_N
        words = f"row i were an answer of process i mod {count}: the rows of {count} processes are one after the other"
        yield _Guess(words, gathered)
        yield _Guess(f"rows were dealt out to {count} processes: they were gathered wrongly", best_N[order])
    as_text = np.array(sorted(range(num_classes), key=str))
    for name, order in (("sorted as text (0, 1, 10, 11, 2)", as_text), ("sorted as numbers", np.argsort(as_text))):
        yield _Guess(f"its classes were {name}", _renamed(best_N, order))
    for step in (1, -1):
        words = f"its class numbers were {'higher' if step > 0 else 'lower'} by one"
        yield _Guess(words, _renamed(best_N, (np.arange(num_classes) + step) % num_classes))
    if num_classes <= _MOST_CLASSES:
        yield from _permuted(best_N, labels_N, num_classes)


def _renamed(best_N: Ids, name_C: Ids) -> Ids:
    return np.where(best_N >= 0, name_C[np.maximum(best_N, 0)], -1)


def _permuted(best_N: Ids, labels_N: Ids, num_classes: int) -> Iterator[_Guess]:
    """The permutation of class numbers that half of the rows like best, shown on the other half only."""
    known = np.flatnonzero((best_N >= 0) & (labels_N >= 0))
    half = np.random.default_rng(0).random(len(known)) < 0.5
    counts_CC = np.zeros((num_classes, num_classes))
    np.add.at(counts_CC, (best_N[known[half]], labels_N[known[half]]), 1)
    name_C = linear_sum_assignment(counts_CC + 0.5 * np.eye(num_classes), maximize=True)[1]
    moved = np.flatnonzero((name_C != np.arange(num_classes)) & (counts_CC.sum(1) > 0))
    shown_N = np.full_like(best_N, -1)
    shown_N[known[~half]] = _renamed(best_N, name_C)[known[~half]]
    own_N = np.isin(best_N, moved) & (shown_N >= 0)  # the others are right or wrong as before
    if not own_N.any() or (shown_N == labels_N)[own_N].mean() < max(0.5, 2 * (best_N == labels_N)[own_N].mean()):
        return
    examples = ", ".join(f"{number} for {name_C[number]}" for number in moved[:3].tolist())
    yield _Guess(f"{len(moved)} of its classes had other numbers ({examples}): class ids are permuted", shown_N)


def _better(guess_N: Ids, best_N: Ids, labels_N: Ids) -> float | None:
    """The accuracy of another reading, when it is better than luck makes it."""
    both_N = (guess_N >= 0) & (best_N >= 0) & (labels_N >= 0)
    if not both_N.any():
        return None
    right_B, was_B = (guess_N == labels_N)[both_N], (best_N == labels_N)[both_N]
    gained, lost = int((right_B & ~was_B).sum()), int((was_B & ~right_B).sum())
    if gained - lost <= _SIGMA * np.sqrt(gained + lost):
        return None
    return float(right_B.mean())
