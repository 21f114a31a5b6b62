"""Everything that changes while a model is trained, and how: one step, what would be kept, what is best so far."""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.optim import Optimizer

from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.fit.optimizers import make_optimizer
from logitbank.pipeline.fit.predict import Diverged
from logitbank.pipeline.fit.training import COLUMNS, EpochRecord, Training
from logitbank.pipeline.fit.weights import round_in_place
from logitbank.pipeline.processes import LEAST_ROWS
from logitbank.pipeline.processes.together import Processes

if TYPE_CHECKING:
    from timm.utils import ModelEmaV3  # type: ignore[attr-defined]

VALIDATION = tuple(name for name in COLUMNS if name.startswith("val_"))
State = dict[str, Tensor]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


@dataclass(kw_only=True)
class UnderWay:
    """The epoch under way.

    Attributes:
        order: State of the generator from which its order of examples was, or will be, drawn.
        steps: Those that are done.
        sums: Of the losses, right answers and labels of the rows of this process, float32 [3].
        notes: What the loss counted.
        seconds: That it has taken.
    """

    order: Tensor
    sums: Tensor
    steps: int = 0
    notes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass(kw_only=True)
class Progress:
    """What a checkpoint holds.

    Attributes:
        order: Draws the order of examples.
        average: Running average of the weights, when one is kept.
        beside: What is trained with the model and is no part of it, when there is something.
        history: One record a finished epoch.
        under_way: The epoch after these.
        counts: How many processes have trained it, one number for each time that it went on with others.
        least_rows: A last batch of an epoch that is smaller joins the one before it.
        best: The weights of the best epoch so far, when they are to be kept.
    """

    model: nn.Module
    optimizer: Optimizer
    scaler: GradScaler
    order: torch.Generator
    average: "ModelEmaV3 | None"
    device: torch.device
    under_way: UnderWay
    counts: list[int]
    least_rows: int
    history: list[EpochRecord] = field(default_factory=list)
    best: State | None = None
    beside: nn.Module | None = None

    @classmethod
    def start(
        cls,
        model: nn.Module,
        training: Training,
        device: torch.device,
        processes: Processes,
        *,
        beside: nn.Module | None = None,
    ) -> "Progress":
        """Before the first step."""
        order = torch.Generator().manual_seed(training.seed)
        beside = None if beside is None else beside.to(device)
        return cls(
            model=model,
            optimizer=make_optimizer(model, training, beside),
            scaler=GradScaler(device.type, enabled=training.precision == "float16"),
            order=order,
            average=_average(model, training.ema_decay) if training.ema_decay else None,
            device=device,
            under_way=UnderWay(order=order.get_state(), sums=torch.zeros(3, device=device)),
            counts=[processes.count],
            least_rows=LEAST_ROWS * processes.count,
            beside=beside,
        )

    def finish_epoch(self, record: EpochRecord) -> None:
        """The next one begins."""
        self.history.append(record)
        self.under_way = UnderWay(order=self.order.get_state(), sums=torch.zeros(3, device=self.device))

    def backward(self, loss: Tensor) -> None:
        """Adds the gradients of a pass to those of its step."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, training: Training, step: int, steps_per_epoch: int) -> None:
        """One step, counted from 0 over the whole run, along the gradients that its passes have left."""
        for group in self.optimizer.param_groups:
            group["lr"] = training.learning_rate(step, steps_per_epoch) * group.get("lr_scale", 1.0)
        if training.grad_clip and not training.dp_sgd:  # which clips each example's
            self.scaler.unscale_(self.optimizer)
            beside = [] if self.beside is None else list(self.beside.parameters())
            for part in (
                list(self.model.parameters()),
                beside,
            ):  # by itself: what is beside does not slow the model down
                if part:
                    nn.utils.clip_grad_norm_(part, training.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model, step=step + 1)

    def check_finite(self, mean_loss: float) -> None:
        """Raises Diverged when the loss of the epoch, or a weight, is not finite."""
        found = f"the loss is {mean_loss}" if not math.isfinite(mean_loss) else ""
        beside = {} if self.beside is None else self.beside.state_dict()
        weights = (*self.model.state_dict().values(), *beside.values())
        if not found and not all(bool(value.isfinite().all()) for value in weights):
            found = "weights are no longer finite"
        if found:
            raise Diverged(
                f"training diverged, {found} in epoch {len(self.history) + 1}; lower --lr or the loss's weights, in a"
                " new --out"
            )

    def validate(self, training: Training, evaluate: Evaluate | None, processes: Processes) -> dict[str, float]:
        """Validation measures, in every process, of what would be kept now; nothing without ``evaluate``.

        Process 0 measures, and remembers the weights when they are the best so far.
        """
        if evaluate is None:
            return {}
        measured = self._measured(training, evaluate) if processes.first else {}
        return processes.from_first(measured, VALIDATION, self.device)

    def _measured(self, training: Training, evaluate: Evaluate) -> dict[str, float]:
        last, now = _copied(self.model), self._now(training)
        self.model.load_state_dict(now)
        measured = dict(evaluate(self.model))
        self.model.load_state_dict(last)
        if training.selected_by and training.is_better(measured["val_selected"], self.history):
            self.best = now
        return measured

    def kept(self, training: Training) -> State:
        """What training ends with: the best epoch's weights, or the running average, or the last; rounded if asked."""
        return self._now(training) if self.best is None else self.best

    def _now(self, training: Training) -> State:
        state = _copied(self.model if self.average is None else self.average.module)
        if training.weight_bits:
            last = _copied(self.model)
            self.model.load_state_dict(state)
            round_in_place(self.model, training.weight_bits)
            state = _copied(self.model)
            self.model.load_state_dict(last)
        return state


def _average(model: nn.Module, decay: float) -> "ModelEmaV3":
    """timm's running average of weights and buffers, whose decay warms up: runs of few steps do not reach it."""
    prepare_torchvision()
    from timm.utils import ModelEmaV3  # type: ignore[attr-defined]

    return ModelEmaV3(model, decay=decay, use_warmup=True)


def random_state(device: torch.device) -> State:
    """What this process's random generators stand at."""
    states = {"cpu": torch.get_rng_state()}
    return {**states, "cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def _copied(model: nn.Module) -> State:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
