"""A file of weights, whoever wrote it: its state dicts, and what it holds besides."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from logitbank.pipeline.models.parts import Part, find_parts
from logitbank.pipeline.models.pickled import Made
from logitbank.pipeline.models.torch_files import TORCH_SUFFIXES, is_tensor, load_torch_file

_SHOWN_NAME = 60
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@dataclass(frozen=True)
class WeightFile:
    """A file of weights that was opened.

    Attributes:
        path: Where.
        parts: Dicts of tensors by name, by the keys that lead to them.
        beside: What the file holds besides, for people.
        read: Makes a tensor of an entry of a part; None for what is no tensor of a known kind.
    """

    path: Path
    parts: Mapping[str, Part]
    beside: tuple[str, ...]
    read: Callable[[Any], Tensor | None]

    def tensor(self, part: str, name: str) -> Tensor:
        made = self.parts[part][name]
        tensor = self.read(made)
        if tensor is None or tensor.dtype not in (*_FLOATS, *_INTEGERS):
            kind = tensor.dtype if tensor is not None else getattr(made, "name", type(made).__name__)
            raise ValueError(
                f"{self.path}: {printable(name)} is no plain tensor ({printable(str(kind).replace(' ', '.'))}); save"
                " model.state_dict() in floats"
            )
        return tensor


def open_weights(path: Path) -> WeightFile:
    """Opens safetensors, or what ``torch.save`` wrote, and finds the state dicts in it; reads their tensors when asked.

    Raises:
        ValueError: Missing file, unknown suffix, damaged, or without a dict of tensors by name.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; give a .safetensors or {', '.join(TORCH_SUFFIXES)} file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError, ValueError, RuntimeError, AttributeError) as error:
            raise ValueError(f"{path}: not a readable safetensors file ({one_line(error)})") from error
        return WeightFile(path, {"": state}, (), lambda tensor: tensor)
    if path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"{path}: unknown kind of weights; expected .safetensors or {', '.join(TORCH_SUFFIXES)}")
    saved = load_torch_file(path)
    parts = find_parts(saved.content, is_tensor)
    if not parts:
        what = saved.content.name.replace(" ", ".") if isinstance(saved.content, Made) else ""
        found = f"; it is one whole object, {printable(what)}" if what else ""
        raise ValueError(f"{path}: holds no state dict (tensors by name){found}; save model.state_dict()")
    beside = saved.content if isinstance(saved.content, dict) and "" not in parts else {}
    kept = {part.partition("/")[0] for part in parts}
    return WeightFile(path, parts, tuple(str(name) for name in beside if name not in kept), saved.tensor)


def printable(name: str) -> str:
    """A stranger's name, short and printable."""
    return ascii(name[:_SHOWN_NAME])[1:-1] + ("..." if len(name) > _SHOWN_NAME else "")


def one_line(error: Exception) -> str:
    """What a library said, in one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__
