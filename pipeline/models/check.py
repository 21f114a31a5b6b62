"""Can a network read these examples: asked before anything is made, and answered in one line."""

from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.models.preprocessing import Preprocessing
from logitbank.pipeline.views import Views


def check_network(
    name: str,
    model: nn.Module,
    split: Split,
    *,
    views: Views,
    preprocessing: Preprocessing,
    rows: npt.NDArray[np.integer] | None = None,
    device: torch.device | None = None,
    to_train: bool = False,
) -> None:
    """Shows the network one or two examples, as it will see them.

    Args:
        name: What the user calls it.
        model: On ``device``; left as it was, unless it is to be trained.
        split: The examples.
        views: How they are shown.
        preprocessing: Its input scaling.
        rows: Those that it may see (default: all).
        device: Where it is (default: CPU).
        to_train: Also ask it as training will, with a backward pass; a network may answer otherwise then. Its batch
            statistics and random numbers move on.

    Raises:
        ValueError: It cannot read them, or does not answer with a logit for each class.
    """
    preprocessing = preprocessing.on(split)
    samples = shown(split, views, preprocessing, device, rows)
    training = model.training
    ask = partial(_answer, name, model, samples, preprocessing, split)
    try:
        model.eval()
        with torch.no_grad():
            ask("")
        if to_train:
            model.train()
            if not ask(" in training").requires_grad:
                raise ValueError(f"model {name!r} has nothing to train: its answers depend on no weight that does")
    finally:
        model.train(training)


def shown(
    split: Split,
    views: Views,
    preprocessing: Preprocessing,
    device: torch.device | None = None,
    rows: npt.NDArray[np.integer] | None = None,
) -> Tensor:
    """One or two examples of the first view on a device, of some rows or of all, before they are scaled."""
    some = np.arange(min(2, len(split))) if rows is None else rows[:2]
    return torch.from_numpy(views.samples(split, some, 0, preprocessing.fit)).to(device or "cpu")


def _answer(
    name: str, model: nn.Module, samples: Tensor, preprocessing: Preprocessing, split: Split, when: str
) -> Tensor:
    """Logits [B, C], or [B, L, C] of L positions; ValueError says what came instead."""
    try:
        logits = model(preprocessing(samples))
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:  # whatever layers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        shape = " x ".join(str(size) for size in samples.shape[1:])
        raise ValueError(f"model {name!r} cannot read the examples of {split.spec}{when}, {shape}: {reason}") from error
    found = f"{list(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
    each = [] if split.positions is None else [split.positions]
    expected = [len(samples), *each, split.num_classes]
    if not isinstance(logits, Tensor) or list(logits.shape) != expected:
        places = "positions, " if each else ""
        raise ValueError(
            f"model {name!r} answers {found}{when}; expected {expected}: examples, {places}classes of {split.spec}"
        )
    if not logits.is_floating_point():
        raise ValueError(f"model {name!r} answers {logits.dtype}{when}; expected logits, floating numbers")
    return logits
