"""The order in which a student sees rows: decided once for a run, the same whatever its loss listens to.

Shapes: N examples.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.folder import SETTINGS, read_json


def decide_grouping(out: Path, answers: Answers, processes: Processes, device: torch.device) -> Grouping | None:
    """How a run shuffles: as it began, else as the memory budget allows; process 0 decides for all.

    Free memory differs from hour to hour and from machine to machine, and must not change a run that goes on.

    Raises:
        ValueError: What the run's folder says of it cannot be read.
    """
    found = answers.grouping
    if processes.first and (out / SETTINGS).exists():
        found = _recorded(out / SETTINGS)
    agreed = processes.from_first({} if found is None else asdict(found), ("block_rows", "num_blocks"), device)
    if not agreed.get("block_rows"):
        return None
    return Grouping(block_rows=int(agreed["block_rows"]), num_blocks=int(agreed["num_blocks"]))


def _recorded(path: Path) -> Grouping | None:
    settings = read_json(path)
    found = settings.get("grouping") if isinstance(settings, dict) else "nothing"
    if found is None:
        return None
    names = ("block_rows", "num_blocks")
    if not isinstance(found, dict) or any(type(found.get(name)) is not int or found[name] < 1 for name in names):
        raise ValueError(f"{path}: grouping is {found}; expected null, or block_rows and num_blocks; remove the run")
    return Grouping(block_rows=found["block_rows"], num_blocks=found["num_blocks"])


def order_warnings(grouping: Grouping | None, answers: Answers) -> list[str]:
    """What reading block by block means for the order of rows, or for the time that it takes."""
    lines = []
    if grouping is not None:
        lines.append(
            f"rows are read and shuffled in groups of {grouping.num_rows}"
            f" ({grouping.num_blocks} blocks), since a view of {_sizes(answers)} does not fit the memory budget"
        )
        labels_N = answers.parts[0].labels
        if len(torch.unique(labels_N[: grouping.block_rows])) < len(torch.unique(labels_N)) / 2:
            lines.append(
                "the first block holds fewer than half of the classes, so a group does too: cache a shuffled order,"
                " --data '...?shuffle=0', or raise --memory-budget"
            )
    held = answers.grouping
    if held is not None and (grouping is None or grouping.num_rows > held.num_rows):
        lines.append(
            f"the run goes on in the order that it began with, and the memory budget holds {held.num_rows} rows of it:"
            " blocks are read again and again; raise --memory-budget"
        )
    return lines


def _sizes(answers: Answers) -> str:
    return ", ".join(f"teacher {part.teacher.name!r} ({part.view_bytes / 1e9:.3g} GB)" for part in answers.parts)
