"""How good the teacher's answers are, put together once every cell is written.

Shapes: N examples, R rows of a block, F folds (1 without folds), B bins of confidence. Where an example is answered at
positions, each answer counts as a row.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.answers.against_labels import label_warnings
from logitbank.pipeline.answers.guessed_labels import guess_warnings
from logitbank.pipeline.cache_teacher.sums import Spread, bins_of, cell_sums, from_note
from logitbank.pipeline.cache_teacher.teachers.claims import SEEN, UNKNOWN, Seen
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.metrics import ECE_BINS, ReliabilityBin, expected_calibration_error
from logitbank.stores import Cell, Store, Teacher

LEAK_LEVEL = 0.003  # chance that a store whose fold teachers are honest is accused
_SPREAD, _SPREAD_FREEDOM = 0.25, 4  # of honest teachers' log NLL: what is assumed, and how many folds that is worth
_EXPECTED_ERRORS = 10  # of a fold, below which luck alone explains a tiny NLL


def summarise(
    store: Store, name: str, seen: Seen, note: Callable[[Cell], bytes | None] | None = None
) -> dict[str, Any]:
    """Accuracy, NLL (nats) and calibration over all views of all labelled rows; per fold when cross-fitted.

    The same numbers, whoever wrote which cell and in which order: a resumed pass gives those of an undisturbed one.

    Args:
        store: Every cell of the teacher is written.
        name: The teacher.
        seen: Whether the teacher that answers a row was trained on it, int8 [N].
        note: Gives what `cell_sums` found in a cell when it was written; a cell without it is read.

    Returns:
        ``kind`` says what the numbers are worth: "out-of-fold", "seen" (the teacher was trained on all these rows),
        "held out" (on none of them), "partly seen" or "training rows unknown"; ``seen`` has the counts.
    """
    teacher = store.teacher(name)
    figures = _Figures(store, teacher, seen, note or (lambda _: None))
    cross_fitted = teacher.row_folds is not None
    counts = figures.counts()
    summary: dict[str, Any] = {
        "kind": "out-of-fold" if cross_fitted else _kind(counts),
        "seen": counts,
        **figures.measures(None),
    }
    if cross_fitted:
        summary["per_fold"] = [figures.measures(fold) for fold in range(figures.num_folds)]
        unknown = counts["num_unknown"]  # else it is known, and nothing has to be guessed
        summary["leaks"] = suspected_leaks(summary["per_fold"]) if unknown else []
    summary["warnings"] = figures.served_warnings() + label_warnings(store, teacher) + guess_warnings(teacher)
    return summary


def _kind(counts: Mapping[str, int]) -> str:
    if counts["num_unknown"]:
        return "training rows unknown"
    if counts["num_seen"] == counts["num_rows"]:
        return "seen"
    return "partly seen" if counts["num_seen"] else "held out"


def suspected_leaks(per_fold: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fold teachers that are better on their own fold than the spread of the others allows: they may have seen it.

    Teachers differ, by their seeds, by their rows and by how hard their folds are. So a fold's log NLL is compared with
    those of the others by a t test (an externally studentised residual). Its variance is the spread of the others,
    moderated, since they are few, by an assumed spread that is worth ``_SPREAD_FREEDOM`` folds; or what the number of
    rows alone explains where that is more. The level is ``LEAK_LEVEL`` for all folds together. It cannot see a leak
    that is the same in several folds, nor one by which a teacher hardly profits.

    Measured on digits, with labels as they are and a tenth of them changed, 2, 3, 5 and 10 folds: of 928 sets of honest
    estimators (naive Bayes, tree, 10 neighbours, logistic regression, forest, perceptron; log NLL spread .03 to .53)
    none was accused; a fold whose tree had learnt it was found in 240 of 240 sets, a forest that had learnt changed
    labels in 30 of 40, naive Bayes and logistic regression never: they answer seen rows as they answer others. Sets
    whose log NLL spreads by .9 (accuracies from .70 to .99) are accused in 5 to 10 % of cases.

    Args:
        per_fold: ``num_rows``, ``accuracy``, ``nll`` and ``nll_error`` (its standard error over rows) of each.

    Returns:
        For each such fold ``fold``, ``accuracy``, ``others`` (the accuracy of the other folds), ``nll``,
        ``others_nll``, and ``p``, the chance of so good a fold by luck.

    References:
        Cook, Weisberg. Residuals and Influence in Regression. 1982, section 2.2.2 (the residual).
        Smyth. Linear Models and Empirical Bayes Methods. 2004, section 4 (the moderated variance).
    """
    from scipy.stats import t as student_t

    tested = [(fold, said) for fold, said in enumerate(per_fold) if said["num_rows"] and said["nll"] > 0]
    leaks = []
    for fold, said in tested:
        others = [other for number, other in tested if number != fold]
        if not others:
            continue
        rows = np.array([other["num_rows"] for other in others], np.float64)
        accuracy = float(rows @ [other["accuracy"] for other in others] / rows.sum())
        if said["num_rows"] * (1 - accuracy) < _EXPECTED_ERRORS:
            continue
        log_nll = np.log([other["nll"] for other in others])
        sampling = np.mean([(other["nll_error"] / other["nll"]) ** 2 for other in others])
        freedom = _SPREAD_FREEDOM + len(others) - 1
        squares = _SPREAD_FREEDOM * _SPREAD**2 + float(((log_nll - log_nll.mean()) ** 2).sum())
        variance = max(squares / freedom, float(sampling)) * (1 + 1 / len(others))
        p = float(student_t.sf((log_nll.mean() - math.log(said["nll"])) / math.sqrt(variance), freedom))
        if p < LEAK_LEVEL / len(tested):
            leaks.append(
                {
                    "fold": fold,
                    "accuracy": said["accuracy"],
                    "others": accuracy,
                    "nll": said["nll"],
                    "others_nll": float(np.exp(log_nll.mean())),
                    "p": float(f"{p:.2g}"),
                }
            )
    return leaks


