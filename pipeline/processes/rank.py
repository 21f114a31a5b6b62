"""Which of several processes this is: as torchrun says, or as somebody who starts them by hand does."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

_SPELLING = re.compile(r"(\d{1,6})/(\d{1,6})")


@dataclass(frozen=True, kw_only=True)
class Rank:
    """This process among those that work on one thing; alone by default.

    Attributes:
        number: Which process, from 0.
        count: How many there are.
        local: Which of this machine's processes; it takes the GPU of that number.
        together: torchrun started them together, so that the others can wait for process 0.
    """

    number: int = 0
    count: int = 1
    local: int = 0
    together: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.count:
            raise ValueError(f"part is {self.number}/{self.count}; expected i/n with i from 0 to n - 1, such as 0/4")

    @classmethod
    def find(cls, part: str = "", environment: Mapping[str, str] = os.environ) -> Self:
        """As ``part``, i/n, says; without it as torchrun does, by RANK and WORLD_SIZE; else one process alone."""
        if part:
            match = _SPELLING.fullmatch(part)
            if match is None:
                raise ValueError(f"--part is {part!r}; expected i/n with i from 0 to n - 1, such as 0/4")
            return cls(number=int(match[1]), count=int(match[2]))
        if "RANK" not in environment or "WORLD_SIZE" not in environment:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK" if "LOCAL_RANK" in environment else "RANK")
        for name in names:
            if not re.fullmatch(r"\d{1,6}", environment[name]):
                raise ValueError(
                    f"the environment has {name}={environment[name]!r}; expected a number, as torchrun sets; unset it"
                )
        number, count, local = (int(environment[name]) for name in names)
        return cls(number=number, count=count, local=local, together=True)

    @property
    def first(self) -> bool:
        return self.number == 0
