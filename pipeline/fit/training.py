"""Every setting of a training run, described once, and the learning rate as a function of the step.

Imports nothing heavy, since the command line's options are made of it; what a name stands for is in optimizers.py.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from logitbank.pipeline.described import Idle, check_settings, deciding, option, settings_of, values_of
from logitbank.pipeline.domains import (
    AT_LEAST_ONE,
    BESIDE_TEACHER,
    COUNT,
    METRICS,
    NOT_NEGATIVE,
    POSITIVE,
    PRECISIONS,
    SEED,
    SELECT,
    SHARE,
    Number,
    Words,
    whole,
)
from logitbank.pipeline.processes import LEAST_ROWS

# timm's names of optimisers that are run, stopped and run on to the same bits by tests
OPTIMIZERS = (
    *("sgd", "adamw", "adam", "nadamw", "radam", "adopt", "laprop", "lamb", "lars", "lion", "adan", "adafactor"),
    *("rmsproptf", "madgrad", "muon"),
)
WITH_MOMENTUM = ("sgd", "lars", "rmsproptf", "madgrad", "muon")
EVAL_BATCH_SIZE = 500
STEP_MILESTONES = (0.625, 0.75, 0.875)  # 150, 180 and 210 of 240 epochs
ONE_CYCLE_RISE, ONE_CYCLE_START = 0.3, 0.04

# what does not go with --dp-sgd, and why
_NOT_PRIVATE = {
    "mixup": "an example would be in two samples",
    "accumulate": "a step is one draw of rows, in one pass",
    "compile": "each example's gradient is taken from the layers as they are",
    "weight_bits": "each example's gradient is taken from the layers as they are",
    "precision": "gradients and noise are float32",
    "select": "the choice of an epoch looks at private rows and is not accounted for",
}

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


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained; each setting says what it is."""

    epochs: int = option(30, help="Passes over the data", domain=AT_LEAST_ONE)
    batch_size: int = option(64, help="Examples of an optimiser step", domain=AT_LEAST_ONE)
    accumulate: int = option(
        1, help="Forward passes that share one step; --batch-size stays what a step sees", domain=AT_LEAST_ONE
    )
    optimizer: str = option("sgd", help=f"Optimiser, by timm's name: {', '.join(OPTIMIZERS)}", domain=Words(OPTIMIZERS))
    lr: float = option(0.05, help="Peak learning rate", domain=POSITIVE)
    momentum: float = option(
        0.9, help=f"Momentum of {', '.join(WITH_MOMENTUM)}; 0 for none. That of sgd is Nesterov's", domain=SHARE
    )
    schedule: str = option(
        "cosine", help="Learning rate: cosine, step, one-cycle or constant, by step", domain=Words(tuple(SCHEDULES))
    )
    warmup_epochs: float = option(
        0.0, help="Epochs in which the learning rate rises from 0; the schedule follows", domain=NOT_NEGATIVE
    )
    layer_decay: float = option(
        1.0,
        help="Each layer's rate is this share of the next one's, such as 0.75 to fine-tune a timm: model",
        domain=Number(high=1.0, open_low=True),
    )
    weight_decay: float = option(5e-4, help="Weight decay", domain=NOT_NEGATIVE)
    weight_decay_on: str = option(
        "all",
        help="What decays: all parameters; or weights: no biases, no norms, nor what the model exempts, as in timm",
        domain=Words(("all", "weights")),
    )
    # divergences with unbounded ratios, such as power divergence with lambda > 0, need it in the first steps
    grad_clip: float = option(5.0, help="Largest norm of the gradient; 0 leaves it unbounded", domain=NOT_NEGATIVE)
    ema_decay: float = option(
        0.0, help="Keep a running average of the weights, such as 0.999; the decay warms up", domain=SHARE
    )
    drop_path: float = option(
        0.0, help="Share of residual branches that a timm: student skips in a step, at its deepest", domain=SHARE
    )
    random_erasing: float = option(
        0.0,
        help="Share of images of which a rectangle becomes noise, each epoch anew; the teacher saw them whole",
        domain=Number(high=1.0),
    )
    mixup: float = option(
        0.0,
        help="Mix examples two by two, and their losses likewise, with shares from Beta(a, a), such as 1; 0: not mixed",
        domain=Number(high=100.0),
    )
    precision: str = option(
        "float32",
        help="Arithmetic of the network: float32, or autocast to bfloat16 or float16; weights stay float32",
        domain=PRECISIONS,
    )
    channels_last: bool = option(False, help="Channels-last memory format, faster on many GPUs")
    compile: bool = option(False, help="Run the network through torch.compile")
    weight_bits: int = option(
        0,
        help="Train weights rounded to 8, 4 or 2 bits; 0: not rounded",
        domain=whole(among=(0, 2, 4, 8)),
        spelled="--student-bits",
    )
    dp_sgd: float = option(
        0.0,
        help="Private: clip each example's gradient to --grad-clip, and add noise of this many times that",
        domain=NOT_NEGATIVE,
    )
    dp_delta: float = option(
        1e-5, help="Delta of the epsilon that --dp-sgd tells", domain=Number(high=1.0, open_low=True, open_high=True)
    )
    select: str = option(
        "last",
        help="Keep the last epoch, or the best by validation accuracy, or by another measure: best:nll, best:auc,"
        " best:agreement",
        domain=SELECT,
    )
    patience: int = option(
        0,
        help="Stop after this many epochs without a better one by --select; 0: never. Rates fall as for all --epochs",
        domain=COUNT,
    )
    seed: int = option(0, help="Seed of initialisation and of the order of examples", domain=SEED)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.patience >= self.epochs:
            raise ValueError(f"--patience is {self.patience} of {self.epochs} epochs; expected fewer than --epochs")
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
        if self.mixup and self.batch_size < 2:
            raise ValueError("--mixup mixes two examples of a batch, and --batch-size is 1; expected at least 2")
        self._refuse_beside_privacy()
        if self.compile and self.weight_bits:
            raise ValueError("--compile and --student-bits do not go together; pass one of them")

    def idle(self) -> Iterator[Idle]:
        """Settings that do nothing beside the others."""
        if self.optimizer not in WITH_MOMENTUM:
            yield ("momentum",), f"{self.optimizer} has none"
        if not self.dp_sgd:
            yield ("dp_delta",), "--dp-sgd is 0"
        if not self.weight_decay:
            yield ("weight_decay_on",), "--weight-decay is 0"
        if not self.selected_by:
            yield ("patience",), "--select last looks for no best epoch"

    def _refuse_beside_privacy(self) -> None:
        """Raises ValueError for what would break the promise of --dp-sgd, or does not work with it."""
        values = values_of(self)
        for setting in settings_of(Training) if self.dp_sgd else ():
            if setting.name in _NOT_PRIVATE and values[setting.name] != setting.default:
                because = _NOT_PRIVATE[setting.name]
                raise ValueError(f"{setting.flag} does not go with --dp-sgd: {because}; leave it out")
        if self.dp_sgd and not self.grad_clip:
            raise ValueError("--dp-sgd clips each example's gradient, and --grad-clip is 0; pass one such as 1")

    @property
    def selected_by(self) -> str:
        """The measure by which an epoch is the best; empty when the last is kept."""
        best, _, metric = self.select.partition(":")
        return "" if best == "last" else metric or "accuracy"

    def best_epoch(self, history: Sequence["EpochRecord"]) -> int | None:
        """The place in the history of the first of the best epochs; None when none is looked for, or measured yet."""
        if not self.selected_by:
            return None
        found = {place: record.val_selected for place, record in enumerate(history) if record.val_selected is not None}
        return max(found, key=lambda place: (self._sign * found[place], -place), default=None)

    def is_better(self, value: float, history: Sequence["EpochRecord"]) -> bool:
        """Whether an epoch of this measure would be the best."""
        best = self.best_epoch(history)
        return best is None or self._sign * value > self._sign * (history[best].val_selected or 0.0)

    @property
    def _sign(self) -> int:
        return 1 if {**METRICS, **BESIDE_TEACHER}[self.selected_by] else -1

    def is_over(self, history: Sequence["EpochRecord"]) -> bool:
        """After the last epoch, or when patience is at an end."""
        best = self.best_epoch(history)
        waited = 0 if best is None or not self.patience else len(history) - 1 - best
        return len(history) >= self.epochs or (self.patience > 0 and waited >= self.patience)

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, counted from 0 over the whole run."""
        warmup = round(self.warmup_epochs * steps_per_epoch)
        if step < warmup:
            return self.lr * (step + 1) / warmup
        steps = max(self.epochs * steps_per_epoch - warmup, 1)
        return self.lr * SCHEDULES[self.schedule]((step - warmup) / steps)

    def attributes(self) -> dict[str, Any]:
        """Those that decide the result, by name, fit for JSON."""
        return deciding(self)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of history.csv; the validation columns are empty when there are no validation rows.

    ``val_selected`` is the measure of ``select``, empty when the last epoch is kept; ``val_proxy`` and
    ``val_golden`` are the divergences to the teacher and to the truth, empty when they were not asked for.
    ``notes`` are what the loss counted in the epoch; they are no column.
    """

    epoch: int
    loss: float
    train_accuracy: float
    lr: float
    seconds: float
    val_accuracy: float | None = None
    val_nll: float | None = None
    val_selected: float | None = None
    val_proxy: float | None = None
    val_golden: float | None = None
    notes: dict[str, int] = field(default_factory=dict)


COLUMNS = tuple(column.name for column in fields(EpochRecord) if column.name != "notes")
