"""How a teacher's forward passes are computed: precision, memory layout, compilation.

Shapes: B batch.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
from torch import Tensor, nn

from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.fit.optimizers import PRECISIONS


def prepare(model: nn.Module, device: torch.device, compute: Compute) -> nn.Module:
    """The network on its device, in evaluation mode."""
    model = model.to(device).eval()
    if compute.channels_last:
        model = cast(Any, model).to(memory_format=torch.channels_last)
    return cast(nn.Module, torch.compile(model)) if compute.compile else model


def layout(inputs_B: Tensor, compute: Compute) -> Tensor:
    """Preprocessed inputs as the network wants them in memory."""
    if compute.channels_last and inputs_B.ndim == 4:
        return inputs_B.contiguous(memory_format=torch.channels_last)
    return inputs_B


def autocast(device: torch.device, compute: Compute) -> AbstractContextManager[Any]:
    """The context of a forward pass."""
    if compute.precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=PRECISIONS[compute.precision])
