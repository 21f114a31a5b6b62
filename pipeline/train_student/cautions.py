"""What a run's length, its cut into passes and its test data mean for its figures: said before the first step."""

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.limits import check_fits
from logitbank.pipeline.fit import Training
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.losses import Objective


def cautions(objective: Objective, training: Training, processes: Processes) -> list[str]:
    """Warnings about warm-ups that do not end, and losses that are another when a batch is cut in parts."""
    lines = [
        f"the weight of {term.name} rises over {term.warmup:g} epochs, and the run has {training.epochs}: it ends at"
        f" {training.epochs / term.warmup:.2g} of it; set {term.name}.warmup, or more --epochs"
        for term in objective.terms
        if term.warmup > training.epochs
    ]
    coupled = [term.name for term in objective.terms if term.couples_rows]
    parts = training.accumulate * processes.count
    if coupled and parts > 1:
        lines.append(
            f"{', '.join(coupled)}: the loss of a row depends on the others of its pass, and {parts} passes make a step"
            f" of {training.batch_size} (--accumulate, processes): it is not the loss of one pass of that size"
        )
    return lines


def check_memory(objective: Objective, training: Training, split: Split, processes: Processes) -> None:
    """Raises ValueError where a loss that remembers each example would remember wrongly, or more than there is room
    for."""
    if not objective.remembers:
        return
    name = objective.remembers[0]
    split.refuse_positions(f"loss {name}")
    if training.mixup:
        raise ValueError(f"{name} remembers examples, and --mixup shows two in one; leave out one of them")
    if processes.count > 1:
        raise ValueError(f"{name} remembers examples in one process; leave out torchrun")
    check_fits(f"what {name} remembers of {split.spec}", 4 * len(split) * split.num_classes)


def seen_warnings(test: Split, keys: npt.NDArray[np.uint64]) -> list[str]:
    """A warning when test rows are among those, of these content keys, that the student is trained on."""
    seen = int(np.isin(test.keys, keys).sum())
    if not seen:
        return []
    return [
        f"{seen} of the {len(test)} rows of {test.spec} (--eval-data) are among those that the student is trained on:"
        " its test figures are too good to that extent; pass data that it does not learn from"
    ]
