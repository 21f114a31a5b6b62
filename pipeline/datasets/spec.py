"""The text that names data, ``SOURCE[:NAME][?option=value&...]``: read, written, and the domains of its options."""

import logging
import re
from collections.abc import Iterable, Mapping
from urllib.parse import unquote

from logitbank.pipeline.spelling import unknown

_QUOTED = {"%": "%25", "&": "%26"}
_WHOLE = re.compile(r"-?\d+\.0*")
MAX_DIGITS = 18
_log = logging.getLogger(__name__)


def parse(spec: str) -> tuple[str, str, dict[str, str]]:
    """Source, name and options; ``%26`` in a value is ``&``.

    Raises:
        ValueError: An option that is given twice or has no value.
    """
    head, _, query = spec.partition("?")
    kind, _, name = head.partition(":")
    options: dict[str, str] = {}
    for part in filter(None, query.split("&")):
        option, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"data {spec!r}: option {option!r} has no value; write {option}=VALUE")
        if option in options:
            raise ValueError(f"data {spec!r}: option {option!r} is given twice; give it once")
        options[option] = unquote(value)
    return kind, name, options


def spell(kind: str, name: str, options: Mapping[str, str]) -> str:
    """The spec that ``parse`` reads back."""
    query = "&".join(f"{option}={_quote(value)}" for option, value in options.items())
    head = f"{kind}:{name}" if name else kind
    return f"{head}?{query}" if query else head


def said(options: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """The options that differ from their defaults (a missing default is empty)."""
    return {name: value for name, value in options.items() if value != defaults.get(name, "")}


def read_whole(spec: str, option: str, text: str, low: int, high: int, what: str) -> int:
    """A whole number from low to high.

    Raises:
        ValueError: Anything else.
    """
    number = int(text) if text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS else low - 1
    if not low <= number <= high:
        raise ValueError(f"{spec}: {option} is {text!r}; expected {what}")
    return number


def read_flag(spec: str, option: str, text: str) -> bool:
    """1 or 0."""
    return read_one(spec, option, text, ("0", "1")) == "1"


def read_one(spec: str, option: str, text: str, allowed: Iterable[str]) -> str:
    """One of a few words.

    Raises:
        ValueError: Another word.
    """
    words = tuple(allowed)
    if text not in words:
        raise ValueError(f"{spec}: {option} is {text!r}; expected {' or '.join(words)}")
    return text


def check_split(spec: str, split: str) -> None:
    """Raises ValueError for a split that is neither "train" nor "test"."""
    if split not in ("train", "test"):
        raise ValueError(f"{spec}: no split {split!r}; use split=train or split=test")


def check_options(spec: str, options: Iterable[str], allowed: Iterable[str]) -> None:
    """Raises ValueError for an option that is not among those allowed."""
    known = tuple(allowed)
    for option in options:
        if option not in known:
            raise ValueError(f"data {spec!r}: {unknown('option', option, known)}")


def shown(texts: Iterable[object], most: int = 5) -> str:
    """A few texts in one line, printable whatever they hold, with their number when they are more."""
    listed = [ascii(str(text))[1:-1] if not str(text).isprintable() else str(text) for text in texts]
    return ", ".join(listed[:most]) + (f" ... ({len(listed)} in all)" if len(listed) > most else "")


def canonical(text: str) -> str:
    """``1`` for ``1.0``, and every other text as it is."""
    return text.partition(".")[0] if _WHOLE.fullmatch(text) else text


def tell(message: str) -> None:
    """Says what the user should know of the data that is read; on stderr unless the program listens to logging."""
    _log.warning("warning: %s", message)


def _quote(value: str) -> str:
    return "".join(_QUOTED.get(letter, letter) for letter in value)
