"""The measures of a student that answers at many positions, added up part by part: no block of all logits exists.

Shapes: N examples, L positions, P answers of a part, C classes.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit import Training
from logitbank.pipeline.metrics import (
    ECE_BINS,
    METRICS,
    ReliabilityBin,
    confidence_bins,
    expected_calibration_error,
    measure,
    measure_agreement,
)
from logitbank.pipeline.views import Views

Rows = npt.NDArray[np.int64]
Ask = Callable[..., Tensor]
MEASURES = ("accuracy", "top5_accuracy", "nll", "brier", "ece")
"""Those of a classifier that are means over answers; ``perplexity``, exp(nll), stands beside them."""
HELD_BYTES = 2**26
_SAMPLE = 50_000  # answers
_AT_ONCE = 2**21  # numbers of a part that is measured in float64


def check_training(training: Training, split: Split) -> None:
    """Raises ValueError for settings that make no sense with tokens, or with answers at many positions."""
    if training.mixup and split.is_tokens:
        raise ValueError(f"--mixup does nothing here, because {split.spec} holds tokens; leave it out")
    if split.positions is not None and training.selected_by in set(METRICS) - set(MEASURES):
        raise ValueError(
            f"--select {training.select} is measured of one answer an example, {split.spec} has {split.positions};"
            f" select by {', '.join(MEASURES)}"
        )


class Means:
    """Weighted means by name, of parts that come one after the other."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._weights: dict[str, int] = {}

    def add(self, values: Mapping[str, float | None], weight: int, weights: Mapping[str, int] | None = None) -> None:
        """Means of one part, over ``weight`` answers or those that ``weights`` says of a name; None has none."""
        for name, value in values.items():
            if value is not None:
                own = weight if weights is None else weights.get(name, weight)
                self._sums[name] = self._sums.get(name, 0.0) + own * value
                self._weights[name] = self._weights.get(name, 0) + own

    def found(self, names: Iterable[str]) -> dict[str, float | None]:
        """The means over all parts; None where no part had one."""
        return {name: self._sums[name] / self._weights[name] if self._weights.get(name) else None for name in names}


class Calibration:
    """The bins of a reliability diagram, of parts that come one after the other."""

    def __init__(self) -> None:
        self._sums = np.zeros((3, ECE_BINS))  # answers, confidence, right ones

    def add(self, logits_PC: Tensor, labels_P: Tensor) -> None:
        confidence_P, best_P = torch.softmax(logits_PC.double(), dim=-1).max(dim=-1)
        bins_P, right_P = confidence_bins(confidence_P.numpy()), (best_P == labels_P).double().numpy()
        for row, weights_P in zip(self._sums, (None, confidence_P.numpy(), right_P), strict=True):
            row += np.bincount(bins_P, weights_P, minlength=ECE_BINS)

    def bins(self) -> list[ReliabilityBin]:
        """Those that have answers."""
        columns = self._sums[:, self._sums[0] > 0].T.tolist()
        return [
            ReliabilityBin(count=int(count), mean_confidence=confidence / count, accuracy=right / count)
            for count, confidence, right in columns
        ]


def measure_labelled(
    ask: Ask, model: nn.Module, split: Split, rows: Rows | None, names: Collection[str] = MEASURES
) -> tuple[dict[str, Any], list[ReliabilityBin]]:
    """Measures over the labelled positions of some examples as they are (no view), and their calibration.

    Args:
        ask: Gives a student's logits, as ``predict``.
        model: The student.
        split: The examples.
        rows: Which (default: all).
        names: Of ``MEASURES``.

    Returns:
        ``num_rows``, the number of answers, ``perplexity`` and the measures; and the bins that ``ece`` is made of.
    """
    means, calibration, num_answers = Means(), Calibration(), 0
    averaged = [name for name in dict.fromkeys((*names, "nll")) if name != "ece"]
    chosen = np.arange(len(split)) if rows is None else rows
    for part in _parts(chosen[(split.labels[chosen] >= 0).any(axis=1)], split):
        labels_P = torch.from_numpy(split.labels[part]).flatten()
        logits_PC = ask(model, split, rows=part).flatten(0, 1)[labels_P >= 0]
        for logits, labels in _pieces(logits_PC, labels_P[labels_P >= 0]):
            means.add(measure(logits, labels, averaged), len(labels))
            if "ece" in names:
                calibration.add(logits, labels)
            num_answers += len(labels)
    if not num_answers:
        raise ValueError(f"{split.spec}: no labelled position to evaluate on")
    found: dict[str, Any] = means.found(averaged)
    found |= {"ece": expected_calibration_error(calibration.bins())} if "ece" in names else {}
    perplexity = {"perplexity": math.exp(found["nll"]) if found["nll"] < 700 else None}
    return {"num_rows": num_answers, **found, **perplexity}, calibration.bins()


def measure_beside_teacher(
    ask: Ask, model: nn.Module, split: Split, answers: Answers, rows: Rows, views: Views
) -> dict[str, Any]:
    """What ``measure_agreement`` has, over the positions of some examples that a teacher serves in the first view."""
    names = ("agreement", "kl", "student_accuracy", "teacher_accuracy")
    means, num_answers = Means(), 0
    for part in _parts(rows, split):
        student_PC = ask(model, split, rows=part, views=views).flatten(0, 1)
        answer = answers.of(torch.from_numpy(part), 0)
        served_P = answer.served()
        served_P = torch.ones(len(student_PC), dtype=torch.bool) if served_P is None else served_P.cpu()
        teacher_PC = answer.logits(torch.zeros_like(student_PC), 1.0).cpu()
        labels_P = torch.from_numpy(split.labels[part]).flatten()
        every = [student_PC, teacher_PC, labels_P]
        for student, teacher, labels in _pieces(
            *(each if served_P is None else each[served_P.cpu()] for each in every)
        ):
            found = measure_agreement(student, teacher, labels)
            labelled = int((labels >= 0).sum())
            means.add({name: found[name] for name in names}, len(labels), dict.fromkeys(names[2:], labelled))
            num_answers += len(labels)
    return {"num_rows": num_answers, **means.found(names)} if num_answers else {}


def sampled(split: Split) -> Rows:
    """Some examples, evenly spread, of enough positions to measure by."""
    assert split.positions is not None
    num = min(len(split), max(1, _SAMPLE // split.positions))
    return np.arange(num) * len(split) // num


def _parts(rows: Rows, split: Split) -> Iterator[Rows]:
    """Some examples at a time, whose logits are ``HELD_BYTES``, or one example's."""
    assert split.positions is not None
    step = max(1, HELD_BYTES // (4 * split.positions * split.num_classes))
    return (rows[start : start + step] for start in range(0, len(rows), step))


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Answers [P, C] and what stands beside them, few enough to be measured in float64."""
    step = max(1, _AT_ONCE // tensors[0].shape[1])
    return (tuple(each[start : start + step] for each in tensors) for start in range(0, len(tensors[0]), step))
