"""Labels whose probability a teacher never said: it named its best classes, and the label was not among them."""

from collections.abc import Mapping

from logitbank.stores import Teacher


def guessed_labels(teacher: Teacher) -> int:
    """How many labelled rows have the even share of the rest as their label's probability; 0 where all were said."""
    imported = teacher.identity.get("imported")
    said = imported.get("label_log_prob") if isinstance(imported, Mapping) else None
    if not isinstance(said, Mapping):
        return 0
    known, labelled = said.get("known"), said.get("labelled")
    return max(labelled - known, 0) if type(known) is int and type(labelled) is int else 0


def guess_warnings(teacher: Teacher) -> list[str]:
    """A line about them."""
    count = guessed_labels(teacher)
    if not count:
        return []
    return [
        f"teacher {teacher.name!r}: {count} rows do not name their label, so its probability is the even share of what"
        " they leave: NLL and calibration guess there, and losses that need it are refused"
    ]
