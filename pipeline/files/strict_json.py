"""JSON as its standard has it: a number that is not finite is no number, and is named instead of written."""

import json
import math
from collections.abc import Mapping
from typing import Any


def to_json(content: Any, *, indent: int | None = None) -> str:
    """The content as JSON.

    Raises:
        ValueError: It holds a number that is not finite; the message says where.
    """
    try:
        return json.dumps(content, indent=indent, allow_nan=False)
    except ValueError as error:
        where = _not_finite(content, "")
        raise ValueError(f"expected finite numbers, found {where or error}") from error


def _not_finite(content: Any, where: str) -> str:
    """The first number that is not finite, as ``against_teacher.kl is nan``; empty without one."""
    if isinstance(content, float) and not math.isfinite(content):
        return f"{where or 'the number'} is {content}"
    if isinstance(content, Mapping):
        items = [(str(key), value) for key, value in content.items()]
    elif isinstance(content, list | tuple):
        items = [(str(index), value) for index, value in enumerate(content)]
    else:
        return ""
    found = (_not_finite(value, f"{where}.{key}" if where else key) for key, value in items)
    return next(filter(None, found), "")
