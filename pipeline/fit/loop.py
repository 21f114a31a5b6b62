"""The one training loop, for teachers and students alike: data and loss are arguments.

Shapes: B batch, L positions, C classes, N examples.
"""

import time
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit.augment import Augmentation
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.feed import Feed
from logitbank.pipeline.fit.optimizers import PRECISIONS
from logitbank.pipeline.fit.private import PrivateSteps
from logitbank.pipeline.fit.progress import Evaluate, Progress
from logitbank.pipeline.fit.training import EpochRecord, Training
from logitbank.pipeline.fit.weights import rounded_parameters
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.models.features import Featured, Place
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.views import Views

Rows = npt.NDArray[np.integer]
Forward = Callable[[Tensor, Callable[[Tensor], Tensor]], tuple[Tensor, dict[str, Any]]]


class BatchLoss:
    """What ``fit`` minimises: asked for the order of each epoch, and for the loss of each example of a batch.

    Attributes:
        modules: What the loss itself keeps from step to step: its parameters are trained with the model's, and saved.
        places: Where in the model it captures features, by name; it gets them as ``captured``.
    """

    modules: nn.Module | None = None
    places: Mapping[str, Place] = MappingProxyType({})

    mixes_answers: bool = False
    """Whether a mixed sample has one loss, of mixed answers; else it has those of both answers, mixed."""

    def notes(self) -> dict[str, int]:
        """What the epoch counted, such as rows on which a loss abstained; the same names in every process."""
        return {}

    def order(
        self, rows: Tensor, generator: torch.Generator, *, view: int, next_view: int | None, shown: int = 0
    ) -> Tensor:
        """The rows int64 [N] in the order in which an epoch shows them in ``view``; None follows the last epoch.

        Of an epoch that goes on the first ones, so many as are ``shown``, are not asked for again.
        """
        return rows[torch.randperm(len(rows), generator=generator)]

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, *, view: int, step: int, steps_per_epoch: int) -> Tensor:
        """Loss [B] of logits [B, C], or [B, L, C], for the examples with the given row numbers.

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
    until: int = 0,
) -> list[EpochRecord]:
    """Trains ``model`` in place; epoch e reads view e modulo V.

    The order of examples depends on ``training.seed`` alone, so the same seed on the same machine gives
    the same weights bit for bit, also when the run was killed and went on from its checkpoint. Private steps depend on
    nothing that is known, so they are never the same, and have no checkpoint.

    Args:
        model: Maps preprocessed inputs to logits [B, C], or [B, L, C] of examples that are answered at L positions.
        split: Training examples.
        loss: Loss of each example.
        training: Every setting.
        views: Which pixels epoch e shows.
        preprocessing: The model's own input scaling.
        rows: Train on these rows only (default: all).
        device: Where to train (default: CPU).
        evaluate: What an epoch's record has of validation rows, ``val_accuracy`` and ``val_nll`` at least, and where
            ``training`` selects by a measure ``val_selected``, of the model as it would be kept.
        checkpoint: Where the run is saved after every epoch, and between, and from where it goes on.
        on_epoch: Called after every epoch in process 0, restored ones first.
        workers: Threads that read and transform the next batches meanwhile; 0 does it in between.
        processes: Those that train the model together; process 0 evaluates and saves.
        until: Stop after this epoch, to go on later from the checkpoint; 0 trains to the end.

    Returns:
        One record an epoch; fewer than ``training.epochs`` when its patience is at an end, or ``until`` says so.

    Raises:
        Diverged: The loss or the weights are no longer finite.
        ValueError: The checkpoint belongs to another run.
    """
    device, processes = device or torch.device("cpu"), processes or Processes()
    tell = on_epoch if on_epoch is not None and processes.first else _nobody
    chosen = torch.arange(len(split)) if rows is None else torch.from_numpy(np.asarray(rows, dtype=np.int64))
    private = PrivateSteps(model, training, len(chosen)) if training.dp_sgd else None
    module = model if private is None else private.module
    forward, listener = _forward(module, training, preprocessing, processes, device, loss.places, images=split.is_image)
    labels = torch.from_numpy(split.labels)
    progress = Progress.start(model, training, device, processes, beside=loss.modules)
    if private is not None:
        private.attach(progress.optimizer, device)
    processes.seed(training.seed)
    if checkpoint is not None:
        checkpoint.restore(progress, training, processes)
    feed = Feed(
        *(split, views, training, processes),
        fit=preprocessing.fit,
        workers=workers,
        pinned=device.type == "cuda",
        least_rows=progress.least_rows,
    )
    feed.check(len(chosen))
    steps_per_epoch = feed.num_steps(len(chosen)) if private is None else private.num_steps
    augmentation = Augmentation(training, split.keys)
    for record in progress.history:
        tell(record)
    while not training.is_over(progress.history) and len(progress.history) < (until or training.epochs):
        epoch, under_way = len(progress.history), progress.under_way
        started = time.perf_counter() - under_way.seconds
        first_step = epoch * steps_per_epoch
        view = views.of_epoch(epoch)
        next_view = views.of_epoch(epoch + 1) if epoch + 1 < training.epochs else None
        shown = feed.num_shown(len(chosen), under_way.steps)
        order = loss.order(chosen, progress.order, view=view, next_view=next_view, shown=shown)
        model.train()
        batches = feed.batches(order) if private is None else private.draw(chosen)
        steps = feed.steps(batches[under_way.steps :], view)
        for step, (num_rows, passes) in enumerate(steps, first_step + under_way.steps):
            if private is None:
                progress.optimizer.zero_grad(set_to_none=True)
            else:
                private.zero_grad()
            for rows_B, samples in passes:
                logits_BC, captured = forward(samples, partial(augmentation.apply, rows_B=rows_B, epoch=epoch))
                ask = partial(loss, logits_BC, view=view, step=step, steps_per_epoch=steps_per_epoch, **captured)
                loss_B = augmentation.loss(ask, rows_B, epoch, mixes_answers=loss.mixes_answers)
                if private is None:
                    progress.backward(loss_B.sum() * processes.count / num_rows)  # processes average their gradients
                else:
                    private.backward(loss_B)
                under_way.sums += _counted(loss_B, logits_BC, labels[rows_B].to(device))
            if loss.modules is not None:
                processes.average_gradients(loss.modules)
            if private is not None:
                private.make_gradients()
            progress.step(training, step, steps_per_epoch)
            under_way.steps += 1
            if checkpoint is not None and checkpoint.is_due(step + 1) and under_way.steps < steps_per_epoch:
                under_way.notes.update(loss.notes())
                under_way.seconds = time.perf_counter() - started
                checkpoint.save(progress, training, processes)
        means = _means(processes.sum_(under_way.sums), max(sum(map(len, batches)), 1))
        progress.check_finite(means["loss"])
        validation = progress.validate(training, evaluate, processes)
        under_way.notes.update(loss.notes())
        notes = processes.sum_counts(under_way.notes, device)
        rate, seconds = training.learning_rate(first_step, steps_per_epoch), time.perf_counter() - started
        record = EpochRecord(epoch=epoch + 1, lr=rate, seconds=seconds, notes=notes, **means, **validation)
        progress.finish_epoch(record)
        if checkpoint is not None:
            checkpoint.save(progress, training, processes)
        tell(record)
    if private is not None:
        private.close()
    if listener is not None:
        listener.leave()
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
    places: Mapping[str, Place],
    *,
    images: bool,
) -> tuple[Forward, Featured | None]:
    """From samples on the CPU, and what changes them once they are scaled, to logits in training, and what is captured.

    Moves the model to its device, with its weights rounded, shared between processes and compiled as asked. Whoever
    captures at places has to leave them at the end.
    """
    memory = torch.channels_last if training.channels_last and images else torch.preserve_format
    precision = PRECISIONS[training.precision]
    model.to(device, memory_format=memory)  # type: ignore[call-overload]
    module = _Rounded(model, training.weight_bits) if training.weight_bits else model
    listener = Featured(module, places) if places else None
    module = processes.parallel(module if listener is None else listener, device)
    run = torch.compile(module) if training.compile else module

    def forward(samples: Tensor, change: Callable[[Tensor], Tensor]) -> tuple[Tensor, dict[str, Any]]:
        inputs = change(preprocessing(samples.to(device, non_blocking=True))).to(memory_format=memory)
        with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
            found: Any = run(inputs)
        return (found, {}) if listener is None else (found[0], {"captured": found[1]})

    return forward, listener


def _counted(loss_B: Tensor, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Sum of the losses, number of right answers, number of labels, of positions where there are: float32 [3]."""
    right_B = logits_BC.detach().argmax(dim=-1) == labels_B
    return torch.stack([loss_B.detach().sum().float(), right_B.sum().float(), (labels_B >= 0).sum().float()])


def _means(sums: Tensor, num_rows: int) -> dict[str, float]:
    """Of an epoch: the loss of its rows, and the share of right answers among the labelled."""
    sum_loss, num_right, num_labelled = sums.tolist()
    return {"loss": sum_loss / num_rows, "train_accuracy": num_right / max(num_labelled, 1.0)}
