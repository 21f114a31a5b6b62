"""Weights on disk: safetensors with metadata that says where they come from; nothing is ever unpickled."""

import base64
import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from logitbank.pipeline.datasets.spec import shown
from logitbank.pipeline.models.head import advice, new_in_head, say_new
from logitbank.pipeline.models.parts import SEPARATOR, Choice, choose, others_that_fit
from logitbank.pipeline.models.trees import TreeEnsemble
from logitbank.pipeline.models.weight_files import WeightFile, one_line, open_weights, printable
from logitbank.stores.files import whole_file
from logitbank.stores.format.plain_json import parse_json

METADATA_KEY = "logitbank"
TRAINING_KEYS = "logitbank.training_keys"
KEYS_COMPLETE = "training_keys_complete"  # in the metadata: the weights have seen no other examples
KEY_SPACE = "training_keys_of"  # in the metadata: what the keys are hashes of, see ``Split.key_space``
MAX_METADATA = 2**20  # characters
MAX_TRAINING_KEYS = 8 * 2**20  # a safetensors header has at most 100 MB

Keys = npt.NDArray[np.uint64]

_SHOWN_KEYS = 5


def save_weights(
    path: Path,
    model: nn.Module,
    metadata: Mapping[str, Any],
    training_keys: Keys | None = None,
    *,
    complete: bool = True,
) -> None:
    """Writes the state dict and its metadata to a safetensors file, whole or not at all.

    Args:
        path: The file.
        model: Whose weights.
        metadata: Where they come from, fit for JSON.
        training_keys: Content keys of the examples that the weights were trained on; not written when they are more
            than ``MAX_TRAINING_KEYS``.
        complete: They have seen no others: they did not start from weights with a history of their own.
    """
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    state |= {name: state[name].clone() for group in tied(state) for name in group[1:]}  # the format shares no memory
    said, texts = dict(metadata), {}
    if training_keys is not None and len(keys := np.unique(training_keys)) <= MAX_TRAINING_KEYS:
        said[KEYS_COMPLETE] = complete
        texts[TRAINING_KEYS] = base64.b64encode(keys.astype("<u8").tobytes()).decode()
    texts[METADATA_KEY] = json.dumps(said, sort_keys=True, allow_nan=False)
    blob = _in_order(save(state, metadata=texts))
    with whole_file(path) as beside:
        beside.write_bytes(blob)


def _in_order(blob: bytes) -> bytes:
    """A safetensors file with its metadata sorted: the library leaves their order to chance."""
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + blob[8 + size :]


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that ``save_weights`` wrote; empty for weights from elsewhere."""
    text = _texts(path).get(METADATA_KEY, "{}")
    if len(text) > MAX_METADATA:
        raise ValueError(f"{path}: its {METADATA_KEY} metadata has {len(text)} characters, more than {MAX_METADATA}")
    metadata = parse_json(text, f"{path}: {METADATA_KEY} metadata")
    if not isinstance(metadata, dict):
        raise ValueError(f"{path}: its {METADATA_KEY} metadata is not a JSON object")
    return metadata


def read_training_keys(path: Path) -> Keys | None:
    """Content keys of the examples that the weights were trained on, uint64, sorted; None where the file is silent."""
    text = _texts(path).get(TRAINING_KEYS)
    if text is None:
        return None
    try:
        packed = base64.b64decode(text, validate=True)
        keys = np.frombuffer(packed, "<u8").astype(np.uint64)
    except ValueError as error:
        raise ValueError(f"{path}: its {TRAINING_KEYS} are damaged ({error}); fetch it again") from error
    return np.unique(keys)


def _texts(path: Path) -> dict[str, str]:
    """The metadata texts of a safetensors file; empty for other files."""
    if path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(f"{path}: not a readable safetensors file ({one_line(error)})") from error


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What a network took from a file of weights.

    Attributes:
        state: The tensors, by the network's names.
        part: Which part of the file, as it is selected behind ``::``; empty when the file is a plain state dict.
        said: What people should know of it, in one line; empty where there was nothing to choose, and nothing new.
    """

    state: dict[str, Tensor]
    part: str
    said: str


