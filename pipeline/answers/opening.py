"""The answers that a text names: of one teacher of a store, or of several as one."""

import math
from collections.abc import Sequence

import torch

from logitbank.pipeline.answers.ensemble import COMBINE, Ensemble
from logitbank.pipeline.answers.prepared import default_budget
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.encoding import TAIL_RULES, Encoding
from logitbank.pipeline.spelling import unknown
from logitbank.stores import Store


def open_answers(
    store: Store,
    *,
    teacher: str | None = None,
    combine: str = COMBINE[0],
    tail: str = "",
    device: torch.device | None = None,
    memory_budget: int | None = None,
    features: bool = False,
) -> StoredAnswers | Ensemble:
    """The answers of the teacher, or of the teachers, that a text names.

    Args:
        store: A finished store, already checked against the data (``check_data``).
        teacher: A name, or names with commas between, each with ":weight" or without (1); None for the only one.
        combine: How several become one: mean-prob or mean-logit.
        tail: Tail rule for classes that are not stored; empty: predicted, also where every class is.
        device: Where logits are wanted.
        memory_budget: Bytes for slabs, of all teachers together (default: half of the machine's).
        features: Read the teacher's features, too, where it has some.

    Raises:
        ValueError: No such teacher, rule or way, or one that would change nothing.
    """
    if combine not in COMBINE:
        raise ValueError(unknown("way to combine teachers", combine, COMBINE))
    names = parse_teachers(teacher)
    if len(names) == 1 and ":" in str(teacher):
        raise ValueError(
            f"--teacher-name is {teacher!r}, but a weight does nothing with one teacher; leave it out, or name several"
        )
    share = (default_budget() if memory_budget is None else memory_budget) // max(len(names), 1)
    rule = tail or TAIL_RULES[0]
    parts = [
        StoredAnswers(store, name=name, tail=rule, device=device, memory_budget=share, features=features)
        for name in names or [None]
    ]
    refuse_idle_tail([part.encoding for part in parts], tail)
    if len(parts) == 1:
        if combine != COMBINE[0]:
            raise ValueError(f"--combine {combine} does nothing with one teacher; leave it out, or name several")
        return parts[0]
    return Ensemble(parts, list(names.values()), combine=combine)


def parse_teachers(text: str | None) -> dict[str, float]:
    """Weights by name, in the order written; empty for None."""
    weights: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, weight = (piece.strip() for piece in part.partition(":"))
        try:
            value = float(weight or 1)
        except ValueError:
            value = 0.0
        if not name or not 0 < value < math.inf or name in weights:
            raise ValueError(f"--teacher-name is {text!r}; expected names once each, such as a,b or a:2,b:1")
        weights[name] = value
    return weights


def refuse_idle_tail(encodings: Sequence[Encoding], tail: str) -> None:
    """Raises ValueError when a tail rule was asked for, be it the usual one, and no teacher has a tail."""
    if tail and not any(encoding.has_tail for encoding in encodings):
        raise ValueError(f"--tail {tail} does nothing here, because the store keeps every class; leave it out")
