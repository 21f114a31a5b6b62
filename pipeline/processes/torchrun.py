"""What torchrun tells the processes that it starts."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Rank:
    """This process among those that were started together.

    Attributes:
        number: Which process, from 0.
        count: How many there are.
        local: Which of this machine's processes; it takes the GPU of that number.
    """

    number: int
    count: int
    local: int


def find_rank(environment: Mapping[str, str] = os.environ) -> Rank | None:
    """The rank that torchrun gave this process in its environment; None when something else started it."""
    if "RANK" not in environment or "WORLD_SIZE" not in environment:
        return None
    rank = environment["RANK"]
    return Rank(int(rank), int(environment["WORLD_SIZE"]), int(environment.get("LOCAL_RANK", rank)))
