"""How a teacher's forward passes are computed: precision, memory layout, compilation.

Shapes: B batch.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from logitbank.pipeline import domains
from logitbank.pipeline.fit.optimizers import PRECISIONS


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Ways to run a network faster; logits are float32 afterwards.

    Attributes:
        precision: float32, bfloat16 or float16 (autocast); part of the identity, since it changes answers.
        channels_last: Convolutions in channels-last memory format.
        compile: ``torch.compile`` the network.
    """

    precision: str = "float32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        domains.PRECISIONS.check("--precision", self.precision)

    def prepare(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The network on its device, in evaluation mode."""
        model = model.to(device).eval()
        if self.channels_last:
            model = cast(Any, model).to(memory_format=torch.channels_last)
        return cast(nn.Module, torch.compile(model)) if self.compile else model

    def layout(self, inputs_B: Tensor) -> Tensor:
        """Preprocessed inputs as the network wants them in memory."""
        if self.channels_last and inputs_B.ndim == 4:
            return inputs_B.contiguous(memory_format=torch.channels_last)
        return inputs_B

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=PRECISIONS[self.precision])
