"""One pass cut into parts: which cells of the store this process writes.

Parts never talk to each other. Each writes its own share of the cells that are not committed yet; whoever
then finds every cell committed finishes the store.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from logitbank.pipeline.processes.torchrun import find_rank

_SPELLING = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Share ``number`` of ``num_parts``, counted from 0.

    Attributes:
        number: Which share.
        num_parts: How many there are.
        together: All parts were started together (torchrun), so that parts can wait for part 0.
        local: Which of this machine's processes this is; it takes the GPU of that number.
    """

    number: int = 0
    num_parts: int = 1
    together: bool = False
    local: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.num_parts:
            raise ValueError(
                f"part is {self.number}/{self.num_parts}; expected i/n with i from 0 to n - 1, such as 0/4"
            )


def find_part(text: str, environment: Mapping[str, str] = os.environ) -> Part:
    """The share that ``--part i/n`` names; without it, that of torchrun's RANK and WORLD_SIZE; else everything."""
    if text:
        match = _SPELLING.fullmatch(text)
        if match is None:
            raise ValueError(f"--part is {text!r}; expected i/n with i from 0 to n - 1, such as 0/4")
        return Part(number=int(match[1]), num_parts=int(match[2]))
    rank = find_rank(environment)
    if rank is None:
        return Part()
    return Part(number=rank.number, num_parts=rank.count, together=True, local=rank.local)
