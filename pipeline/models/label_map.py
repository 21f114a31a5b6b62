"""A picture's grid of class scores: what a network's head says of each place of the last feature map.

A linear head and an average commute: the mean of the scores is what the network answers. The average over a part of the
grid is its answer to that part, as far as places see little of their surroundings.

Shapes: B batch, C classes, D features, H x W places of the last feature map, G x G cells of the grid.

References:
    Yun, Oh, Heo, Han, Choe, Chun. Re-labeling ImageNet: From Single to Multi-Labels, from Global to Localized Labels.
    CVPR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logitbank.pipeline.models.features import PENULTIMATE, find_place


class LabelMap(nn.Module):
    """A network that answers a grid of scores, [B, G * G, C], row by row of the grid, instead of one answer.

    Args:
        name: What the user calls the network.
        model: In evaluation mode.
        grid: G.
        ask: Shows some examples to what it is given, and returns the answer.

    Raises:
        ValueError: The network's head does not read the average of a feature map, or G cells do not divide the map.
    """

    def __init__(self, name: str, model: nn.Module, grid: int, ask: Callable[[nn.Module], Any]) -> None:
        super().__init__()
        self.model, self.grid = model, grid
        head = find_place(name, model, PENULTIMATE, ask)[0].head
        assert head is not None  # penultimate features are what a linear layer reads
        self.head = head
        self._captured: Tensor | None = None
        layer, size = _last_map(name, model, head, ask)
        if any(side % grid for side in size):
            raise ValueError(
                f"--label-map is {grid}, but the last feature map of {name!r} has {size[0]} x {size[1]} places;"
                f" expected a number that divides both, such as {min(size)}"
            )
        layer.register_forward_hook(self._hear)

    def forward(self, inputs: Tensor) -> Tensor:
        """Inputs as the network takes them."""
        self.model(inputs)
        captured, self._captured = self._captured, None
        assert captured is not None  # it was captured once when the layer was found
        cells_BDGG = F.adaptive_avg_pool2d(captured, self.grid)
        scores_BLC: Tensor = self.head(cells_BDGG.flatten(2).transpose(1, 2))
        return scores_BLC

    def _hear(self, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._captured = output


def _last_map(
    name: str, model: nn.Module, head: nn.Linear, ask: Callable[[nn.Module], Any]
) -> tuple[nn.Module, tuple[int, int]]:
    """The layer whose output, averaged over its places, is what the head reads, and its size (H, W)."""
    maps: list[tuple[nn.Module, Tensor]] = []
    read: list[Tensor] = []

    def keep(layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim == 4 and output.shape[1] == head.in_features:
            maps.append((layer, output))

    hooks = [layer.register_forward_hook(keep) for layer in model.modules()]
    hooks.append(head.register_forward_pre_hook(lambda layer, inputs: read.append(inputs[0])))
    try:
        with torch.no_grad():
            ask(model)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, found in reversed(maps):
        mean_BD = found.mean((2, 3))
        if mean_BD.shape == read[-1].shape and torch.allclose(mean_BD, read[-1], rtol=1e-4, atol=1e-5):
            return layer, (int(found.shape[2]), int(found.shape[3]))
    raise ValueError(
        f"--label-map: the head of {name!r} does not read the average of a feature map, so there is no score of its"
        " places; take a network with global average pooling and one linear layer, such as resnet20"
    )
