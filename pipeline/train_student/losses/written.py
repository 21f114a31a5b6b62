"""How parts are written one after the other: ``NAME?OPTION=VALUE&OPTION=VALUE:WEIGHT + file.py:function``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

_IN_FILE = re.compile(r"(?P<name>.+\.py:[A-Za-z_]\w*)\s*(?:\?(?P<options>[^:]*))?(?::(?P<weight>.*))?")


class Written(NamedTuple):
    """A part as it is written: NAME, NAME:WEIGHT, or NAME?OPTION=VALUE&OPTION=VALUE:WEIGHT."""

    name: str
    options: str | None
    weight: str | None

    @property
    def spelled(self) -> str:
        """The name, of a function without the folder of its file: the same on every machine."""
        file, colon, function = self.name.rpartition(":")
        return f"{Path(file).name}{colon}{function}" if _IN_FILE.fullmatch(self.name) else self.name

    def read_options(self) -> dict[str, str]:
        """What the text sets.

        Raises:
            ValueError: An option twice, or without a value.
        """
        found: dict[str, str] = {}
        for pair in [] if self.options is None else self.options.split("&"):
            key, equals, value = (piece.strip() for piece in pair.partition("="))
            if not (key and equals and value) or key in found:
                raise ValueError(f"{self.name}?{self.options}: expected each option once, as {self.name}?temperature=2")
            found[key] = value
        return found


def split_parts(text: str) -> list[Written]:
    """The parts of a text, which stand between "+"."""
    parts: list[Written] = []
    for part in text.split("+"):
        if own := _IN_FILE.fullmatch(part.strip()):
            parts.append(Written(own["name"], own["options"], own["weight"]))
            continue
        head, colon, weight = (piece.strip() for piece in part.partition(":"))
        name, mark, options = (piece.strip() for piece in head.partition("?"))
        parts.append(Written(name, options if mark else None, weight if colon else None))
    return parts


def own_names(text: str) -> list[str]:
    """What in a text names a function of a file."""
    return [written.name for written in split_parts(text) if _IN_FILE.fullmatch(written.name)]
