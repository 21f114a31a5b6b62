"""The message for a name that is not in a table."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """``unknown KIND 'NAME', did you mean 'X'? known: ...`` in one line."""
    names = sorted(filter(None, known))  # the empty one is what an option that is left out has
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {name!r}{hint} known: {', '.join(names)}"
