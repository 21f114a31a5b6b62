"""How good the teacher's answers are, computed from the store itself once every block is written.

Shapes: N examples, V views, C classes.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from pipeline.encoding import Encoding, decode
from pipeline.metrics import ReliabilityBin, expected_calibration_error, reliability
from stores import Store

LEAK_SIGMA, LEAK_MARGIN = 5.0, 0.01


def summarise(store: Store, name: str, training_fingerprint: str | None) -> dict[str, Any]:
    """Accuracy, NLL (nats) and calibration over all views of all labelled rows; per fold when cross-fitted.

    Because it reads what was written, a resumed pass gives the same numbers as an undisturbed one.

    Returns:
        ``kind`` says what the numbers are worth: "out-of-fold", "seen" (the teacher was trained on these very rows) or
        "training rows unknown".
    """
    answered = _Answered(store, name)
    folds = store.folds
    kind = "training rows unknown"
    if folds is not None:
        kind = "out-of-fold"
    elif training_fingerprint is not None:
        kind = "seen" if training_fingerprint == store.dataset["fingerprint"] else "held out"
    summary: dict[str, Any] = {"kind": kind, **answered.measures(slice(None))}
    if folds is not None:
        summary["per_fold"] = [answered.measures(folds == fold) for fold in range(int(folds.max()) + 1)]
        summary["leaks"] = suspected_leaks(summary["per_fold"])
    return summary


def suspected_leaks(per_fold: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fold teachers that are better on their own fold than luck allows: they may have seen it.

    A fold is compared with all others together: one-sided binomial test of equal accuracy at ``LEAK_SIGMA`` standard
    deviations, and at least ``LEAK_MARGIN`` better, since teachers differ by their seeds too. It cannot see a leak that
    is the same in every fold.

    Returns:
        For each such fold ``fold``, ``accuracy``, ``others`` (the accuracy of the other folds) and ``sigma``.
    """
    measured = [(fold, said) for fold, said in enumerate(per_fold) if said["num_rows"]]
    rows, correct = (
        sum(said["num_rows"] for _, said in measured),
        sum(said["num_rows"] * said["accuracy"] for _, said in measured),
    )
    leaks = []
    for fold, said in measured:
        num_others = rows - said["num_rows"]
        if not num_others:
            continue
        others = (correct - said["num_rows"] * said["accuracy"]) / num_others
        variance = max(others * (1 - others), 1 / rows) * (1 / said["num_rows"] + 1 / num_others)
        sigma = (said["accuracy"] - others) / math.sqrt(variance)
        if sigma > LEAK_SIGMA and said["accuracy"] - others > LEAK_MARGIN:
            leaks.append({"fold": fold, "accuracy": said["accuracy"], "others": others, "sigma": round(sigma, 1)})
    return leaks


def leak_warning(summary: dict[str, Any]) -> str | None:
    """One line about the folds that may have leaked, or None."""
    leaks = summary.get("leaks")
    if not leaks:
        return None
    folds = "; ".join(
        f"fold {leak['fold']} {leak['accuracy']:.4f}, the others {leak['others']:.4f} ({leak['sigma']:g} sigma)"
        for leak in leaks
    )
    return (
        f"a fold teacher may have been trained on its own fold, it is too good on it: {folds}; check its training rows"
    )


class _Answered:
    """Confidence, correctness and label log-probability of every view and row, [V, N]."""

    def __init__(self, store: Store, name: str) -> None:
        teacher = store.teacher(name)
        encoding = Encoding.from_attributes(teacher.encoding)
        shape = (store.num_views, store.num_examples)
        self.labelled = np.asarray(store.labels) >= 0
        self.confidence = np.empty(shape, np.float32)
        self.correct = np.empty(shape, np.bool_)
        self.label_log_prob = np.empty(shape, np.float32)
        for view in range(store.num_views):
            for block in range(teacher.num_blocks):
                start = block * teacher.block_rows
                rows = slice(start, min(start + teacher.block_rows, store.num_examples))
                arrays = {key: torch.from_numpy(value) for key, value in teacher.block(view, block).items()}
                labels = torch.from_numpy(np.asarray(store.labels[rows], dtype=np.int64))
                mask = arrays.pop("mask", None)
                if mask is not None:
                    self.labelled[rows] &= mask.numpy()
                # the best class and its probability do not depend on how the tail is shaped
                best = decode(arrays, labels, encoding, tail="uniform").log_softmax(dim=-1).max(dim=-1)
                self.confidence[view, rows] = best.values.exp().numpy()
                self.correct[view, rows] = (best.indices == labels).numpy()
                self.label_log_prob[view, rows] = arrays["label_log_prob"].float().numpy()

    def measures(self, rows: slice | npt.NDArray[np.bool_]) -> dict[str, Any]:
        chosen = np.zeros(len(self.labelled), np.bool_)
        chosen[rows] = True
        chosen &= self.labelled
        if not chosen.any():
            return {"num_rows": 0}
        confidence, correct = self.confidence[:, chosen].ravel(), self.correct[:, chosen].ravel()
        bins = reliability(confidence, correct)
        return {
            "num_rows": int(chosen.sum()),
            "accuracy": float(correct.mean()),
            "nll": float(-self.label_log_prob[:, chosen].mean(dtype=np.float64)),
            "ece": expected_calibration_error(bins),
            "reliability": [_bin(b) for b in bins],
        }


def _bin(b: ReliabilityBin) -> dict[str, float]:
    return {"count": b.count, "confidence": round(b.mean_confidence, 6), "accuracy": round(b.accuracy, 6)}
