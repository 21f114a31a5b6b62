"""What a picture of a teacher's answers shows, read from the store's rows and not from what it says of itself.

Shapes: R sampled rows, N examples, C classes. Where examples are answered at positions, each answer is a row.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.stores import Store, Teacher

_MAX_BLOCKS, _MAX_ROWS = 32, 32_000
_TEMPERATURE = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3})?")


@dataclass(frozen=True, kw_only=True)
class AnswerFigures:
    """Figures of one teacher's answers to the first view.

    Attributes:
        name: The teacher's name.
        fidelity: KL T^2 in nats by temperature, as measured when the store was made.
        outside: The teacher's mean probability outside the classes kept exactly, by temperature.
        confidence_R: Probability of the best class at T = 1, of a sample of rows.
        correct_R: Whether it is the label; None in a store without labels.
        class_accuracy_C: By label, NaN where a class has no row; None without labels.
        class_names: In label order, or empty.
        fold_accuracy: (accuracy, rows) of each fold; empty when not cross-fitted.
    """

    name: str
    fidelity: dict[float, float]
    outside: dict[float, float]
    confidence_R: npt.NDArray[np.float32]
    correct_R: npt.NDArray[np.bool_] | None
    class_accuracy_C: npt.NDArray[np.float64] | None
    class_names: list[str]
    fold_accuracy: list[tuple[float, int]]


def answer_figures(store: Store, teacher: Teacher) -> AnswerFigures:
    """Reads the ranks of all labels, and decodes a sample of rows evenly spread over the dataset."""
    labels_N = np.asarray(store.labels)
    # the best class and its probability do not depend on how the tail is shaped
    decoder = TeacherRows(store, teacher, tail="uniform")
    answered_N = decoder.answered(0) & (labels_N >= 0)
    right_N = teacher.slab(0, ["label_rank"])["label_rank"] == 1
    label_R, confidence_R, best_R = _sampled(decoder)
    by_class = by_fold = None
    if answered_N.any():
        by_class = _mean_by(labels_N[answered_N], right_N[answered_N], store.num_classes)[0]
        if teacher.row_folds is not None:
            folds = np.asarray(teacher.row_folds)[np.nonzero(answered_N)[0]].astype(np.int64)
            by_fold = _mean_by(folds, right_N[answered_N], int(folds.max()) + 1)
    said = {float(key): value for key, value in teacher.fidelity.items() if _is_number(key, value)}
    outside = {
        float(key): float(teacher.fidelity[f"tail_mass_{key}"])
        for key in teacher.fidelity
        if _is_number(key, teacher.fidelity.get(f"tail_mass_{key}"))
    }
    names = store.dataset.get("class_names")
    return AnswerFigures(
        name=teacher.name,
        fidelity=dict(sorted(said.items())),
        outside=outside if decoder.encoding.has_tail else {},
        confidence_R=confidence_R,
        correct_R=None if by_class is None else best_R == label_R,
        class_accuracy_C=by_class,
        class_names=[str(name) for name in names]
        if isinstance(names, list) and len(names) == store.num_classes
        else [],
        fold_accuracy=[] if by_fold is None else [(float(a), int(n)) for a, n in zip(*by_fold, strict=True) if n],
    )


def _sampled(
    decoder: TeacherRows,
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """Labels of rows, their best class's probability and their best class; of labelled rows where there are any."""
    teacher, labels_N = decoder.teacher, decoder.labels_N.numpy()
    wanted_N = decoder.answered(0) & ((labels_N >= 0) | ~(labels_N >= 0).any())
    blocks = np.unique(np.linspace(0, teacher.num_blocks - 1, min(_MAX_BLOCKS, teacher.num_blocks)).astype(int))
    parts = []
    for block in blocks.tolist():
        start = teacher.rows(block).start
        wanted_B = wanted_N[teacher.rows(block)].reshape(teacher.rows(block).stop - start, -1)
        here = start + np.flatnonzero(wanted_B.any(axis=1))
        here = here[:: max(1, -(-len(here) * wanted_B.shape[1] * len(blocks) // _MAX_ROWS))]
        arrays = teacher.answers(0, block, decoder.names)
        own = {name: torch.from_numpy(array[here - start]) for name, array in arrays.items()}
        decoded = decoder.decode(own, torch.from_numpy(here))
        best = decoded.log_softmax(-1).max(-1)
        sure = best.values.exp().nan_to_num(0.0).clamp(0, 1)  # a stranger's numbers may decode to none
        at = wanted_N[here]
        parts.append((labels_N[here][at], sure.numpy()[at], best.indices.numpy()[at]))
    label_R, confidence_R, best_R = (np.concatenate(column) for column in zip(*parts, strict=True))
    return label_R, confidence_R, best_R


def _mean_by(
    groups: npt.NDArray[np.integer], right: npt.NDArray[np.bool_], num_groups: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Mean and count of each group; NaN and 0 where it has no row."""
    counts = np.bincount(groups, minlength=num_groups)
    sums = np.bincount(groups, weights=right, minlength=num_groups)
    return np.divide(sums, counts, out=np.full(num_groups, np.nan), where=counts > 0), counts


def _is_number(key: str, value: object) -> bool:
    return _TEMPERATURE.fullmatch(key) is not None and isinstance(value, int | float) and 0 <= value < np.inf
