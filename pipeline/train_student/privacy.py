"""A private student: what does not go with DP-SGD, and what its epsilon covers."""

from pathlib import Path
from typing import Any

import numpy as np

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.private import ACCOUNTANT, epsilon, sample_rate, steps_of_epoch
from logitbank.pipeline.models import read_given
from logitbank.pipeline.models.input_transform import own_preprocessing, settle
from logitbank.pipeline.models.parts import split_selection
from logitbank.pipeline.models.weights import read_training_keys
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.losses import Objective
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views

BOUNDARY = (
    "--dp-sgd: epsilon covers what the student's weights tell of a row, its label and the teacher's answer to it; not"
    " what the teacher learnt of the row and says of others, nor the figures of history.csv and result.json, nor a"
    " choice among several runs"
)


def check_private(run: Run, objective: Objective, split: Split, views: Views, processes: Processes) -> list[str]:
    """A line on what epsilon covers; nothing for other runs.

    Raises:
        ValueError: Something looks at several rows at once, or at rows beside the steps.
    """
    if not run.training.dp_sgd:
        return []
    reasons = [
        (
            [term.name for term in objective.terms if term.couples_rows],
            "a row's loss depends on the others of its batch (of a row weight: --set row_weight_mean_one=false)",
        ),
        ([term.name for term in objective.terms if term.weighs_by_class], "its row weight counts the rows of a class"),
        (objective.kept, "what it learns itself is not private"),
        (
            [each.name for each in objective.transforms if each.rule.fit or "auto" in each.options.values()],
            "it is fitted to the labels of all rows beside the steps",
        ),
        (list(objective.search), "its search looks at rows beside the steps; give a value"),
    ]
    for names, because in reasons:
        if names:
            raise ValueError(f"--dp-sgd does not go with {names[0]}: {because}; take another loss or leave it out")
    if views.mixes:
        raise ValueError(f"--dp-sgd does not go with views that show two examples ({views.transform})")
    if processes.count > 1:
        raise ValueError("--dp-sgd trains in one process; leave out torchrun")
    if run.checkpoint_every:
        raise ValueError(
            "--checkpoint-every does nothing here: a private run that is stopped starts over; leave it out"
        )
    given = read_given(run.mean, run.std, run.input_transform)
    if settle(split, given, own_preprocessing(run.student, split)) is None:
        raise ValueError(
            "--dp-sgd: the student's input scaling would be computed from private rows; pass --mean and --std that"
            " are known without them, such as 0.5 and 0.25 for each channel"
        )
    return [BOUNDARY, *_of_start(run, split)]


def _of_start(run: Run, split: Split) -> list[str]:
    """A line on what the student starts from; ValueError where that was trained on these rows without noise."""
    if not run.init:
        return []
    before = read_training_keys(Path(split_selection(run.init)[0]))
    if before is None:
        return [f"--dp-sgd: {run.init} does not say what it was trained on; of these rows, epsilon does not cover it"]
    if num_seen := int(np.isin(split.keys, before).sum()):
        raise ValueError(
            f"--dp-sgd: {run.init} was trained on {num_seen} of these {len(split)} rows, which epsilon would not cover;"
            " start from weights that have not seen them"
        )
    return []


def spent(training: Training, num_rows: int, epochs: int) -> dict[str, Any] | None:
    """What ``result.json`` says of a private run; None for others."""
    if not training.dp_sgd:
        return None
    steps = epochs * steps_of_epoch(training, num_rows)
    return {
        "epsilon": epsilon(training, num_rows, steps),
        "delta": training.dp_delta,
        "noise_multiplier": training.dp_sgd,
        "max_grad_norm": training.grad_clip,
        "sample_rate": sample_rate(training, num_rows),
        "steps": steps,
        "accountant": ACCOUNTANT,
    }
