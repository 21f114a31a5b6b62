"""The one training loop, for teachers and students alike: data and loss are arguments.

Shapes: B batch, C classes, N examples.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.fit.checkpoint import Checkpoint, Run, random_state
from logitbank.pipeline.fit.optimizers import OPTIMIZERS, PRECISIONS
from logitbank.pipeline.fit.training import EpochRecord, Training
from logitbank.pipeline.fit.weights import round_in_place, rounded_parameters, running_average
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.processes import LEAST_ROWS
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.views import Views

EVALUATION_BATCH = 500
VALIDATION = ("val_accuracy", "val_nll")

Rows = npt.NDArray[np.integer]
Evaluate = Callable[[nn.Module], Mapping[str, float]]


class Diverged(ValueError):
    """Training, or what came of it, is no longer finite."""


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
        evaluate: ``val_accuracy`` and ``val_nll`` of the model as it would be kept, after every epoch.
        checkpoint: Where the run is saved after every epoch, and from where it goes on.
        on_epoch: Called after every epoch in process 0, restored ones first.
        workers: Threads that read and transform the next batches meanwhile; 0 does it in between.
        processes: Those that train the model together; process 0 evaluates and saves.

    Returns:
        One record an epoch.

    Raises:
        Diverged: The loss or the weights are no longer finite.
        ValueError: The checkpoint belongs to another run.
    """
    device, processes = device or torch.device("cpu"), processes or Processes()
    memory = torch.channels_last if training.channels_last and split.is_image else torch.preserve_format
    precision = PRECISIONS[training.precision]
    model.to(device, memory_format=memory)  # type: ignore[call-overload]
    forward = _forward(model, training, processes, device)
    chosen = torch.arange(len(split)) if rows is None else torch.from_numpy(np.asarray(rows, dtype=np.int64))
    labels = torch.from_numpy(split.labels)
    processes.check(training.batch_size, len(chosen))
    least = LEAST_ROWS * processes.count
    steps_per_epoch = len(_batches(chosen, training.batch_size, least))
    run = Run(
        model=model,
        optimizer=OPTIMIZERS[training.optimizer](model.parameters(), training),
        scaler=GradScaler(device.type, enabled=precision is torch.float16),
        order=torch.Generator().manual_seed(training.seed),
        average=running_average(model, training.ema_decay) if training.ema_decay else None,
        history=[],
        device=device,
        number=processes.number,
    )
    processes.seed(training.seed)
    if checkpoint is not None:
        checkpoint.restore(run, training)
    for record in run.history if on_epoch is not None and processes.first else ():
        on_epoch(record)  # type: ignore[misc]
    for epoch in range(len(run.history), training.epochs):
        started = time.perf_counter()
        view = views.of_epoch(epoch)
        next_view = views.of_epoch(epoch + 1) if epoch + 1 < training.epochs else None
        model.train()
        sums = torch.zeros(3, device=device)
        sum_loss, num_correct, num_labelled = sums
        batches = _batches(loss.order(chosen, run.order, view=view, next_view=next_view), training.batch_size, least)
        passes = [_passes(processes.share(rows), training.accumulate) for rows in batches]
        shown = partial(_samples, split, views, view, device)
        samples = in_order(shown, list(chain.from_iterable(passes)), workers)
        for step, (step_rows, step_passes) in enumerate(zip(batches, passes, strict=True), epoch * steps_per_epoch):
            for group in run.optimizer.param_groups:
                group["lr"] = training.learning_rate(step, steps_per_epoch)
            run.optimizer.zero_grad(set_to_none=True)
            for rows_B in step_passes:
                inputs = preprocessing(next(samples).to(device, non_blocking=True)).to(memory_format=memory)
                with torch.autocast(device.type, precision, enabled=precision is not torch.float32):
                    logits_BC = forward(inputs)
                loss_B = loss(logits_BC, rows_B, view=view, step=step, steps_per_epoch=steps_per_epoch)
                share = loss_B.sum() * processes.count / len(step_rows)  # gradients are averaged over processes
                run.scaler.scale(share).backward()  # type: ignore[no-untyped-call]
                sum_loss += loss_B.detach().sum()
                labels_B = labels[rows_B].to(device)
                num_correct += (logits_BC.detach().argmax(dim=-1) == labels_B).sum()
                num_labelled += (labels_B >= 0).sum()
            if training.grad_clip:
                run.scaler.unscale_(run.optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), training.grad_clip)
            run.scaler.step(run.optimizer)
            run.scaler.update()
            if run.average is not None:
                run.average.update_parameters(model)
        processes.sum_(sums)
        mean_loss = float(sum_loss) / len(chosen)
        _check_finite(model, mean_loss, epoch + 1)
        validation = _evaluate(run, training, evaluate) if processes.first else {}
        if evaluate is not None:
            validation = processes.from_first(validation, VALIDATION, device)
        record = EpochRecord(
            epoch=epoch + 1,
            loss=mean_loss,
            train_accuracy=float(num_correct) / max(float(num_labelled), 1.0),
            lr=training.learning_rate(epoch * steps_per_epoch, steps_per_epoch),
            seconds=time.perf_counter() - started,
            notes=_summed(loss.notes(), processes, device),
            **validation,
        )
        run.history.append(record)
        if checkpoint is not None:
            run.random = _of_all(random_state(device), processes, device)
            if processes.first:
                checkpoint.save(run, training)
        if on_epoch is not None and processes.first:
            on_epoch(record)
    model.load_state_dict(_kept(run, training))
    return run.history


