"""What is measured of a classifier: pure functions of its log-probabilities and the labels.

Shapes: N examples, C classes. Unlabelled rows (label -1) must be left out by the caller.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """Rows whose confidence lies in one of the equal-width bins of (0, 1]."""

    count: int
    mean_confidence: float
    accuracy: float


def reliability(confidence_N: npt.NDArray[np.floating], correct_N: npt.NDArray[np.bool_]) -> list[ReliabilityBin]:
    """Accuracy by confidence in ``ECE_BINS`` bins (left out where empty)."""
    bins = np.clip(np.ceil(confidence_N * ECE_BINS).astype(int) - 1, 0, ECE_BINS - 1)
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


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """Measures over n labelled rows: NLL in nats, the Brier score in [0, 2], all others in [0, 1]."""

    num_rows: int
    accuracy: float
    top5_accuracy: float
    nll: float
    brier: float
    ece: float

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


def measure(logits_NC: Tensor, labels_N: Tensor) -> Metrics:
    """All measures of a classifier's logits, float32 [N, C], against labels int64 [N] without -1."""
    log_prob_NC = F.log_softmax(logits_NC.double(), dim=-1)
    prob_NC = log_prob_NC.exp()
    confidence_N, predicted_N = prob_NC.max(dim=-1)
    correct_N = predicted_N == labels_N
    top5_N5 = logits_NC.topk(min(5, logits_NC.shape[1]), dim=-1).indices
    one_hot_NC = F.one_hot(labels_N, logits_NC.shape[1])
    return Metrics(
        num_rows=len(labels_N),
        accuracy=float(correct_N.double().mean()),
        top5_accuracy=float((top5_N5 == labels_N[:, None]).any(dim=-1).double().mean()),
        nll=float(F.nll_loss(log_prob_NC, labels_N)),
        brier=float((prob_NC - one_hot_NC).square().sum(dim=-1).mean()),
        ece=expected_calibration_error(reliability(confidence_N.numpy(), correct_N.numpy())),
    )


def measure_classes(logits_NC: Tensor, labels_N: Tensor) -> dict[int, dict[str, float]]:
    """Of each class that occurs among the labels: rows, accuracy (recall), and NLL in nats."""
    right_N = logits_NC.argmax(dim=-1) == labels_N
    nll_N = F.cross_entropy(logits_NC.double(), labels_N, reduction="none")
    return {
        label: {
            "num_rows": int(own_N.sum()),
            "accuracy": float(right_N[own_N].double().mean()),
            "nll": float(nll_N[own_N].mean()),
        }
        for label in sorted(set(labels_N.tolist()))
        for own_N in [labels_N == label]
    }


def measure_agreement(student_NC: Tensor, teacher_NC: Tensor, labels_N: Tensor) -> dict[str, Any]:
    """How far a student follows its teacher at T = 1: share of equal best classes, and KL(teacher || student) in nats.

    Both accuracies, over the labelled rows, stand beside them; None without such rows.
    """
    log_p_NC, log_q_NC = (F.log_softmax(logits.double(), dim=-1) for logits in (teacher_NC, student_NC))
    labelled_N = labels_N >= 0

    def accuracy(logits_NC: Tensor) -> float | None:
        right_N = (logits_NC.argmax(dim=-1) == labels_N)[labelled_N]
        return float(right_N.double().mean()) if len(right_N) else None

    return {
        "num_rows": len(labels_N),
        "agreement": float((student_NC.argmax(dim=-1) == teacher_NC.argmax(dim=-1)).double().mean()),
        "kl": float((log_p_NC.exp() * (log_p_NC - log_q_NC)).sum(dim=-1).mean()),
        "student_accuracy": accuracy(student_NC),
        "teacher_accuracy": accuracy(teacher_NC),
    }


def reliability_of(logits_NC: Tensor, labels_N: Tensor) -> list[dict[str, float]]:
    """The bins of a reliability diagram, fit for JSON."""
    confidence_N, predicted_N = F.softmax(logits_NC.double(), dim=-1).max(dim=-1)
    bins = reliability(confidence_N.numpy(), (predicted_N == labels_N).numpy())
    return [{"count": b.count, "confidence": b.mean_confidence, "accuracy": b.accuracy} for b in bins]
