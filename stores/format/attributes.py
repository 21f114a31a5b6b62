"""What the attributes of a store may hold: a stranger wrote them, and everything that reads them relies on this.

Attributes that no table names may hold any JSON. Of those below, only what says so has to be there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from logitbank.stores.format.schema import MAX_CLASSES, MAX_EXAMPLES, MAX_POSITIONS, MAX_VIEWS, StoreError


@dataclass(frozen=True)
class Whole:
    """A whole number in a range."""

    low: int
    high: int


@dataclass(frozen=True)
class Object:
    """An object with these entries; ``others``, if given, is the kind of all others."""

    entries: Mapping[str, Any]
    required: tuple[str, ...] = ()
    others: Any = None


@dataclass(frozen=True)
class Maybe:
    """Null, or this."""

    kind: Any


MAX_FOLDS = 2**16
NUMBER, TEXT, FLAG = float, str, bool
_COUNT = Whole(0, MAX_EXAMPLES)
_SEED = Whole(0, 2**64 - 1)

FOLDS = Object(
    {
        "num_folds": Whole(1, MAX_FOLDS),
        "strategy": Maybe(TEXT),
        "seed": Maybe(_SEED),
        "digest": Maybe(TEXT),
        "proof": Maybe(TEXT),
    },
    ("num_folds",),
)
_MEASURES: dict[str, Any] = {
    "num_rows": _COUNT,
    "num_seen": _COUNT,
    "num_unknown": _COUNT,
    "accuracy": NUMBER,
    "nll": NUMBER,
    "nll_error": NUMBER,
    "ece": NUMBER,
    "reliability": [
        Object(
            {"count": _COUNT, "confidence": NUMBER, "accuracy": NUMBER}, required=("count", "confidence", "accuracy")
        )
    ],
}
_SEEN = Object(dict.fromkeys(("num_rows", "num_seen", "num_unknown"), _COUNT), ("num_rows", "num_seen", "num_unknown"))
_LEAK = Object({"fold": Whole(0, MAX_FOLDS)}, ("fold",), NUMBER)

ROOT = Object(
    {
        "dataset": Object(
            {
                "num_examples": Whole(1, MAX_EXAMPLES),
                "num_classes": Whole(1, MAX_CLASSES),
                "num_positions": Whole(1, MAX_POSITIONS),
                "class_names": Maybe([TEXT]),
                **dict.fromkeys(("name", "split", "fingerprint", "fingerprint_unordered"), Maybe(TEXT)),
            },
            ("num_examples", "num_classes"),
        ),
        "views": Object(
            {
                "num_views": Whole(1, MAX_VIEWS),
                "transform": Maybe(TEXT),
                "seed": Maybe(_SEED),
                "code_sha256": Maybe(TEXT),
                "versions": Maybe(Object({}, others=Maybe(TEXT))),
            },
            ("num_views",),
        ),
        "folds": Maybe(FOLDS),
        "digest": TEXT,
        "documents": Object({}, others=TEXT),
    },
    ("dataset", "views"),
)
TEACHER = Object(
    {
        "identity": Object({"architecture": Maybe(TEXT), "precision": Maybe(TEXT)}),
        "encoding": Object({}),
        "arrays": Object({}, others=Object({"dtype": TEXT, "row_shape": [Whole(1, MAX_CLASSES)]}, ("row_shape",))),
        "folds": Maybe(FOLDS),
        "block_rows": Whole(1, MAX_EXAMPLES),
        "complete": FLAG,
        "fidelity": Object({}, others=Maybe(NUMBER)),
        "summary": Object(
            {
                **_MEASURES,
                "kind": TEXT,
                "seen": _SEEN,
                "per_fold": [Object(_MEASURES, ("num_rows",))],
                "leaks": [_LEAK],
                "measured_on": TEXT,
            }
        ),
        "digest": TEXT,
        "documents": Object({}, others=TEXT),
        "cells_sha256": TEXT,
    },
    ("identity", "encoding", "arrays", "block_rows", "complete", "fidelity", "summary"),
)


def check_attributes(attributes: Any, kind: Any, where: object, path: str = "") -> None:
    """Raises StoreError unless the attributes are of a kind.

    Args:
        attributes: As read from JSON.
        kind: Of the tables above: an ``Object``, a list of one kind, ``Maybe``, ``Whole``, or a type.
        where: The document, for the error.
        path: What leads to the value in it.
    """
    if isinstance(kind, Maybe):
        if attributes is not None:
            check_attributes(attributes, kind.kind, where, path)
    elif isinstance(kind, Object):
        if not isinstance(attributes, dict):
            raise _wrong(attributes, "an object", where, path)
        for name in kind.required:
            if name not in attributes:
                raise StoreError(f"{where}: {path or 'it'} lacks {name}; do not use this store")
        for name, value in attributes.items():
            inner = kind.entries.get(name, kind.others)
            if inner is not None:
                check_attributes(value, inner, where, f"{path}.{name}" if path else name)
    elif isinstance(kind, list):
        if not isinstance(attributes, list):
            raise _wrong(attributes, "a list", where, path)
        for number, value in enumerate(attributes):
            check_attributes(value, kind[0], where, f"{path}[{number}]")
    elif isinstance(kind, Whole):
        if type(attributes) is not int or not kind.low <= attributes <= kind.high:
            raise _wrong(attributes, f"{kind.low} to {kind.high}", where, path)
    elif kind is NUMBER:
        if type(attributes) not in (int, float):
            raise _wrong(attributes, "a number", where, path)
    elif type(attributes) is not kind:
        raise _wrong(attributes, {TEXT: "text", FLAG: "true or false"}[kind], where, path)


def _wrong(found: object, expected: str, where: object, path: str) -> StoreError:
    shown = ascii(str(found)[:50])[1:-1]
    return StoreError(f"{where}: {path[:100]} must be {expected}, found {shown}; do not use this store")
