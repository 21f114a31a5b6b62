"""A model's answers in evaluation mode. Shapes: N examples, L positions, C classes."""

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.fit.training import EVAL_BATCH_SIZE
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.views import Views

Rows = npt.NDArray[np.integer]
_HELD_NUMBERS = 2**24  # logits of a forward pass


class Diverged(ValueError):
    """Training, or what came of it, is no longer finite."""


def predict(
    model: nn.Module,
    split: Split,
    *,
    preprocessing: Preprocessing,
    device: torch.device | None = None,
    rows: Rows | None = None,
    views: Views | None = None,
    batch_size: int = EVAL_BATCH_SIZE,
    workers: int = 0,
) -> Tensor:
    """Logits of the given rows (default: all), float32 [N, C] or [N, L, C] on the CPU, in evaluation mode.

    The examples are shown as they are, or as the first of ``views`` shows them.

    Args:
        model: Maps preprocessed inputs to logits.
        split: The examples.
        preprocessing: The model's input scaling.
        device: Where to run it (default: CPU).
        rows: Which examples.
        views: How they are shown.
        batch_size: Examples of a forward pass; it changes speed, and rounding. Of examples with positions fewer, when
            their logits are many.
        workers: Threads that read the next batches meanwhile; 0 reads in between.

    Raises:
        Diverged: Some answers are not finite.
    """
    preprocessing = preprocessing.on(split)
    device = device or torch.device("cpu")
    model.to(device).eval()
    chosen = np.arange(len(split)) if rows is None else rows
    if split.positions is not None:
        batch_size = min(batch_size, max(1, _HELD_NUMBERS // (split.positions * split.num_classes)))
    parts = [chosen[start : start + batch_size] for start in range(0, len(chosen), batch_size)]
    with torch.inference_mode():
        shown = partial(_samples, split, views or Views(), preprocessing, device.type == "cuda")
        samples = (part.to(device, non_blocking=True) for part in in_order(shown, parts, workers))
        logits_NC = torch.cat([model(preprocessing(part)).float().cpu() for part in samples])
    wrong_N = ~logits_NC.isfinite().flatten(1).all(dim=1)
    if wrong_N.any():
        raise Diverged(
            f"the model's answers are not finite on {int(wrong_N.sum())} of {len(wrong_N)} examples: training"
            " diverged; lower --lr or the loss's weights, in a new --out"
        )
    return logits_NC


def _samples(split: Split, views: Views, preprocessing: Preprocessing, pinned: bool, rows: Rows) -> Tensor:
    samples = torch.from_numpy(views.samples(split, rows, 0, preprocessing.fit))
    return samples.pin_memory() if pinned else samples
