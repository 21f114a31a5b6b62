"""The one training loop, for teachers and students alike: data and loss are arguments.

Shapes: B batch, C classes, N examples.
"""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.feed import Feed
from logitbank.pipeline.fit.optimizers import PRECISIONS
from logitbank.pipeline.fit.progress import Evaluate, Progress
from logitbank.pipeline.fit.training import EpochRecord, Training
from logitbank.pipeline.fit.weights import rounded_parameters
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.views import Views

Rows = npt.NDArray[np.integer]
Forward = Callable[[Tensor], Tensor]


class BatchLoss:
    """What ``fit`` minimises: asked for the order of each epoch, and for the loss of each example of a batch."""

    def notes(self) -> dict[str, int]:
        """What the epoch counted, such as rows on which a loss abstained; the same names in every process."""
        return {}

    def order(self, rows: Tensor, generator: torch.Generator, *, view: int, next_view: int | None) -> Tensor:
        """The rows int64 [N] in the order in which an epoch shows them in ``view``; None follows the last epoch."""
        return rows[torch.randperm(len(rows), generator=generator)]

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, *, view: int, step: int, steps_per_epoch: int) -> Tensor:
        """Loss [B] of logits [B, C] for the examples with the given row numbers.

        Args:
            logits_BC: The model's.
            rows_B: int64 [B] on the CPU.
            view: Which view of the examples the model was shown.
            step: The optimiser's step, counted from 0 over the whole run.
            steps_per_epoch: Steps of an epoch.
        """
        raise NotImplementedError


def fit(
    model: nn.Module,
    split: Split,
    loss: BatchLoss,
    training: Training,
    *,
    views: Views,
    preprocessing: Preprocessing,
    rows: Rows | None = None,
    device: torch.device | None = None,
    evaluate: Evaluate | None = None,
    checkpoint: Checkpoint | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    workers: int = 0,
    processes: Processes | None = None,
) -> list[EpochRecord]:
    """Trains ``model`` in place; epoch e reads view e modulo V.

    The order of examples depends on ``training.seed`` alone, so the same seed on the same machine gives
    the same weights bit for bit, also when the run was killed and went on from its checkpoint.

    Args:
        model: Maps preprocessed inputs to logits [B, C].
        split: Training examples.
        loss: Loss of each example.
        training: Every setting.
        views: Which pixels epoch e shows.
        preprocessing: The model's own input scaling.
        rows: Train on these rows only (default: all).
        device: Where to train (default: CPU).
        evaluate: ``val_accuracy``, ``val_nll`` and, where ``training`` selects by one, ``val_selected`` of the model as
            it would be kept, after every epoch.
        checkpoint: Where the run is saved after every epoch, and from where it goes on.
        on_epoch: Called after every epoch in process 0, restored ones first.
        workers: Threads that read and transform the next batches meanwhile; 0 does it in between.
        processes: Those that train the model together; process 0 evaluates and saves.

    Returns:
        One record an epoch; fewer than ``training.epochs`` when its patience is at an end.

    Raises:
        Diverged: The loss or the weights are no longer finite.
        ValueError: The checkpoint belongs to another run.
    """
    device, processes = device or torch.device("cpu"), processes or Processes()
    tell = on_epoch if on_epoch is not None and processes.first else _nobody
    forward = _forward(model, training, preprocessing, processes, device, images=split.is_image)
    chosen = torch.arange(len(split)) if rows is None else torch.from_numpy(np.asarray(rows, dtype=np.int64))
    labels = torch.from_numpy(split.labels)
    processes.check(training.batch_size, len(chosen))
    feed = Feed(split, views, training, processes, fit=preprocessing.fit, workers=workers, pinned=device.type == "cuda")
    steps_per_epoch = feed.num_steps(len(chosen))
    progress = Progress.start(model, training, device, processes.number)
    processes.seed(training.seed)
    if checkpoint is not None:
        checkpoint.restore(progress, training)
    for record in progress.history:
        tell(record)
    while not training.is_over(progress.history):
        epoch, started = len(progress.history), time.perf_counter()
        first_step = epoch * steps_per_epoch
        view = views.of_epoch(epoch)
        next_view = views.of_epoch(epoch + 1) if epoch + 1 < training.epochs else None
        order = loss.order(chosen, progress.order, view=view, next_view=next_view)
        sums = torch.zeros(3, device=device)
        model.train()
        for step, (num_rows, passes) in enumerate(feed.steps(order, view), first_step):
            progress.optimizer.zero_grad(set_to_none=True)
            for rows_B, samples in passes:
                logits_BC = forward(samples)
                loss_B = loss(logits_BC, rows_B, view=view, step=step, steps_per_epoch=steps_per_epoch)
                progress.backward(loss_B.sum() * processes.count / num_rows)  # processes average their gradients
                sums += _counted(loss_B, logits_BC, labels[rows_B].to(device))
            progress.step(training, step, steps_per_epoch)
        means = _means(processes.sum_(sums), len(chosen))
        progress.check_finite(means["loss"])
        validation = progress.validate(training, evaluate, processes)
        notes = _summed(loss.notes(), processes, device)
        rate, seconds = training.learning_rate(first_step, steps_per_epoch), time.perf_counter() - started
        record = EpochRecord(epoch=epoch + 1, lr=rate, seconds=seconds, notes=notes, **means, **validation)
        progress.history.append(record)
        if checkpoint is not None:
            checkpoint.save(progress, training, processes)
        tell(record)
    model.load_state_dict(progress.kept(training))
    return progress.history


