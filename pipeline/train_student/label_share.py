"""The share of the label in a mixed target, ``label_mix?alpha=auto``: in closed form, on rows left out.

For each fifth of the training rows two short runs are trained on the others, one on labels alone and one on the teacher
alone; their answers to the rows left out give the share of least squared error.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from logitbank.pipeline.fit import Training
from logitbank.pipeline.train_student.label_weight import best_label_weight
from logitbank.pipeline.train_student.losses import Objective
from logitbank.pipeline.train_student.search import Rows, short_training

NAME = "label_mix.alpha"
Answer = Callable[[Objective, Training, Rows, Rows], tuple[Tensor, Tensor]]


def is_open(objective: Objective) -> bool:
    """Whether a target's share of the label is still to be found."""
    return any("auto" in transform.options.values() for transform in objective.transforms)


def choose_label_share(
    objective: Objective,
    training: Training,
    answer: Answer,
    folds: Sequence[tuple[Rows, Rows]],
    tried: Sequence[dict[str, Any]],
    on_tried: Callable[[list[dict[str, Any]]], None],
) -> tuple[Objective, list[dict[str, Any]]]:
    """Binds alpha, where it is auto.

    Args:
        objective: With a share to find, or none.
        training: Of the run; short runs get a quarter of its epochs.
        answer: Trains a fresh student on the first rows and gives its logits, and labels, of the labelled second ones.
        folds: Rows to train on and rows left out.
        tried: What an earlier, killed run has found already.
        on_tried: Told what was found.

    Returns:
        The bound objective, and what was found.

    Raises:
        ValueError: Students of labels and of the teacher answer alike.
    """
    if not is_open(objective):
        return objective, []
    if tried and NAME in tried[0]:
        return _bound(objective, float(tried[0][NAME])), list(tried)
    short = short_training(training)
    rows = []
    for kept, left in folds:
        (of_labels_BC, labels_B), (of_teacher_BC, _) = (
            answer(_bound(objective, alpha), short, kept, left) for alpha in (1.0, 0.0)
        )
        rows.append((of_labels_BC.softmax(1), of_teacher_BC.softmax(1), labels_B))
    found = [{NAME: float(f"{best_label_weight(rows):.4g}"), "folds": len(folds)}]
    on_tried(found)
    return _bound(objective, found[0][NAME]), found


def _bound(objective: Objective, alpha: float) -> Objective:
    return objective.with_transforms(
        [
            replace(transform, options={key: alpha if value == "auto" else value for key, value in each})
            for transform in objective.transforms
            for each in [transform.options.items()]
        ]
    )
