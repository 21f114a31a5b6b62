"""The table of losses that remember each example: they are trained with the run's row numbers, and saved with it."""

from __future__ import annotations

from .domains import number
from .kinds import Loss
from .memory import Remembered, early_learning_regularization

MEMORY_LOSSES: dict[str, Loss] = {
    "elr": Loss(
        fn=early_learning_regularization,
        paper="ELR, Liu et al. NeurIPS 2020",
        use="wrong labels: beside hard labels, holds the student to what it said before it learnt them",
        setting="CIFAR-10 with wrong labels",
        takes={"keep": number(0.7, "[0, 1)")},
        weight=3.0,
        ce_weight=1.0,
        presets={"cifar100": {"keep": 0.9, "weight": 7.0}},
        needs=frozenset({"labels"}),  # without one to hold against, a student only grows sure of itself
        extras=frozenset({"rows_B"}),
        fits="labels",
        module=Remembered,
        zero_at_teacher=False,
        below_zero=True,
    ),
}