def _nobody(record: EpochRecord) -> None:
    """Told of an epoch, does nothing."""


class _Rounded(nn.Module):
    """A model as it is with its weights rounded; gradients pass straight through to the exact ones."""

    def __init__(self, model: nn.Module, bits: int) -> None:
        super().__init__()
        self.model, self.bits = model, bits

    def forward(self, inputs: Tensor) -> Any:
        return torch.func.functional_call(self.model, rounded_parameters(self.model, self.bits), (inputs,))


def _forward(
    model: nn.Module,
    training: Training,
    preprocessing: Preprocessing,
    processes: Processes,
    device: torch.device,
    *,
    images: bool,
) -> Forward:
    """From samples on the CPU to logits in training: moves the model to its device, with its weights rounded, shared
    between processes and compiled as asked.
    """
    memory = torch.channels_last if training.channels_last and images else torch.preserve_format
    precision = PRECISIONS[training.precision]
    model.to(device, memory_format=memory)  # type: ignore[call-overload]
    module = _Rounded(model, training.weight_bits) if training.weight_bits else model
    module = processes.parallel(module, device)
    run = torch.compile(module) if training.compile else module

    def forward(samples: Tensor) -> Tensor:
        inputs = preprocessing(samples.to(device, non_blocking=True)).to(memory_format=memory)
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            logits_BC: Tensor = run(inputs)
        return logits_BC

    return forward


def _counted(loss_B: Tensor, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Sum of the losses, number of right answers, number of labels: float32 [3]."""
    right_B = logits_BC.detach().argmax(dim=-1) == labels_B
    return torch.stack([loss_B.detach().sum().float(), right_B.sum().float(), (labels_B >= 0).sum().float()])


def _means(sums: Tensor, num_rows: int) -> dict[str, float]:
    """Of an epoch: the loss of its rows, and the share of right answers among the labelled."""
    sum_loss, num_right, num_labelled = sums.tolist()
    return {"loss": sum_loss / num_rows, "train_accuracy": num_right / max(num_labelled, 1.0)}


def _summed(notes: dict[str, int], processes: Processes, device: torch.device) -> dict[str, int]:
    """The counts over all processes."""
    counts = torch.tensor([notes[name] for name in sorted(notes)], dtype=torch.int64, device=device)
    if notes:
        processes.sum_(counts)
    return dict(zip(sorted(notes), counts.tolist(), strict=True))
