"""Can a network read these examples: asked before anything is made, and answered in one line."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.datasets import Split
from pipeline.models.preprocessing import Preprocessing
from pipeline.views import Views


def check_network(
    name: str,
    model: nn.Module,
    split: Split,
    *,
    views: Views,
    preprocessing: Preprocessing,
    rows: npt.NDArray[np.integer] | None = None,
    device: torch.device | None = None,
) -> None:
    """Shows the network one or two examples, as it will see them.

    Args:
        name: What the user calls it.
        model: On ``device``; left as it was.
        split: The examples.
        views: How they are shown.
        preprocessing: Its input scaling.
        rows: Those that it may see (default: all).
        device: Where it is (default: CPU).

    Raises:
        ValueError: It cannot read them, or does not answer with a logit for each class.
    """
    shown = np.arange(min(2, len(split))) if rows is None else rows[:2]
    samples = torch.from_numpy(views.samples(split, shown, 0)).to(device or "cpu")
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = model(preprocessing(samples))
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError) as error:  # whatever layers raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        shape = " x ".join(str(size) for size in samples.shape[1:])
        raise ValueError(f"model {name!r} cannot read the examples of {split.spec}, {shape}: {reason}") from error
    finally:
        model.train(training)
    found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    expected = [len(samples), split.num_classes]
    if found != expected:
        raise ValueError(f"model {name!r} answers {found}; expected {expected}: examples, classes of {split.spec}")
