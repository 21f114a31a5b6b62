"""Options that are "auto": each candidate trains a short run of its own and is judged on the validation rows."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pipeline.fit import Training
from pipeline.train_student.losses import Objective

SHARE = 4  # a candidate trains for one epoch in four of the run, at least one

Try = Callable[[Objective, Training], dict[str, float]]


def search_options(
    objective: Objective,
    training: Training,
    attempt: Try,
    tried: Sequence[dict[str, Any]],
    on_tried: Callable[[list[dict[str, Any]]], None],
) -> tuple[Objective, list[dict[str, Any]]]:
    """Binds the objective's "auto" options to the candidates of highest validation accuracy; NLL decides ties.

    Args:
        objective: With options to search, or none.
        training: Of the run; candidates get a quarter of its epochs and of its warm-up.
        attempt: Trains a fresh student and gives its ``val_accuracy`` and ``val_nll``.
        tried: Outcomes that an earlier, killed run has measured already.
        on_tried: Told the outcomes so far after each candidate.

    Returns:
        The bound objective, and the outcome of every candidate.
    """
    outcomes = list(tried)
    names = list(objective.search)
    if not names:
        return objective, []
    epochs = max(1, training.epochs // SHARE)
    warmup = training.warmup_epochs * epochs / training.epochs  # candidates, too, reach the peak learning rate
    short = replace(training, epochs=epochs, warmup_epochs=warmup, select="last")
    candidates = [dict(zip(names, values, strict=True)) for values in itertools.product(*objective.search.values())]
    for values in candidates[len(outcomes) :]:
        outcomes.append({**values, **attempt(objective.bind(**values), short)})
        on_tried(outcomes)
    best = max(outcomes, key=lambda outcome: (outcome["val_accuracy"], -outcome["val_nll"]))
    return objective.bind(**{name: best[name] for name in names}), outcomes
