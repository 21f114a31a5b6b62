"""Weights rounded to few bits, with a gradient that passes straight through."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

BUCKET = 256


def rounded(weight: Tensor, bits: int) -> Tensor:
    """The nearest of 2^bits evenly spaced values between the least and the largest weight of each bucket.

    The weights are taken in their order in buckets of 256, each with its own two float32 ends.

    References:
        Polino, Pascanu, Alistarh. Model Compression via Distillation and Quantization. ICLR 2018, section 2.
    """
    flat = weight.reshape(-1)
    padding = -len(flat) % BUCKET
    buckets = torch.cat([flat, flat[-1:].expand(padding)]).view(-1, BUCKET)
    low, high = buckets.amin(dim=1, keepdim=True), buckets.amax(dim=1, keepdim=True)
    step = ((high - low) / (2**bits - 1)).clamp(min=torch.finfo(weight.dtype).tiny)
    levels: Tensor = low + ((buckets - low) / step).round() * step
    return levels.view(-1)[: len(flat)].view_as(weight)


def rounded_parameters(model: nn.Module, bits: int) -> dict[str, Tensor]:
    """Rounded weights by name; the gradient passes straight through to the exact ones."""
    return {name: weight + (rounded(weight.detach(), bits) - weight).detach() for name, weight in _to_round(model)}


@torch.no_grad()
def round_in_place(model: nn.Module, bits: int) -> None:
    """Makes the model what it was in training: its matrices and kernels rounded."""
    for _, weight in _to_round(model):
        weight.copy_(rounded(weight, bits))


def weight_bytes(model: nn.Module, bits: int = 0) -> int:
    """Bytes of all parameters: 4 each, or packed in ``bits`` with two float32 a bucket where they are rounded."""
    total = sum(4 * parameter.numel() for parameter in model.parameters())
    if bits:
        for _, weight in _to_round(model):
            total += -4 * weight.numel() + -(-weight.numel() * bits // 8) + 8 * -(-weight.numel() // BUCKET)
    return total


def _to_round(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Matrices and kernels; biases and normalisation stay exact."""
    return ((name, parameter) for name, parameter in model.named_parameters() if parameter.ndim >= 2)
