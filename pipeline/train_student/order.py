"""The order in which a student sees rows: decided once for a run, the same whatever its loss.

Shapes: N examples.
"""

from dataclasses import asdict
from pathlib import Path

import torch

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.folder import SETTINGS, read_json


def decide_grouping(
    out: Path, answers: Answers, split: Split, processes: Processes, device: torch.device
) -> Grouping | None:
    """How a run shuffles: as it began, else as the memory budget and the disk allow; process 0 decides for all.

    Free memory differs from hour to hour and from machine to machine, and must not change a run that goes on.

    Raises:
        ValueError: What the run's folder says of it cannot be read.
    """
    found = _held_together(answers.grouping, split.near)
    if processes.first and (out / SETTINGS).exists():
        found = _recorded(out / SETTINGS)
    agreed = processes.from_first({} if found is None else asdict(found), ("block_rows", "num_blocks"), device)
    if not agreed.get("block_rows"):
        return None
    return Grouping(block_rows=int(agreed["block_rows"]), num_blocks=int(agreed["num_blocks"]))


def _held_together(held: Grouping | None, near: tuple[int, int] | None) -> Grouping | None:
    """Blocks of the answers, or shards that lie elsewhere; where both are few, as many blocks as both hold."""
    if near is None:
        return held
    block_rows, num_blocks = near
    if held is None:
        return Grouping(block_rows=block_rows, num_blocks=num_blocks)
    most = max(1, block_rows * num_blocks // held.block_rows)
    return Grouping(block_rows=held.block_rows, num_blocks=min(held.num_blocks, most))


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
        because = f"a view of {_sizes(answers)} does not fit the memory budget"
        if answers.grouping is None:
            because = "the data's shards lie elsewhere and do not fit together on this disk (LOGITBANK_SHARDS_GB)"
        group = f"{grouping.num_rows} ({grouping.num_blocks} blocks)"
        lines.append(f"rows are read and shuffled in groups of {group}, since {because}")
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
