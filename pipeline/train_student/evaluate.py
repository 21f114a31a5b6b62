"""What is measured of a student: on validation rows cut from the training data, against its teacher, on test data.

Where examples are answered at L positions, the measures are over positions (``over_positions``), and what is said of
each class is left out.

Shapes: N examples, C classes.
"""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.metrics import (
    confusion,
    fit_for_json,
    measure,
    measure_agreement,
    measure_classes,
    measure_where_teacher_errs,
    reliability_of,
)
from logitbank.pipeline.train_student.over_positions import (
    Ask,
    measure_beside_teacher,
    measure_labelled,
    sampled,
)
from logitbank.pipeline.views import Views

Rows = npt.NDArray[np.int64]
VALIDATION_SEED = 0
_SAMPLE = 2000
_DECODE_ROWS = 4096


def cut_validation(split: Split, share: float) -> tuple[Rows, Rows]:
    """Training and validation rows: the share of the rows, spread over the classes, drawn once and for all.

    Each class gives its share, rounded so that the sum is right: the classes with the largest remainders give one row
    more (where they tie, those that are drawn). At least one row of each class stays in training, so a class of one row
    gives none. (scikit-learn's splitters refuse to draw fewer rows than there are classes.) The draw does not depend
    on the run's seed, so that runs differ by their seeds alone. Unlabelled rows stay in training. Examples with labels
    at their positions are drawn as if of one class.

    Raises:
        ValueError: A share outside 0 to below 1, or one that leaves no validation rows.
    """
    if not 0 <= share < 1:
        raise ValueError(f"--val-share is {share}; expected 0 (none) to below 1, such as 0.1")
    rng = np.random.default_rng(VALIDATION_SEED)
    chosen = np.zeros(len(split), np.bool_)
    if share:
        members = [rng.permutation(rows) for rows in _by_class(split)]
        for rows, count in zip(members, _validation_counts([len(rows) for rows in members], share, rng), strict=True):
            chosen[rows[:count]] = True
    if share and not chosen.any():
        raise ValueError(f"--val-share {share} of {split.spec} leaves no labelled validation rows; take a larger share")
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _by_class(split: Split) -> list[Rows]:
    """The labelled rows of each class."""
    if split.positions is not None:
        return [np.flatnonzero((split.labels >= 0).any(axis=1))]
    return [np.flatnonzero(split.labels == label) for label in range(split.num_classes)]


def _validation_counts(sizes: list[int], share: float, rng: np.random.Generator) -> list[int]:
    """How many rows each class gives: largest remainders, never all of a class."""
    size_C = np.array(sizes)
    wanted_C = np.where(size_C > 1, share * size_C, 0.0)
    count_C = np.floor(wanted_C).astype(np.int64)
    remainder_C = wanted_C - count_C
    left = round(float(wanted_C.sum())) - int(count_C.sum())
    count_C[np.lexsort((rng.random(len(size_C)), -remainder_C))[:left]] += 1
    return [int(count) for count in np.minimum(count_C, np.maximum(size_C - 1, 0))]


def rows_digest(split: Split, rows: Rows) -> str:
    """SHA-256 of the content keys of the rows: which examples were held out."""
    return hashlib.sha256(np.ascontiguousarray(split.keys[rows], dtype="<u8").data).hexdigest()


def measure_rows(ask: Ask, model: nn.Module, split: Split, rows: Rows | None) -> tuple[Tensor, Tensor]:
    """Logits and labels of the labelled rows, as they are (no view)."""
    chosen = np.arange(len(split)) if rows is None else rows
    chosen = chosen[split.labels[chosen] >= 0]
    if not len(chosen):
        raise ValueError(f"{split.spec}: no labelled rows to evaluate on")
    logits_NC = ask(model, split, rows=chosen)
    return logits_NC, torch.from_numpy(split.labels[chosen])