def _check_finite(model: nn.Module, mean_loss: float, epoch: int) -> None:
    found = f"the loss is {mean_loss}" if not math.isfinite(mean_loss) else ""
    if not found and not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        found = "weights are no longer finite"
    if found:
        raise Diverged(f"training diverged, {found} in epoch {epoch}; lower --lr or the loss's weights, in a new --out")


def _summed(notes: dict[str, int], processes: Processes, device: torch.device) -> dict[str, int]:
    """The counts over all processes."""
    counts = torch.tensor([notes[name] for name in sorted(notes)], dtype=torch.int64, device=device)
    if notes:
        processes.sum_(counts)
    return dict(zip(sorted(notes), counts.tolist(), strict=True))


def _of_all(states: dict[str, Tensor], processes: Processes, device: torch.device) -> list[dict[str, Tensor]]:
    """The same states of every process."""
    gathered = {name: processes.gather(state, device) for name, state in states.items()}
    return [{name: found[number] for name, found in gathered.items()} for number in range(processes.count)]


class _Rounded(nn.Module):
    """A model as it is with its weights rounded; gradients pass straight through to the exact ones."""

    def __init__(self, model: nn.Module, bits: int) -> None:
        super().__init__()
        self.model, self.bits = model, bits

    def forward(self, inputs: Tensor) -> Any:
        return torch.func.functional_call(self.model, rounded_parameters(self.model, self.bits), (inputs,))


def _forward(model: nn.Module, training: Training, processes: Processes, device: torch.device) -> nn.Module:
    """The model as it is run in training: with rounded weights, shared between processes, compiled."""
    module = _Rounded(model, training.weight_bits) if training.weight_bits else model
    module = processes.parallel(module, device)
    return cast(nn.Module, torch.compile(module)) if training.compile else module


def _samples(split: Split, views: Views, view: int, device: torch.device, rows_B: Tensor) -> Tensor:
    samples = torch.from_numpy(views.samples(split, rows_B.numpy(), view))
    return samples.pin_memory() if device.type == "cuda" else samples


def _passes(rows_B: Tensor, accumulate: int) -> tuple[Tensor, ...]:
    """The rows of each forward pass of a step; batch norm needs two."""
    return rows_B.tensor_split(min(accumulate, max(len(rows_B) // LEAST_ROWS, 1)))


def _kept(run: Run, training: Training) -> dict[str, Tensor]:
    """The state that training ends with: of the best epoch, or the running average, or the last; rounded if asked."""
    if run.best is not None:
        return run.best
    state = (run.model if run.average is None else run.average.module).state_dict()
    state = {name: value.detach().clone() for name, value in state.items()}
    if training.weight_bits:
        last = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
        run.model.load_state_dict(state)
        round_in_place(run.model, training.weight_bits)
        state = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
        run.model.load_state_dict(last)
    return state


def _evaluate(run: Run, training: Training, evaluate: Evaluate | None) -> dict[str, float]:
    """Validation measures of what would be kept now; remembers it when it is the best so far."""
    if evaluate is None:
        return {}
    last = {name: value.detach().clone() for name, value in run.model.state_dict().items()}
    best, run.best = run.best, None
    now = _kept(run, training)
    run.model.load_state_dict(now)
    measured = dict(evaluate(run.model))
    run.model.load_state_dict(last)
    if training.select == "best":
        run.best = now if measured["val_accuracy"] > run.best_accuracy else best
    return measured


def _batches(rows: Tensor, batch_size: int, least: int) -> list[Tensor]:
    """Batches of rows; a last one of fewer than ``least`` joins the batch before it."""
    batches = list(torch.split(rows, batch_size))
    if len(batches) > 1 and len(batches[-1]) < least:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def predict(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    device: torch.device | None = None,
    rows: Rows | None = None,
    views: Views | None = None,
) -> Tensor:
    """Logits of the given rows (default: all), float32 [N, C] on the CPU, in evaluation mode.

    The examples are shown as they are, or as the first of ``views`` shows them.

    Raises:
        Diverged: Some answers are not finite.
    """
    device = device or torch.device("cpu")
    model.to(device).eval()
    chosen = np.arange(len(split)) if rows is None else rows

    def answers() -> Iterator[Tensor]:
        for start in range(0, len(chosen), EVALUATION_BATCH):
            part = chosen[start : start + EVALUATION_BATCH]
            samples = split.samples[part] if views is None else views.samples(split, part, 0)
            yield model(preprocessing(torch.from_numpy(samples).to(device))).float().cpu()

    with torch.inference_mode():
        logits_NC = torch.cat(list(answers()))
    wrong_N = ~logits_NC.isfinite().all(dim=1)
    if wrong_N.any():
        raise Diverged(
            f"the model's answers are not finite on {int(wrong_N.sum())} of {len(wrong_N)} examples: training"
            " diverged; lower --lr or the loss's weights, in a new --out"
        )
    return logits_NC
