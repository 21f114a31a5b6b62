"""How a teacher's forward passes are computed: precision, memory layout, compilation.

Shapes: B batch.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from logitbank.pipeline.spelling import unknown


class Precision(NamedTuple):
    """Its name in a store, and the type that autocast computes in."""

    name: str
    dtype: torch.dtype


PRECISIONS: dict[str, Precision] = {
    "fp32": Precision("float32", torch.float32),
    "bf16": Precision("bfloat16", torch.bfloat16),
    "fp16": Precision("float16", torch.float16),
}


@dataclass(frozen=True, kw_only=True)
class Compute:
    """Ways to run a network faster; logits are float32 afterwards.

    Attributes:
        precision: fp32, bf16 or fp16 (autocast); it is part of the teacher's identity, since it changes answers.
        channels_last: Convolutions in channels-last memory format.
        compile: ``torch.compile`` the network.
    """

    precision: str = "fp32"
    channels_last: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise ValueError(unknown("precision", self.precision, PRECISIONS))

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
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(device.type, dtype=PRECISIONS[self.precision].dtype)
