"""Every setting of a training run, and what follows from them: optimiser, learning rate, precision."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from logitbank.pipeline.domains import TRAINING
from logitbank.pipeline.processes.together import LEAST_ROWS

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], "Training"], Optimizer]] = {
    "sgd": lambda parameters, training: SGD(
        parameters,
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    ),
    "adamw": lambda parameters, training: AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay),
}

STEP_MILESTONES = (0.625, 0.75, 0.875)  # 150, 180 and 210 of 240 epochs
ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 0.04

# share of the run that is done, 0 to below 1 -> share of the peak learning rate
SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "step": lambda done: 0.1 ** sum(done >= milestone for milestone in STEP_MILESTONES),
    "one-cycle": lambda done: (
        ONE_CYCLE_START + (1 - ONE_CYCLE_START) * done / ONE_CYCLE_RISE
        if done < ONE_CYCLE_RISE
        else 0.5 * (1 + math.cos(math.pi * (done - ONE_CYCLE_RISE) / (1 - ONE_CYCLE_RISE)))
    ),
    "constant": lambda done: 1.0,
}

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_OPTIONS = {"weight_bits": "--student-bits"}  # where the command line has another name


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained.

    Attributes:
        epochs: Passes over the data.
        batch_size: Examples an optimiser step.
        optimizer: A name of ``OPTIMIZERS``.
        lr: Peak learning rate.
        momentum: Of SGD (Nesterov); 0 for none.
        weight_decay: Weight decay.
        grad_clip: Largest norm of the gradient (0: unbounded): divergences with unbounded ratios, such as power
            divergence with lambda > 0, need it in the first steps.
        schedule: A name of ``SCHEDULES``, applied step by step.
        warmup_epochs: The learning rate rises linearly from 0 over this many epochs; the schedule follows.
        ema_decay: Decay of a running average of the weights, which becomes the result (0: none). It warms up, as
            ``running_average`` says: runs of few steps never reach it.
        accumulate: Forward passes that share one optimiser step; batch_size stays what a step sees.
        precision: float32, or autocast to bfloat16 or float16; weights and loss stay float32.
        channels_last: Memory format of images.
        compile: Run the model through ``torch.compile``.
        weight_bits: Train weights rounded to 2, 4 or 8 bits (0: not rounded).
        select: "last" epoch's weights, or those of the "best" epoch by accuracy on the validation rows.
        seed: Of initialisation and of the order of examples.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    grad_clip: float = 5.0
    schedule: str = "cosine"
    warmup_epochs: float = 0.0
    ema_decay: float = 0.0
    accumulate: int = 1
    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False
    weight_bits: int = 0
    select: str = "last"
    seed: int = 0

    def __post_init__(self) -> None:
        for name, domain in TRAINING.items():
            domain.check(_OPTIONS.get(name, f"--{name.replace('_', '-')}"), getattr(self, name))
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"--warmup-epochs is {self.warmup_epochs:g} of {self.epochs} epochs, so the learning rate never"
                " reaches --lr; expected fewer than --epochs"
            )
        if self.accumulate * LEAST_ROWS > self.batch_size and self.accumulate > 1:
            raise ValueError(
                f"--accumulate is {self.accumulate}, but each of its passes needs {LEAST_ROWS} of the"
                f" {self.batch_size} examples of a step; expected at most {self.batch_size // LEAST_ROWS}"
            )
        if self.compile and self.weight_bits:
            raise ValueError("--compile and --student-bits do not go together; pass one of them")

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        steps = max(self.epochs * steps_per_epoch - warmup, 1)
        return self.lr * SCHEDULES[self.schedule]((step - warmup) / steps)

    def attributes(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of history.csv; the validation columns are empty when there are no validation rows.

    ``notes`` are what the loss counted in the epoch; they are no column.
    """

    epoch: int
    loss: float
    train_accuracy: float
    lr: float
    seconds: float
    val_accuracy: float | None = None
    val_nll: float | None = None
    notes: dict[str, int] = field(default_factory=dict)


COLUMNS = tuple(column.name for column in fields(EpochRecord) if column.name != "notes")