def validate(ask: Ask, model: nn.Module, split: Split, rows: Rows, selected_by: str = "") -> dict[str, float]:
    """What an epoch measures on the validation rows: accuracy, NLL, and the measure by which the best one is selected.

    Raises:
        ValueError: The rows do not allow that measure.
    """
    names = dict.fromkeys(("accuracy", "nll", *filter(None, [selected_by])))
    if split.positions is not None:
        found, _ = measure_labelled(ask, model, split, rows, names)
    else:
        found = measure(*measure_rows(ask, model, split, rows), names)
    if selected_by and found[selected_by] is None:
        raise ValueError(
            f"--select best:{selected_by}: the validation rows are all of one class, which does not allow it; select by"
            " another measure"
        )
    measured = {"val_accuracy": found["accuracy"], "val_nll": found["nll"]}
    return {**measured, "val_selected": found[selected_by]} if selected_by else measured


def evaluate_test(ask: Ask, model: nn.Module, test: Split) -> dict[str, Any]:
    """All measures on the test data, with the table of classes, which are taken for which, and the bins of a
    reliability diagram."""
    if test.positions is not None:
        measured, bins = measure_labelled(ask, model, test, None)
        return {"data": test.spec, "num_examples": len(test), **measured, "reliability": fit_for_json(bins)}
    logits_NC, labels_N = measure_rows(ask, model, test, None)
    names = test.class_names or tuple(str(label) for label in range(test.num_classes))
    return {
        "data": test.spec,
        **measure(logits_NC, labels_N),
        "per_class": [{"class": names[label], **row} for label, row in measure_classes(logits_NC, labels_N).items()],
        "confusion": [
            {"class": names[label], "predicted": names[predicted], "num_rows": count}
            for label, predicted, count in confusion(logits_NC, labels_N)
        ],
        "reliability": reliability_of(logits_NC, labels_N),
    }


def evaluate_against_teacher(
    ask: Ask,
    model: nn.Module,
    split: Split,
    answers: Answers,
    validation: Rows,
    *,
    folds: npt.NDArray[np.integer] | None,
    views: Views,
) -> dict[str, Any]:
    """Agreement with the teacher and KL to it at T = 1 on the first view, and both accuracies, also where the teacher
    is right or wrong; by fold if cross-fitted.

    On the validation rows, which the student has not seen, or else on some training rows.
    """
    if split.positions is not None:
        rows = validation if len(validation) else sampled(split)
        found = measure_beside_teacher(ask, model, split, answers, rows, views)
        return {"rows": "validation" if len(validation) else "training", **found} if found else {}
    rows = validation if len(validation) else np.arange(0, len(split), max(1, len(split) // _SAMPLE))
    rows = rows[answers.served(0)[rows]]
    if not len(rows):
        return {}
    student_NC = ask(model, split, rows=rows, views=views)
    teacher_NC = teacher_logits(answers, rows, student_NC)
    labels_N = torch.from_numpy(split.labels[rows])
    found = {
        "rows": "validation" if len(validation) else "training",
        **measure_agreement(student_NC, teacher_NC, labels_N),
        **({} if views.mixes else measure_where_teacher_errs(student_NC, teacher_NC, labels_N)),
    }
    if folds is not None:
        found["per_fold"] = []
        for fold in range(int(folds.max()) + 1):
            own_N = torch.from_numpy(folds[rows] == fold)
            if own_N.any():
                measured = measure_agreement(student_NC[own_N], teacher_NC[own_N], labels_N[own_N])
                found["per_fold"].append({"fold": fold, **measured})
    return found


def teacher_logits(answers: Answers, rows: Rows, student_NC: Tensor) -> Tensor:
    """What the teachers say of rows that they serve in the first view, float32 [N, C]; a tail that follows the student
    is flat."""
    flat_NC = torch.zeros_like(student_NC)
    parts = torch.split(torch.from_numpy(rows), _DECODE_ROWS)
    return torch.cat([answers.logits(part, 0, student_BC=flat_NC[: len(part)]).cpu() for part in parts])
