"""Weights on disk: safetensors with metadata that says where they come from; nothing is ever unpickled."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pipeline.whole_file import whole_file

METADATA_KEY = "logitbank"
TORCH_SUFFIXES = (".pt", ".pth", ".th")
_SHOWN_KEYS = 5


def save_weights(path: Path, model: nn.Module, metadata: Mapping[str, Any]) -> None:
    """Writes the state dict and its metadata (JSON) to a safetensors file, whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    blob = save(state, metadata={METADATA_KEY: json.dumps(dict(metadata), sort_keys=True, allow_nan=False)})
    with whole_file(path) as beside:
        beside.write_bytes(blob)


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that ``save_weights`` wrote; empty for weights from elsewhere."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY, "{}")
        metadata = json.loads(text)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: its {METADATA_KEY} metadata is not a JSON object")
    return metadata


def load_state(path: Path) -> dict[str, Tensor]:
    """State dict from safetensors, or from a ``.pt``/``.pth``/``.th`` file with ``weights_only=True``.

    Common wrappers are opened: a dict under ``state_dict`` or ``model``, and a ``module.`` prefix on every name.

    Raises:
        ValueError: Missing file, unknown suffix, or a file that holds anything but tensors by name.
    """
    if not path.is_file():
        raise ValueError(f"no weights at {path}; give a .safetensors or {', '.join(TORCH_SUFFIXES)} file")
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a readable safetensors file ({error})") from error
    if path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"{path}: unknown kind of weights; expected .safetensors or {', '.join(TORCH_SUFFIXES)}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a hostile or damaged file
        raise ValueError(f"{path}: not plain weights ({str(error).splitlines()[0]}); save a state dict") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path}: holds no state dict (tensors by name); save model.state_dict()")
    prefixed = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if prefixed else name: value for name, value in content.items()}


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, architecture: str, source: str) -> None:
    """Loads every tensor, or raises without changing the model.

    Raises:
        ValueError: Missing, unexpected or differently shaped tensors, all counted and some named.
    """
    own = model.state_dict()
    missing = [name for name in own if name not in state and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} {list(state[name].shape)} (expected {list(own[name].shape)})"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    faults = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN_KEYS])}{' ...' if len(names) > _SHOWN_KEYS else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
        if names
    ]
    if faults:
        raise ValueError(f"{source}: weights do not fit {architecture} ({'; '.join(faults)}); name the right model")
    model.load_state_dict({**own, **state})


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors: the identity of a model's weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
