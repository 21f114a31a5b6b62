"""Options that are "auto": cross-validation on the training rows, as the authors of the corrected losses have it.

Each candidate trains a short run on four fifths of the training rows, five times, and is judged by the NLL of the
rows left out. Validation rows are not looked at.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.predict import Diverged
from logitbank.pipeline.train_student.losses import Objective

SHARE = 4  # a candidate trains for one epoch in four of the run, at least one
FOLDS = 5

Rows = npt.NDArray[np.int64]
Try = Callable[[Objective, Training, Rows, Rows], float]


def search_options(
    objective: Objective,
    training: Training,
    attempt: Try,
    folds: Sequence[tuple[Rows, Rows]],
    tried: Sequence[dict[str, Any]],
    on_tried: Callable[[list[dict[str, Any]]], None],
) -> tuple[Objective, list[dict[str, Any]]]:
    """Binds the objective's "auto" options to the candidates of the lowest mean NLL over the folds.

    Args:
        objective: With options to search, or none.
        training: Of the run; candidates get a quarter of its epochs and of its warm-up.
        attempt: Trains a fresh student on the first rows and gives its NLL on the second.
        folds: Rows to train on and rows left out, of `cut_folds`.
        tried: Outcomes that an earlier, killed run has measured already.
        on_tried: Told the outcomes so far after each candidate.

    Returns:
        The bound objective, and the outcome of every candidate; an NLL of None is a candidate that diverged.

    Raises:
        ValueError: Every candidate diverged.
    """
    names = list(objective.search)
    if not names:
        return objective, []
    short = short_training(training)
    candidates = [dict(zip(names, values, strict=True)) for values in itertools.product(*objective.search.values())]
    asked_before = [{key: value for key, value in outcome.items() if key != "nll"} for outcome in tried]
    outcomes = list(tried) if asked_before == candidates[: len(tried)] else []
    for values in candidates[len(outcomes) :]:
        bound = objective.bind(**values)
        outcomes.append({**values, **_judge([_nll(attempt, bound, short, *fold) for fold in folds])})
        on_tried(outcomes)
    finite = [outcome for outcome in outcomes if outcome["nll"] is not None]
    if not finite:
        raise Diverged(f"every candidate of {', '.join(names)} diverged; lower --lr or the loss's weights")
    best = min(finite, key=lambda outcome: outcome["nll"])
    return objective.bind(**{name: best[name] for name in names}), outcomes


def short_training(training: Training) -> Training:
    """A quarter of a run's epochs."""
    epochs = max(1, training.epochs // SHARE)
    warmup = training.warmup_epochs * epochs / training.epochs  # short runs, too, reach the peak learning rate
    return replace(training, epochs=epochs, warmup_epochs=warmup, select="last", patience=0)


def cut_folds(split: Split, rows: Rows) -> list[tuple[Rows, Rows]]:
    """Training rows cut in five, each fifth left out once; equal examples stay together, folds without labels go.

    Raises:
        ValueError: Fewer different examples than folds.
    """
    from sklearn.model_selection import GroupKFold

    keys = split.keys[rows]
    if len(np.unique(keys)) < FOLDS:
        raise ValueError(
            f"an option that is auto is searched with {FOLDS} folds, but {split.spec} has {len(np.unique(keys))}"
            " different training rows; give the option's value"
        )
    folds = [(rows[kept], rows[left]) for kept, left in GroupKFold(FOLDS).split(rows, groups=keys)]
    return [(kept, left) for kept, left in folds if (split.labels[left] >= 0).any()]


def _nll(attempt: Try, objective: Objective, training: Training, kept: Rows, left: Rows) -> float:
    try:
        return attempt(objective, training, kept, left)
    except Diverged:
        return math.inf


def _judge(nlls: list[float]) -> dict[str, float | None]:
    mean = statistics.fmean(nlls)
    return {"nll": mean if math.isfinite(mean) else None}
