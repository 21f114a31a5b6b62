"""What an option of a loss or of a row rule may be: a default, a domain, and what must be chosen for it to matter.

Options are read here and nowhere else, so that a value outside its domain never reaches a loss.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

Value = float | bool | str

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_SWITCH = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


@dataclass(frozen=True)
class Interval:
    """Numbers between two finite ends, written as "[0, 1)".

    off: one more number, outside, that switches the option off. without: a number inside that would do nothing.
    """

    text: str
    off: float | None = None
    without: float | None = None
    low: float = field(init=False)
    high: float = field(init=False)

    def __post_init__(self) -> None:
        low, high = (float(end) for end in self.text[1:-1].split(","))
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def __contains__(self, number: float) -> bool:
        above = self.low <= number if self.text[0] == "[" else self.low < number
        below = number <= self.high if self.text[-1] == "]" else number < self.high
        return (above and below and number != self.without) or number == self.off

    def __str__(self) -> str:
        before = "" if self.off is None else f"{self.off:g} or "
        return before + self.text + ("" if self.without is None else f" but not {self.without:g}")

    def read(self, key: str, value: Value) -> float:
        """The number that a text or a number is."""
        text = str(value).strip()
        number = math.nan if isinstance(value, bool) or not _NUMBER.fullmatch(text) else float(text)
        if number not in self:
            raise ValueError(f"{key} is a number in {self}, not {value!r}")
        return number + 0.0  # -0 is 0


@dataclass(frozen=True)
class Words:
    """One of some words."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return ", ".join(self.words)

    def read(self, key: str, value: Value) -> str:
        """The word, checked."""
        if value not in self.words:
            raise ValueError(f"{key} is one of {self}, not {value!r}")
        return str(value)


@dataclass(frozen=True)
class Switch:
    """1 or 0."""

    def __str__(self) -> str:
        return "1 or 0"

    def read(self, key: str, value: Value) -> bool:
        """True or false, from 1, 0 or the words."""
        word = str(value).strip().lower().removesuffix(".0")
        if word not in _SWITCH:
            raise ValueError(f"{key} is 1 or 0, not {value!r}")
        return _SWITCH[word]


@dataclass(frozen=True)
class Like:
    """Anything of a default's type: all that is known of the option of a function that is not the table's."""

    default: Value

    def __str__(self) -> str:
        if isinstance(self.default, bool):
            return str(Switch())
        names = {int: "a whole number", float: "a number", str: "a text"}
        return names[type(self.default)]

    def read(self, key: str, value: Value) -> Value:
        """The value in the default's type."""
        if isinstance(self.default, bool):
            return Switch().read(key, value)
        text = str(value).strip()
        if isinstance(self.default, str):
            return text
        number = math.nan if isinstance(value, bool) or not _NUMBER.fullmatch(text) else float(text)
        if not math.isfinite(number) or (isinstance(self.default, int) and number != int(number)):
            raise ValueError(f"{key} is {self}, not {value!r}")
        return int(number) if isinstance(self.default, int) else number


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option: its default, its domain, the value of another option with which it does nothing, and what "auto"
    tries."""

    default: Value
    domain: Interval | Words | Switch | Like
    unless: tuple[str, Value] | None = None
    search: tuple[float, ...] = ()

    def read(self, key: str, value: Value) -> Value:
        """A value in the option's type, or "auto" where candidates are known.

        Raises:
            ValueError: Outside the domain; the message names it.
        """
        if self.search and value == "auto":
            return "auto"
        return self.domain.read(key, value)


def number(
    default: float,
    domain: str,
    *,
    off: float | None = None,
    without: float | None = None,
    unless: tuple[str, Value] | None = None,
    search: tuple[float, ...] = (),
) -> Option:
    """A number in an interval."""
    return Option(default=default, domain=Interval(domain, off, without), unless=unless, search=search)


def words(*known: str, unless: tuple[str, Value] | None = None) -> Option:
    """One of the words, the first by default."""
    return Option(default=known[0], domain=Words(known), unless=unless)


def switch(default: bool) -> Option:
    """1 or 0."""
    return Option(default=default, domain=Switch())


def defaults(options: Mapping[str, Option]) -> dict[str, Value]:
    """The default of every option."""
    return {key: option.default for key, option in options.items()}
