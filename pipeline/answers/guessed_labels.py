"""Labels whose probability a teacher never said: it named its best classes, and the label was not among them.

Who reads such answers records of how many it is known (`labels_named`) in the teacher's identity, and what is made of a
store keeps that (`said_of_labels`); a store without the record, made before there was one, counts as unknown.

Shapes: B answers, K classes that an answer names.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.stores import Teacher

_RECORD = "label_log_prob"
_HEAD = "top_k"  # of an imported teacher: so many classes of each answer were named


def labels_named(answers: Iterable[tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]]) -> dict[str, Any]:
    """The record, for ``identity["imported"]``, of answers that name classes [B, K], and their labels [B], -1: none."""
    known = labelled = 0
    for index_BK, labels_B in answers:
        known += int((index_BK == labels_B[:, None]).any(1)[labels_B >= 0].sum())
        labelled += int((labels_B >= 0).sum())
    return {_RECORD: {"known": known, "labelled": labelled}}


def all_named(top_k: int, labelled: int) -> dict[str, Any]:
    """What is recorded of answers of K classes each that also say what each of so many labels has."""
    return {_HEAD: top_k, _RECORD: {"known": labelled, "labelled": labelled}}


def said_of_labels(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What the identity of a teacher says of this, for that of a teacher whose answers were made of its own."""
    imported = identity.get("imported")
    return {key: imported[key] for key in (_HEAD, _RECORD) if key in imported} if isinstance(imported, Mapping) else {}


def heads_alone(identity: Mapping[str, Any]) -> bool:
    """Whether only the best classes of each answer were saved: what a store says of the others is no teacher's word."""
    return _HEAD in said_of_labels(identity)


def guessed_labels(teacher: Teacher) -> int | None:
    """How many labelled answers have the even share of the rest as their label's probability; None: not recorded."""
    said = said_of_labels(teacher.identity)
    record = said.get(_RECORD)
    if isinstance(record, Mapping):
        known, labelled = record.get("known"), record.get("labelled")
        if type(known) is int and type(labelled) is int:
            return max(labelled - known, 0)
    return None if said else 0


def guess_warnings(teacher: Teacher) -> list[str]:
    """A line about them."""
    count = guessed_labels(teacher)
    if count == 0:
        return []
    what = "rows" if teacher.positions is None else "positions"
    return [
        f"teacher {teacher.name!r}: {'an unknown number of' if count is None else count} {what} do not name their"
        " label, so its probability is the even share of what they leave: NLL and calibration guess there, and losses"
        " that need it are refused"
    ]
