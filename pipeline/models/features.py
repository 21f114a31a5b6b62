"""What a network knows of an example: the features that its head reads, or what any layer gives.

Shapes: B batch, C classes, D features, H x W pixels of a map.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

PENULTIMATE = "penultimate"
"""The layer's name that means what the head reads."""


@dataclass(frozen=True)
class Place:
    """Where features are taken.

    Attributes:
        layer: What is listened to.
        reads: Its input; else its output.
    """

    layer: nn.Module
    reads: bool

    @property
    def head(self) -> nn.Linear | None:
        """The layer that makes the logits of these features by itself; None of another layer's."""
        return self.layer if self.reads and isinstance(self.layer, nn.Linear) else None


class Featured(nn.Module):
    """A network that also gives what its layers give at some places: logits [B, C], and tensors by the place's name.

    Features are [B, D]; of a map [B, D, H, W] the mean over its pixels.

    Args:
        model: The network, or what wraps it.
        places: Where in it, by name.
    """

    def __init__(self, model: nn.Module, places: Mapping[str, Place]) -> None:
        super().__init__()
        self.model = model
        self._captured: dict[str, Any] = {}
        self._hooks = [
            place.layer.register_forward_pre_hook(partial(self._hear_input, name))
            if place.reads
            else place.layer.register_forward_hook(partial(self._hear_output, name))
            for name, place in places.items()
        ]

    def forward(self, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Inputs as the network takes them."""
        logits_BC = self.model(inputs)
        captured, self._captured = self._captured, {}
        return logits_BC, {name: each.mean((2, 3)) if each.ndim == 4 else each for name, each in captured.items()}

    def leave(self) -> None:
        """Listens no longer: the network is as it was."""
        for hook in self._hooks:
            hook.remove()

    def _hear_input(self, name: str, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._captured[name] = inputs[0]

    def _hear_output(self, name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        self._captured[name] = output


def find_place(name: str, model: nn.Module, layer: str, ask: Callable[[nn.Module], Any]) -> tuple[Place, int]:
    """Where a network's features are taken, and their number D.

    Args:
        name: What the user calls the network.
        model: In evaluation mode.
        layer: "penultimate", what the linear layer reads whose output are the logits; or the name of a layer, whose
            output they are.
        ask: Shows some examples to what it is given, and returns the answer.

    Raises:
        ValueError: There is no such layer, or what it gives are no features.
    """
    reads = layer == PENULTIMATE
    place = Place(_head(name, model, ask) if reads else _named(name, model, layer), reads)
    featured = Featured(model, {layer: place})
    try:
        with torch.no_grad():
            found = ask(featured)[1][layer]
    except (KeyError, AttributeError, RuntimeError) as error:
        raise ValueError(f"layer {layer!r} of {name!r} gives no tensor of features; name another") from error
    finally:
        featured.leave()
    if found.ndim != 2 or not found.is_floating_point():
        raise ValueError(
            f"layer {layer!r} of {name!r} gives {found.dtype} {list(found.shape)}; expected features, floats [B, D] or"
            " [B, D, H, W]; name another"
        )
    return place, int(found.shape[1])


def _named(name: str, model: nn.Module, layer: str) -> nn.Module:
    layers: dict[str, nn.Module] = dict(model.named_modules())
    layers.pop("")
    if layer in layers:
        return layers[layer]
    near = difflib.get_close_matches(layer, [PENULTIMATE, *layers], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(list(layers)[-5:])}, among others"
    raise ValueError(f"{name!r} has no layer {layer!r}; {hint}")


def _head(name: str, model: nn.Module, ask: Callable[[nn.Module], Any]) -> nn.Linear:
    """The linear layer whose output are the logits."""
    made: list[tuple[nn.Linear, Any]] = []
    hooks = [
        layer.register_forward_hook(lambda layer, _, output: made.append((layer, output)))
        for layer in model.modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        with torch.no_grad():
            logits = ask(model)
    finally:
        for hook in hooks:
            hook.remove()
    for layer, output in made:
        if isinstance(output, Tensor) and output.shape == logits.shape and output.data_ptr() == logits.data_ptr():
            return layer
    raise ValueError(
        f"{name!r} has no linear layer whose output are its logits, so nothing says which features those are made of;"
        " name a layer"
    )
