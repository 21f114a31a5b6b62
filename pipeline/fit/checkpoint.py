"""A run's state between two steps, in one safetensors file: nothing is pickled, nothing is half-written.

The file holds tensors by name (model, what is trained beside it, running average, best epoch, optimiser, random
generators of every process) and, as its metadata, JSON: the history so far, how far the epoch under way is, the scaler
of float16, and the settings that the run was started with.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from logitbank.pipeline.described import completed
from logitbank.pipeline.fit.progress import Progress, State, UnderWay, random_state
from logitbank.pipeline.fit.training import EpochRecord, Training
from logitbank.pipeline.processes import LEAST_ROWS
from logitbank.pipeline.processes.together import Processes
from logitbank.stores.files import whole_file
from logitbank.stores.format.plain_json import parse_json

_MALFORMED = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError)


class Checkpoint:
    """Saves a run after each epoch, and between, and restores it, also in another number of processes.

    Args:
        path: The file; it exists from the first save on.
        about: What else decides the result, fit for JSON: a run about something else is refused.
        every: Saved after so many steps too; 0: at the end of each epoch alone.

    Attributes:
        counts: Once a run has begun or gone on: how many processes trained it, each time.
    """

    def __init__(self, path: Path, about: Mapping[str, Any] | None = None, *, every: int = 0) -> None:
        self.path, self.about, self.every = path, json.loads(json.dumps(about or {}, allow_nan=False)), every
        self.counts: list[int] = []

    def is_due(self, steps: int) -> bool:
        """Whether so many steps, of the whole run, are a place to save at."""
        return self.every > 0 and steps % self.every == 0

    def save(self, run: Progress, training: Training, processes: Processes) -> None:
        """Called by every process; the first writes, beside, and renames: a kill leaves the last whole checkpoint."""
        random = _of_all(random_state(run.device), processes, run.device)
        under_way = run.under_way
        sums = processes.gather(under_way.sums, run.device)
        notes = processes.sum_counts(under_way.notes, run.device)
        if not processes.first:
            return
        tensors = {
            **_prefixed("model", run.model.state_dict()),
            **_prefixed("beside", run.beside.state_dict() if run.beside else {}),
            **_prefixed("average", run.average.state_dict() if run.average else {}),
            **_prefixed("best", run.best or {}),
            "random.order": under_way.order,
            "sums": torch.stack(sums),
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
            "under_way": {"steps": under_way.steps, "notes": notes, "seconds": under_way.seconds},
            "processes": run.counts,
            "least_rows": run.least_rows,
        }
        # a tensor that shares memory with another, or is not contiguous, cannot be written as it is
        whole = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        blob = save(whole, metadata={"checkpoint": json.dumps(content, allow_nan=False)})
        with whole_file(self.path) as beside:
            beside.write_bytes(blob)

    def restore(self, run: Progress, training: Training, processes: Processes) -> None:
        """Puts the run where it was; does nothing when there is no checkpoint.

        Another number of processes shares the same batches out: sums are rounded otherwise, and processes after the
        first draw other random numbers.

        Raises:
            ValueError: A file that is damaged, or belongs to a run with other settings or another model.
        """
        self.counts = run.counts
        if not self.path.exists():
            return
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
            if run.beside:
                run.beside.load_state_dict(_within("beside", tensors))
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
            _restore_under_way(run, training, content, tensors, processes)
        except _MALFORMED as error:
            raise self._unreadable(error) from error
        self.counts = run.counts

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


def _restore_under_way(
    run: Progress, training: Training, content: Mapping[str, Any], tensors: State, processes: Processes
) -> None:
    """The epoch under way, and the random numbers of this process; what processes summed stays where it was, or
    process 0 has it all."""
    before = sum(name.startswith("random.") and name.endswith(".cpu") for name in tensors)
    counts = content.get("processes", [before])
    run.counts = counts if counts[-1] == processes.count else [*counts, processes.count]
    run.least_rows = content.get("least_rows", LEAST_ROWS * before)
    found = content.get("under_way", {"steps": 0, "notes": {}, "seconds": 0.0})
    sums = tensors.get("sums", torch.zeros(before, 3)).to(run.device)
    same, first = before == processes.count, processes.first
    run.under_way = UnderWay(
        order=tensors["random.order"],
        sums=sums[processes.number] if same else sums.sum(dim=0) * float(first),
        steps=int(found["steps"]),
        notes=Counter(found["notes"] if first else {}),
        seconds=float(found["seconds"]),
    )
    if not (same or first):
        processes.seed(training.seed, len(run.history), run.under_way.steps)
        return
    states = _within(f"random.{processes.number}", tensors)
    torch.set_rng_state(states["cpu"])
    if "cuda" in states and run.device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], run.device)


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