def load_weights(
    model: nn.Module, path: Path, *, architecture: str, part: str = "", new_head: int | None = None
) -> Taken:
    """Loads a network's weights from a file of whoever trained it; ``parts`` says which part of it.

    Args:
        model: Takes every tensor, but for a new head's, or stays as it is.
        path: safetensors, or what ``torch.save`` wrote (``TORCH_SUFFIXES``), of which only tensors are made.
        architecture: For errors.
        part: Selects a part; empty takes the plain weights.
        new_head: The network's number of classes, where a file without its head, or with one for another number, is
            welcome: the network keeps its own, and ``Taken.said`` tells it. None takes no such file.

    Raises:
        ValueError: Missing or damaged file, no weights in it, or weights that do not fit.
    """
    file = open_weights(path)
    own = model.state_dict()
    said_once = _said_once(own, [inner for names in file.parts.values() for inner in names])
    own = {name: tensor for name, tensor in own.items() if name not in said_once}
    names = {name: tuple(inner) for name, inner in file.parts.items()}
    choice = choose(names, own, part, str(path))
    found = {name: file.tensor(choice.path, inner) for name, inner in choice.names.items()}
    new = [] if new_head is None else new_in_head(own, found, new_head)
    state = {name: tensor for name, tensor in found.items() if name not in new}
    whole = {**{name: own[name] for name in new}, **state}
    whole |= {name: whole[other] for name, other in said_once.items() if other in whole}
    load_into(model, whole, architecture=architecture, source=str(path))
    said = [_say(path, file, choice, others_that_fit(names, own, choice))]
    said += [f"{path}: {say_new(new, own, found)}"] if new else []
    return Taken(state=state, part=choice.spelled, said="; ".join(filter(None, said)))


def tied(state: Mapping[str, Tensor]) -> list[list[str]]:
    """Names of tensors that are one tensor, such as an embedding and the head that is tied to it."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel() and tensor.device.type != "meta":
            groups.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), []).append(name)
    return [names for names in groups.values() if len(names) > 1]


def _said_once(own: Mapping[str, Tensor], found: Collection[str]) -> dict[str, str]:
    """Names that a file lacks, since it has their tensor by another name -> that name."""
    missing: dict[str, str] = {}
    for group in tied(own):
        there = [name for name in group if any(each == name or each.endswith(f".{name}") for each in found)]
        missing |= {name: there[0] for name in group if there and name not in there}
    return missing


def load_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that holds one state dict, by the names that it gives them.

    Raises:
        ValueError: As for ``load_weights``, or several state dicts.
    """
    file = open_weights(path)
    if len(file.parts) > 1:
        raise ValueError(f"{path}: holds {len(file.parts)} state dicts ({shown(file.parts)}); expected one")
    ((part, names),) = file.parts.items()
    return {name: file.tensor(part, name) for name in names}


def _say(path: Path, file: WeightFile, choice: Choice, others: list[str]) -> str:
    if not choice.spelled:
        return ""
    where = f"the part {choice.path}" if choice.path else "the weights"
    text = f"{path}: took {where}"
    text += f", whose names begin with {printable(choice.prefix)}" if choice.prefix else ""
    if others:
        text += f"; {shown(map(printable, others))} would fit too: {path}{SEPARATOR}{printable(others[0])}"
    return text + (f"; did not read {shown(map(printable, file.beside), 8)}" if file.beside else "")


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, architecture: str, source: str) -> None:
    """Loads every tensor, or raises without changing the model, but for trees, which have the size of their file.

    Raises:
        ValueError: Tensors that are missing, unexpected, of another shape, or integers for floats, all counted and
            some named.
    """
    if isinstance(model, TreeEnsemble):
        model.resize(state)
    own = model.state_dict()
    both = [name for name in own if name in state]
    faults = {
        "missing": [name for name in own if name not in state and not name.endswith("num_batches_tracked")],
        "unexpected": [printable(name) for name in state if name not in own],
        "of another shape": [
            f"{name} {list(state[name].shape)} (expected {list(own[name].shape)})"
            for name in both
            if state[name].shape != own[name].shape
        ],
        "of another kind of number": [
            f"{name} {state[name].dtype} (expected {own[name].dtype})"
            for name in both
            if state[name].is_floating_point() != own[name].is_floating_point()
        ],
    }
    said = [
        f"{len(names)} {what}: {', '.join(names[:_SHOWN_KEYS])}{' ...' if len(names) > _SHOWN_KEYS else ''}"
        for what, names in faults.items()
        if names
    ]
    if said:
        others = len(said) > 1 or not faults["of another shape"]
        todo = "name the right model" if others else advice([(state[name], own[name]) for name in both])
        raise ValueError(f"{source}: weights do not fit {architecture} ({'; '.join(said)}); {todo}")
    model.load_state_dict({**own, **state})
    if isinstance(model, TreeEnsemble):
        try:
            model.settle()
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors: the identity of a model's weights."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
