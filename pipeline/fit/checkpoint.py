"""A run's state at the end of an epoch, in one safetensors file: nothing is pickled, nothing is half-written.

The file holds tensors by name (model, running average, best epoch, optimiser, random generators of every process)
and, as its metadata, JSON: the history so far, the scaler of float16, and the settings that the run was started with.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from logitbank.pipeline.described import completed
from logitbank.pipeline.fit.progress import Progress, State, random_state
from logitbank.pipeline.fit.training import EpochRecord, Training
from logitbank.pipeline.processes.together import Processes
from logitbank.stores.files import whole_file
from logitbank.stores.format.plain_json import parse_json

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)


class Checkpoint:
    """Saves a run after each epoch and restores it.

    Args:
        path: The file; it exists from the end of the first epoch on.
        about: What else decides the result, fit for JSON: a run about something else is refused.
    """

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None) -> None:
        self.path, self.about = path, json.loads(json.dumps(about or {}, allow_nan=False))

    def save(self, run: Progress, training: Training, processes: Processes) -> None:
        """Called by every process; the first writes, beside, and renames: a kill leaves the last whole checkpoint."""
        random = _of_all(random_state(run.device), processes, run.device)
        if not processes.first:
            return
        tensors = {
            **_prefixed("model", run.model.state_dict()),
            **_prefixed("average", run.average.state_dict() if run.average else {}),
            **_prefixed("best", run.best or {}),
            "random.order": run.order.get_state(),
        }
        for number, states in enumerate(random):
            tensors |= _prefixed(f"random.{number}", states)
        state = run.optimizer.state_dict()
        of_parameters, plain = _split("optimizer", state["state"])
        of_groups, plain_groups = _split("group", dict(enumerate(state["param_groups"])))  # some count steps there
        tensors |= of_parameters | of_groups
        content = {
            "training": training.attributes(),
            "about": self.about,
            "history": [asdict(record) for record in run.history],
            "optimizer": plain,
            "groups": plain_groups,
            "scaler": run.scaler.state_dict(),
        }
        # a tensor that shares memory with another, or is not contiguous, cannot be written as it is
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        blob = save(whole, metadata={"checkpoint": json.dumps(content, allow_nan=False)})
        with whole_file(self.path) as beside:
            beside.write_bytes(blob)

    def restore(self, run: Progress, training: Training) -> bool:
        """Puts the run where it was; False when there is no checkpoint.

        Raises:
            ValueError: A file that is damaged, or belongs to a run with other settings or another model.
        """
        if not self.path.exists():
            return False
        content, tensors = self._read()
        settings = completed(Training, content.get("training"))
        if settings != training.attributes() or content.get("about", {}) != self.about:
            raise ValueError(f"{self.path}: checkpoint of a run with other settings; choose another --out")
        if "groups" not in content:  # of the time before timm's optimisers
            raise ValueError(
                f"{self.path} is of an earlier version, whose stopped runs do not go on; remove it to start over"
            )
        try:
            run.model.load_state_dict(_within("model", tensors))
            found = _joined("group", tensors, content["groups"])
            own = run.optimizer.state_dict()["param_groups"]
            groups = [{**group, **found[index], "params": group["params"]} for index, group in enumerate(own)]
            state = _joined("optimizer", tensors, content["optimizer"])
            run.optimizer.load_state_dict({"state": state, "param_groups": groups})
        except _MALFORMED as error:
            fault = (str(error).splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{self.path}: checkpoint of another model ({fault}); choose another --out") from error
        try:
            if run.average:
                run.average.load_state_dict(_within("average", tensors))
            run.best = _within("best", tensors) or None
            run.scaler.load_state_dict(content["scaler"])
            run.history[:] = [EpochRecord(**record) for record in content["history"]]
            run.order.set_state(tensors["random.order"])
            states = _within(f"random.{run.number}", tensors)
            torch.set_rng_state(states["cpu"])
            if "cuda" in states and run.device.type == "cuda":
                torch.cuda.set_rng_state(states["cuda"], run.device)
        except _MALFORMED as error:
            raise self._unreadable(error) from error
        return True

    def _read(self) -> tuple[dict[str, Any], State]:
        try:
            with safe_open(self.path, framework="pt") as file:
                content = parse_json((file.metadata() or {})["checkpoint"], self.path)
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError, *_MALFORMED) as error:
            raise self._unreadable(error) from error
        if not isinstance(content, dict):
            raise self._unreadable("its metadata is no JSON object")
        return content, tensors

    def _unreadable(self, reason: object) -> ValueError:
        return ValueError(f"{self.path}: not a readable checkpoint ({reason}); remove it to start over")


def _of_all(states: State, processes: Processes, device: torch.device) -> list[State]:
    """The same states of every process."""
    gathered = {name: processes.gather(state, device) for name, state in states.items()}
    return [{name: found[number] for name, found in gathered.items()} for number in range(processes.count)]


def _prefixed(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {f"{prefix}.{name}": value for name, value in state.items()}


def _within(prefix: str, tensors: State) -> State:
    return {name.removeprefix(f"{prefix}."): value for name, value in tensors.items() if name.startswith(f"{prefix}.")}


def _split(prefix: str, entries: Mapping[int, Mapping[str, Any]]) -> tuple[State, dict[str, Any]]:
    """What an optimiser keeps of each parameter, or group: its tensors, and what is none; parameters stay away."""
    tensors, plain = State(), dict[str, Any]()
    for index, entry in entries.items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{prefix}.{index}.{name}"] = value
            elif name != "params":
                plain[f"{index}.{name}"] = value
    return tensors, plain


def _joined(prefix: str, tensors: State, plain: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """The inverse of ``_split``."""
    entries: dict[int, dict[str, Any]] = {}
    for name, value in {**plain, **_within(prefix, tensors)}.items():
        index, _, key = name.partition(".")
        entries.setdefault(int(index), {})[key] = value
    return entries
