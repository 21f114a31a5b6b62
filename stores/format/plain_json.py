"""JSON from elsewhere: read with bounds, so that what is nested too deep or is no finite number is refused at once."""

import json
import math
from typing import Any, NoReturn

from logitbank.stores.format.schema import StoreError

MAX_DEPTH = 64
MAX_INTEGER = 2**64


def parse_json(text: str | bytes, source: object) -> Any:
    """The value of a JSON text.

    Args:
        text: The text.
        source: What it was read from, for the error.

    Raises:
        StoreError: No JSON, NaN or infinity, integers of more than 64 bits, text that is no Unicode, or values nested
            deeper than ``MAX_DEPTH``.
    """
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        _check(value)
    except RecursionError:
        raise StoreError(f"{source}: expected plain JSON, found values nested too deep; fetch it again") from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise StoreError(f"{source}: expected plain JSON, found {reason}; fetch it again") from error
    return value


def _check(value: Any) -> None:
    """Raises ValueError for what JSON may hold and this program never writes."""
    level = [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.keys()
                below += item.values()
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                item.encode()
            elif isinstance(item, float) and not math.isfinite(item):
                raise ValueError("a number that is not finite")
            elif isinstance(item, int) and abs(item) > MAX_INTEGER:
                raise ValueError("an integer of more than 64 bits")
        if not below:
            return
        level = below
    raise ValueError(f"values nested deeper than {MAX_DEPTH}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name}, which is no number of JSON")
