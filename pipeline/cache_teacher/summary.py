"""How good the teacher's answers are, computed from the store itself once every block is written.

Shapes: N examples, V views, C classes.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.answers.against_labels import label_warnings
from logitbank.pipeline.cache_teacher.teachers.answering import held_rows
from logitbank.pipeline.cache_teacher.teachers.claims import SEEN, UNKNOWN, Seen
from logitbank.pipeline.encoding import Encoding, decode
from logitbank.pipeline.metrics import ReliabilityBin, expected_calibration_error, reliability
from logitbank.stores import Store

LEAK_LEVEL = 0.003  # chance that a store whose fold teachers are honest is accused
_SPREAD, _SPREAD_FREEDOM = 0.25, 4  # of honest teachers' log NLL: what is assumed, and how many folds that is worth
_EXPECTED_ERRORS = 10  # of a fold, below which luck alone explains a tiny NLL


def summarise(store: Store, name: str, seen: Seen) -> dict[str, Any]:
    """Accuracy, NLL (nats) and calibration over all views of all labelled rows; per fold when cross-fitted.

    Because it reads what was written, a resumed pass gives the same numbers as an undisturbed one.

    Args:
        store: Every cell of the teacher is written.
        name: The teacher.
        seen: Whether the teacher that answers a row was trained on it, int8 [N].

    Returns:
        ``kind`` says what the numbers are worth: "out-of-fold", "seen" (the teacher was trained on all these rows),
        "held out" (on none of them), "partly seen" or "training rows unknown"; ``seen`` has the counts.
    """
    answered = _Answered(store, name, seen)
    folds = store.teacher(name).row_folds
    measured = answered.labelled if answered.labelled.any() else answered.served
    kind = "out-of-fold" if folds is not None else _kind(seen[measured])
    summary: dict[str, Any] = {"kind": kind, "seen": _counts(seen[measured]), **answered.measures(slice(None))}
    if folds is not None:
        summary["per_fold"] = [answered.measures(folds == fold) for fold in range(int(folds.max()) + 1)]
        unknown = (seen[measured] == UNKNOWN).any()  # else it is known, and nothing has to be guessed
        summary["leaks"] = suspected_leaks(summary["per_fold"]) if unknown else []
    summary["warnings"] = label_warnings(store, store.teacher(name))
    return summary


def _kind(seen: Seen) -> str:
    if (seen == UNKNOWN).any():
        return "training rows unknown"
    if (seen == SEEN).all():
        return "seen"
    return "partly seen" if (seen == SEEN).any() else "held out"


def _counts(seen: Seen) -> dict[str, int]:
    return {
        "num_rows": len(seen),
        "num_seen": int((seen == SEEN).sum()),
        "num_unknown": int((seen == UNKNOWN).sum()),
    }


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


class _Answered:
    """Confidence, correctness and label log-probability of every view and row, [V, N]."""

    def __init__(self, store: Store, name: str, seen: Seen) -> None:
        self.seen = seen
        teacher = store.teacher(name)
        encoding = Encoding.from_attributes(teacher.encoding)
        shape, step = (store.num_views, store.num_examples), held_rows(encoding.num_classes)
        self.labelled = np.asarray(store.labels) >= 0
        self.served = np.ones(store.num_examples, np.bool_)
        self.confidence = np.empty(shape, np.float32)
        self.correct = np.empty(shape, np.bool_)
        self.label_log_prob = np.empty(shape, np.float32)
        for view in range(store.num_views):
            for block in range(teacher.num_blocks):
                start = block * teacher.block_rows
                rows = slice(start, min(start + teacher.block_rows, store.num_examples))
                arrays = {key: torch.from_numpy(value) for key, value in teacher.answers(view, block).items()}
                labels = torch.from_numpy(np.asarray(store.labels[rows], dtype=np.int64))
                mask = arrays.pop("mask", None)
                if mask is not None:
                    self.labelled[rows] &= mask.numpy()
                    self.served[rows] &= mask.numpy()
                self.label_log_prob[view, rows] = arrays["label_log_prob"].float().numpy()
                for start in range(rows.start, rows.stop, step):
                    some = slice(start, min(start + step, rows.stop))
                    here = slice(some.start - rows.start, some.stop - rows.start)
                    few = {key: array[here] for key, array in arrays.items()}
                    # the best class and its probability do not depend on how the tail is shaped
                    best = decode(few, labels[here], encoding, tail="uniform").log_softmax(dim=-1).max(dim=-1)
                    self.confidence[view, some] = best.values.exp().numpy()
                    self.correct[view, some] = (best.indices == labels[here]).numpy()

    def measures(self, rows: slice | npt.NDArray[np.bool_]) -> dict[str, Any]:
        chosen = np.zeros(len(self.labelled), np.bool_)
        chosen[rows] = True
        chosen &= self.labelled
        if not chosen.any():
            return {"num_rows": 0}
        confidence, correct = self.confidence[:, chosen].ravel(), self.correct[:, chosen].ravel()
        bins = reliability(confidence, correct)
        nll_N = -self.label_log_prob[:, chosen].mean(axis=0, dtype=np.float64)  # the views of a row are one example
        return {
            "num_rows": int(chosen.sum()),
            "num_seen": int((self.seen[chosen] == SEEN).sum()),
            "num_unknown": int((self.seen[chosen] == UNKNOWN).sum()),
            "accuracy": float(correct.mean()),
            "nll": float(-self.label_log_prob[:, chosen].mean(dtype=np.float64)),
            "nll_error": float(nll_N.std() / math.sqrt(len(nll_N))),
            "ece": expected_calibration_error(bins),
            "reliability": [_bin(b) for b in bins],
        }


def _bin(b: ReliabilityBin) -> dict[str, float]:
    return {"count": b.count, "confidence": round(b.mean_confidence, 6), "accuracy": round(b.accuracy, 6)}
