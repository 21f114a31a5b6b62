"""The one training loop, for teachers and students alike: data and loss are arguments.

Shapes: B batch, C classes, N examples.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from pipeline.datasets import Split
from pipeline.models import Preprocessing
from pipeline.spelling import unknown
from pipeline.views import Views

EVALUATION_BATCH = 500

OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": lambda parameters, lr, decay: SGD(parameters, lr=lr, momentum=0.9, nesterov=True, weight_decay=decay),
    "adamw": lambda parameters, lr, decay: AdamW(parameters, lr=lr, weight_decay=decay),
}


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a model is trained. The learning rate falls to zero along a cosine, step by step.

    ``grad_clip`` bounds the gradient's norm (0: unbounded): divergences with unbounded ratios, such as power
    divergence with lambda > 0, need it in the first steps.
    """

    epochs: int = 30
    batch_size: int = 64
    optimizer: str = "sgd"
    lr: float = 0.05
    weight_decay: float = 5e-4
    grad_clip: float = 5.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(unknown("optimizer", self.optimizer, OPTIMIZERS))
        for name in ("epochs", "batch_size", "lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"--{name.replace('_', '-')} is {getattr(self, name)}; expected more than 0")

    def attributes(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class EpochRecord:
    """One line of history.csv."""

    epoch: int
    loss: float
    train_accuracy: float
    lr: float
    seconds: float


class BatchLoss:
    """What ``fit`` minimises: told when an epoch starts, then asked for the loss of each example of a batch."""

    def begin_epoch(self, epoch: int) -> None:
        """Epochs count from 0."""

    def __call__(self, logits_BC: Tensor, rows_B: Tensor) -> Tensor:
        """Loss [B] of logits [B, C] for the examples with the given row numbers, int64 [B] on the CPU."""
        raise NotImplementedError


def fit(
    model: nn.Module,
    split: Split,
    loss: BatchLoss,
    training: Training,
    *,
    views: Views,
    preprocessing: Preprocessing,
    rows: npt.NDArray[np.integer] | None = None,
    device: torch.device | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> list[EpochRecord]:
    """Trains ``model`` in place; epoch e reads view e modulo V.

    The order of examples depends on ``training.seed`` alone, so the same seed on the same machine gives
    the same weights bit for bit.

    Args:
        model: Maps preprocessed inputs to logits [B, C].
        split: Training examples.
        loss: Loss of each example.
        training: Epochs, optimiser and seed.
        views: Which pixels epoch e shows.
        preprocessing: The model's own input scaling.
        rows: Train on these rows only (default: all).
        device: Where to train (default: CPU).
        on_epoch: Called after every epoch.

    Returns:
        One record an epoch.
    """
    device = device or torch.device("cpu")
    model.to(device)
    chosen = torch.arange(len(split)) if rows is None else torch.from_numpy(np.asarray(rows, dtype=np.int64))
    labels = torch.from_numpy(split.labels)
    optimizer = OPTIMIZERS[training.optimizer](model.parameters(), training.lr, training.weight_decay)
    steps = training.epochs * len(_batches(chosen, training.batch_size))
    schedule = LambdaLR(optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)))
    order = torch.Generator().manual_seed(training.seed)
    history = []
    for epoch in range(training.epochs):
        started = time.perf_counter()
        learning_rate = float(schedule.get_last_lr()[0])
        loss.begin_epoch(epoch)
        model.train()
        sum_loss, sum_correct, sum_labelled = torch.zeros((), device=device), 0, 0
        shuffled = chosen[torch.randperm(len(chosen), generator=order)]
        for rows_B in _batches(shuffled, training.batch_size):
            samples = torch.from_numpy(views.samples(split, rows_B.numpy(), epoch % views.num_views))
            logits_BC = model(preprocessing(samples.to(device)))
            loss_B = loss(logits_BC, rows_B)
            optimizer.zero_grad(set_to_none=True)
            loss_B.mean().backward()  # type: ignore[no-untyped-call]
            if training.grad_clip:
                nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
            optimizer.step()
            schedule.step()
            sum_loss += loss_B.detach().sum()
            labels_B = labels[rows_B].to(device)
            sum_correct += int((logits_BC.detach().argmax(dim=-1) == labels_B).sum())
            sum_labelled += int((labels_B >= 0).sum())
        record = EpochRecord(
            epoch=epoch + 1,
            loss=float(sum_loss) / len(chosen),
            train_accuracy=sum_correct / max(sum_labelled, 1),
            lr=learning_rate,
            seconds=time.perf_counter() - started,
        )
        if not math.isfinite(record.loss):
            raise ValueError(f"the loss is {record.loss} in epoch {epoch + 1}; lower --lr or the loss's weights")
        history.append(record)
        if on_epoch is not None:
            on_epoch(record)
    return history


def _batches(rows: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of rows; a single last row joins the batch before it (batch norm needs two)."""
    batches = list(torch.split(rows, batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def predict(
    model: nn.Module, split: Split, *, preprocessing: Preprocessing, device: torch.device | None = None
) -> Tensor:
    """Logits of every example as it is (no view), float32 [N, C] on the CPU, in evaluation mode."""
    device = device or torch.device("cpu")
    model.to(device).eval()

    def answers() -> Iterator[Tensor]:
        for start in range(0, len(split), EVALUATION_BATCH):
            samples = torch.from_numpy(split.samples[start : start + EVALUATION_BATCH]).to(device)
            yield model(preprocessing(samples)).float().cpu()

    with torch.inference_mode():
        return torch.cat(list(answers()))