def leak_warning(summary: dict[str, Any]) -> str | None:
    """One line about the folds that may have leaked, or None."""
    leaks = summary.get("leaks")
    if not leaks:
        return None
    folds = "; ".join(
        f"fold {leak['fold']}: NLL {leak['nll']:.4f}, the others {leak['others_nll']:.4f}, accuracy"
        f" {leak['accuracy']:.4f} and {leak['others']:.4f} (by luck: {leak['p']:.1g})"
        for leak in leaks
    )
    return (
        f"a fold teacher may have been trained on its own fold, it is too good on it: {folds}; check its training rows"
    )


class _Figures:
    """What the cells of a teacher add up to: sums by fold, of one fold where there are none."""

    def __init__(self, store: Store, teacher: Teacher, seen: Seen, note: Callable[[Cell], bytes | None]) -> None:
        folds = teacher.row_folds
        self._store, self._teacher, self._note = store, teacher, note
        self._encoding = Encoding.from_attributes(teacher.encoding)
        self._folds_N = np.zeros(store.num_examples, np.uint8) if folds is None else folds
        self.num_folds = int(self._folds_N.max()) + 1
        self._nll = Spread(self.num_folds)
        self._seen_F3 = np.zeros((self.num_folds, 3), np.int64)  # labelled rows by what is known of their training
        self._served_3 = np.zeros(3, np.int64)
        self._sums_FB3 = np.zeros((self.num_folds, ECE_BINS, 3))
        for block in range(teacher.num_blocks):
            self._add_rows(block, seen[teacher.rows(block)])
        for view in range(store.num_views):
            for block in range(teacher.num_blocks):
                self._sums_FB3 += self._sums(Cell(view, block))

    def counts(self) -> dict[str, int]:
        """Of the labelled rows, or of those that are served where none is labelled."""
        labelled_3 = self._seen_F3.sum(axis=0)
        return _counts(labelled_3 if labelled_3.any() else self._served_3)

    def served_warnings(self) -> list[str]:
        """A line where examples have no answer; of positions, the ends of short sequences have none, as a rule."""
        num_served, number = int(self._served_3.sum()), self._store.num_examples
        if self._store.positions is not None or num_served == number:
            return []
        return [f"{number - num_served} of the {number} rows have no answer: students learn nothing of it about them"]

    def measures(self, fold: int | None) -> dict[str, Any]:
        """Of one fold, or of all together."""
        count, nll, spread = self._nll.of_all() if fold is None else self._nll.of(fold)
        if not count:
            return {"num_rows": 0}
        sums_B3 = self._sums_FB3.sum(axis=0) if fold is None else self._sums_FB3[fold]
        bins = bins_of(sums_B3)
        total, right, _ = sums_B3.sum(axis=0).tolist()
        return {
            **_counts(self._seen_F3.sum(axis=0) if fold is None else self._seen_F3[fold]),
            "accuracy": right / total,
            "nll": nll,
            "nll_error": spread / math.sqrt(count),
            "ece": expected_calibration_error(bins),
            "reliability": [_bin(b) for b in bins],
        }

    def _add_rows(self, block: int, seen_R: Seen) -> None:
        """NLL of a block's rows, whose views are one example, and whether the teacher was trained on them."""
        rows = self._teacher.rows(block)
        each = self._store.positions or 1
        labels_R = self._store.labels[rows].reshape(-1)
        folds_R, seen_R = np.repeat(self._folds_N[rows].astype(np.int64), each), np.repeat(seen_R, each)
        served_R, log_prob_R = np.ones(len(labels_R), np.bool_), np.zeros(len(labels_R))
        names = ["label_log_prob", *({"mask"} & set(self._teacher.arrays))]
        for view in range(self._store.num_views):
            arrays = self._teacher.block(view, block, names)
            log_prob_R += arrays["label_log_prob"].reshape(-1)
            if "mask" in arrays:
                served_R &= arrays["mask"].reshape(-1)
        counted_R = served_R & (labels_R >= 0)
        folds_R = folds_R[counted_R]
        self._nll.add(-log_prob_R[counted_R] / self._store.num_views, folds_R)
        known_R = np.select([seen_R == SEEN, seen_R == UNKNOWN], [1, 2], 0)
        np.add.at(self._seen_F3, (folds_R, known_R[counted_R]), 1)
        self._served_3 += np.bincount(known_R[served_R], minlength=3)

    def _sums(self, cell: Cell) -> npt.NDArray[np.float64]:
        """Those that were left when the cell was written, or made again of its rows."""
        noted = from_note(self._note(cell), self.num_folds)
        if noted is not None:
            return noted
        rows = self._teacher.rows(cell.block)
        arrays = self._teacher.answers(*cell)
        return cell_sums(arrays, self._encoding, self._store.labels[rows], self._folds_N[rows], self.num_folds)


def _counts(of_3: npt.NDArray[np.int64]) -> dict[str, int]:
    """Counts of rows that the teacher was not trained on, that it was, and of which that is unknown."""
    _, num_seen, num_unknown = of_3.tolist()
    return {"num_rows": int(of_3.sum()), "num_seen": num_seen, "num_unknown": num_unknown}


def _bin(b: ReliabilityBin) -> dict[str, float]:
    return {"count": b.count, "confidence": round(b.mean_confidence, 6), "accuracy": round(b.accuracy, 6)}
