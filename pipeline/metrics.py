"""What is measured of a classifier: pure functions of its logits and the labels.

By scikit-learn where it has a measure of the whole and takes no minutes for it; NLL, Brier score and calibration are
lines of our own, since its log loss clips probabilities that logits still tell apart, and it has no calibration error.

Shapes: N examples, C classes. Unlabelled rows (label -1) must be left out by the caller.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15
_RANKED_AT_ONCE = 64  # classes


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Rows whose confidence lies in one of the equal-width bins of (0, 1]."""

    count: int
    mean_confidence: float
    accuracy: float


def confidence_bins(confidence_N: npt.NDArray[np.floating]) -> npt.NDArray[np.int64]:
    """The bin of each confidence, 0 to ``ECE_BINS`` - 1."""
    bins_N = np.ceil(confidence_N * ECE_BINS).astype(np.int64)
    return np.asarray(np.clip(bins_N - 1, 0, ECE_BINS - 1), np.int64)


def reliability(confidence_N: npt.NDArray[np.floating], correct_N: npt.NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Accuracy by confidence in ``ECE_BINS`` bins (left out where empty)."""
    bins = confidence_bins(confidence_N)
    return [
        ReliabilityBin(
            count=int((bins == b).sum()),
            mean_confidence=float(confidence_N[bins == b].mean()),
            accuracy=float(correct_N[bins == b].mean()),
        )
        for b in range(ECE_BINS)
        if (bins == b).any()
    ]


def expected_calibration_error(bins: list[ReliabilityBin]) -> float:
    """Mean distance between confidence and accuracy over the bins, weighted by their counts.

    References:
        Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017, equation 3.
    """
    total = sum(b.count for b in bins)
    return sum(b.count * abs(b.mean_confidence - b.accuracy) for b in bins) / total


def accuracy_interval(accuracy: float, num_rows: int) -> tuple[float, float]:
    """95 % interval of a share of so many rows that are right (Wilson's, which stays within 0 and 1)."""
    from scipy.stats import binomtest

    found = binomtest(round(accuracy * num_rows), num_rows).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


@dataclass(frozen=True)
class Scored:
    """A classifier's logits float32 [N, C] and labels int64 [N], and what several measures need of them."""

    logits_NC: Tensor
    labels_N: Tensor

    @cached_property
    def log_prob_NC(self) -> Tensor:
        return F.log_softmax(self.logits_NC.double(), dim=-1)

    @cached_property
    def prob_NC(self) -> Tensor:
        return self.log_prob_NC.exp()

    @cached_property
    def predicted_N(self) -> Tensor:
        return self.logits_NC.argmax(dim=-1)

    @property
    def correct_N(self) -> Tensor:
        return self.predicted_N == self.labels_N


def _accuracy(scored: Scored) -> float:
    return float(scored.correct_N.double().mean())


def _top5_accuracy(scored: Scored) -> float:
    top5_N5 = scored.logits_NC.topk(min(5, scored.logits_NC.shape[1]), dim=-1).indices
    return float((top5_N5 == scored.labels_N[:, None]).any(dim=-1).double().mean())


def _balanced_accuracy(scored: Scored) -> float:
    """Mean accuracy of the classes that occur among the labels."""
    from sklearn.metrics import recall_score

    labels_N = scored.labels_N.numpy()
    return float(recall_score(labels_N, scored.predicted_N.numpy(), labels=np.unique(labels_N), average="macro"))


def _f1(scored: Scored) -> float:
    """Mean F1 of the classes that occur among the labels or the predictions."""
    from sklearn.metrics import f1_score

    return float(f1_score(scored.labels_N.numpy(), scored.predicted_N.numpy(), average="macro", zero_division=0))


def _auc(scored: Scored) -> float | None:
    """Area under the ROC curve: each class that occurs against the rest, the mean of them; of two, they are the same.

    None when no label differs from another. By the ranks of its own rows among all (Mann and Whitney's U), many classes
    at a time: scikit-learn takes them one by one, and half a minute for 10,000 rows of 1,000 classes.
    """
    from scipy.stats import rankdata

    found_F, of_N, own_F = np.unique(scored.labels_N.numpy(), return_inverse=True, return_counts=True)
    if len(found_F) < 2:
        return None
    areas = list[float]()
    for start in range(0, len(found_F), _RANKED_AT_ONCE):
        some = slice(start, start + _RANKED_AT_ONCE)
        ranks_FN = rankdata(scored.prob_NC.numpy()[:, found_F[some]].T, axis=1)
        own_ranks_F = (ranks_FN * (of_N == np.arange(len(found_F))[some, None])).sum(axis=1)
        above_F = own_ranks_F - own_F[some] * (own_F[some] + 1) / 2
        areas += list(above_F / (own_F[some] * (len(of_N) - own_F[some])))
    return float(np.mean(areas))


def _nll(scored: Scored) -> float:
    """In nats."""
    return float(F.nll_loss(scored.log_prob_NC, scored.labels_N))


def _brier(scored: Scored) -> float:
    """In [0, 2]: of two classes twice that of one of them."""
    one_hot_NC = F.one_hot(scored.labels_N, scored.logits_NC.shape[1])
    return float((scored.prob_NC - one_hot_NC).square().sum(dim=-1).mean())


def _ece(scored: Scored) -> float:
    confidence_N = scored.prob_NC.amax(dim=-1)
    return expected_calibration_error(reliability(confidence_N.numpy(), scored.correct_N.numpy()))


METRICS: dict[str, Callable[[Scored], float | None]] = {
    "accuracy": _accuracy,
    "top5_accuracy": _top5_accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "f1": _f1,
    "auc": _auc,
    "nll": _nll,
    "brier": _brier,
    "ece": _ece,
}


def measure(logits_NC: Tensor, labels_N: Tensor, names: Collection[str] = tuple(METRICS)) -> dict[str, Any]:
    """Measures by name, and ``num_rows``, of logits float32 [N, C] against labels int64 [N] without -1."""
    scored = Scored(logits_NC, labels_N)
    return {"num_rows": len(labels_N), **{name: METRICS[name](scored) for name in names}}


def measure_classes(logits_NC: Tensor, labels_N: Tensor) -> dict[int, dict[str, float]]:
    """Of each class that occurs among the labels: rows, accuracy (recall), precision, F1, and NLL in nats."""
    from sklearn.metrics import precision_recall_fscore_support

    found_F = np.unique(labels_N.numpy())
    scores = precision_recall_fscore_support(
        labels_N.numpy(), logits_NC.argmax(dim=-1).numpy(), labels=found_F, zero_division=0
    )
    nll_N = F.cross_entropy(logits_NC.double(), labels_N, reduction="none")
    return {
        int(label): {
            "num_rows": int(count),
            "accuracy": float(recall),
            "precision": float(precision),
            "f1": float(f1),
            "nll": float(nll_N[labels_N == label].mean()),
        }
        for label, precision, recall, f1, count in zip(found_F.tolist(), *scores, strict=True)
    }


def confusion(logits_NC: Tensor, labels_N: Tensor) -> list[tuple[int, int, int]]:
    """The confusion matrix without its zeros: label, predicted class, rows, in the order of the matrix."""
    from scipy.sparse import coo_array

    num_classes = logits_NC.shape[1]
    pairs = (labels_N.numpy(), logits_NC.argmax(dim=-1).numpy())
    counts = coo_array((np.ones(len(labels_N), np.int64), pairs), shape=(num_classes, num_classes)).tocsr().tocoo()
    return list(zip(counts.row.tolist(), counts.col.tolist(), counts.data.tolist(), strict=True))


def measure_agreement(student_NC: Tensor, teacher_NC: Tensor, labels_N: Tensor) -> dict[str, Any]:
    """How far a student follows its teacher at T = 1: share of equal best classes, and KL(teacher || student) in nats.

    Both accuracies, over the labelled rows, stand beside them; None without such rows.
    """
    said_N, taught_N = student_NC.argmax(dim=-1), teacher_NC.argmax(dim=-1)
    labelled_N = labels_N >= 0
    return {
        "num_rows": len(labels_N),
        "agreement": _share(said_N == taught_N),
        "kl": float(divergence(teacher_NC, student_NC).mean()),
        "student_accuracy": _share((said_N == labels_N)[labelled_N]),
        "teacher_accuracy": _share((taught_N == labels_N)[labelled_N]),
    }


def measure_where_teacher_errs(student_NC: Tensor, teacher_NC: Tensor, labels_N: Tensor) -> dict[str, Any]:
    """A student where its teacher is right, and where it is wrong: does it learn the mistakes too?

    Over the labelled rows. Where the teacher is right, to agree with it and to be right is the same. None without rows.
    """
    said_N, taught_N = student_NC.argmax(dim=-1), teacher_NC.argmax(dim=-1)
    right_N = taught_N == labels_N
    wrong_N = ~right_N & (labels_N >= 0)
    return {
        "num_teacher_wrong": int(wrong_N.sum()),
        "accuracy_teacher_right": _share((said_N == labels_N)[right_N]),
        "accuracy_teacher_wrong": _share((said_N == labels_N)[wrong_N]),
        "agreement_teacher_wrong": _share((said_N == taught_N)[wrong_N]),
    }


def divergence(teacher_NC: Tensor, student_NC: Tensor) -> Tensor:
    """KL(teacher || student) of each row at T = 1, in nats, float64 [N]."""
    log_p_NC, log_q_NC = (F.log_softmax(logits.double(), dim=-1) for logits in (teacher_NC, student_NC))
    return (log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(dim=-1)


def _share(true_N: Tensor) -> float | None:
    return float(true_N.double().mean()) if len(true_N) else None


def reliability_of(logits_NC: Tensor, labels_N: Tensor) -> list[dict[str, float]]:
    """The bins of a reliability diagram, fit for JSON."""
    confidence_N, predicted_N = F.softmax(logits_NC.double(), dim=-1).max(dim=-1)
    return fit_for_json(reliability(confidence_N.numpy(), (predicted_N == labels_N).numpy()))


def fit_for_json(bins: list[ReliabilityBin]) -> list[dict[str, float]]:
    """The bins of a reliability diagram as a result has them."""
    return [{"count": b.count, "confidence": b.mean_confidence, "accuracy": b.accuracy} for b in bins]
