"""The teacher that a store records, run again: to check its answers, or to add views to them.

What a store says of its teacher is a stranger's word. It never decides which code runs or how much memory a network
takes: only names of the model table are taken from it, everything else has to be named.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.claims import Claims, Seen, nothing_seen
from logitbank.pipeline.cache_teacher.teachers.load import TeacherSet, seen_out_of_fold
from logitbank.pipeline.cache_teacher.teachers.networks import load_again
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit.optimizers import PRECISIONS
from logitbank.pipeline.folds import Folds
from logitbank.pipeline.models import MODELS, Given, Preprocessing
from logitbank.pipeline.user_code import factory_name
from logitbank.pipeline.views import Views
from logitbank.stores import Store, Teacher


def recorded_teacher(
    store: Store,
    teacher: Teacher,
    split: Split,
    weights: str,
    *,
    architecture: str = "",
    num_views: int | None = None,
    preprocessing: Given | None = None,
    compute: Compute | None = None,
    device: torch.device | None = None,
) -> NetworkTeacher:
    """The network behind a store's answers: with the store's views, folds and precision, and the user's weights.

    Args:
        store: Whose views and folds.
        teacher: One of its teachers.
        split: The examples of the store, in its order.
        weights: As in ``load_teachers``.
        architecture: Name of the network; needed unless the store's is one of the model table.
        num_views: More or fewer views than the store has.
        preprocessing: Overrides what weights, network and store say.
        compute: How the network runs; its precision is the store's.
        device: Where the network runs.

    Raises:
        ValueError: The teacher was no network, or the weights do not fit it.
    """
    views = Views.from_attributes({**store.views, "num_views": num_views or store.num_views})
    if views.transform == "none" and views.num_views > 1:
        raise ValueError(
            f"{store.path} was made with transform none, which has one view; other views need a new pass of cli"
            " cache-teacher with --transform"
        )
    folds = teacher.row_folds
    num_teachers = 1 if teacher.folds is None else int(teacher.folds["num_folds"])
    if not weights:
        raise ValueError(
            f"--weights is missing; give those of teacher {teacher.name!r}: a file, a folder that train-teacher wrote,"
            " or 'run/fold{fold}.pt'"
        )
    teachers, said = load_again(
        split,
        _architecture(architecture, teacher),
        weights,
        num_teachers=num_teachers,
        preprocessing=preprocessing,
        recorded=_recorded_scaling(teacher),
    )
    again = TeacherSet(
        teachers=teachers,
        seen=_seen(split, folds, said),
        folds=folds,
        training_fingerprint=said[0].fingerprint if said else None,
        fold_attributes=teacher.folds,
    )
    compute = replace(compute or Compute(), precision=_precision(teacher))
    embedding = str(teacher.identity.get("embedding", ""))
    return NetworkTeacher(split, again, views, device=device, compute=compute, embedding=embedding)


def differences(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """How the identity of a network differs from the one that a store records, a phrase for each part."""
    phrases = []
    for part in ("architecture", "weights_sha256", "preprocessing", "precision", "embedding"):
        has: Any = recorded.get(part)
        is_now: Any = found.get(part)
        if part == "architecture":
            has, is_now = factory_name(str(has)), factory_name(str(is_now))
        if has == is_now:
            continue
        if isinstance(has, list) and len(has) == len(is_now):
            number = next(i for i, (one, other) in enumerate(zip(has, is_now, strict=True)) if one != other)
            part += f" of fold {number}" if len(has) > 1 else ""
            has, is_now = has[number], is_now[number]
        if isinstance(has, dict) and isinstance(is_now, dict):
            unlike = {key for key in {*has, *is_now} if has.get(key) != is_now.get(key)}
            has, is_now = ({key: one[key] for key in sorted(unlike & set(one))} for one in (has, is_now))
        phrases.append(f"{part} is {_short(has)} in the store and {_short(is_now)} here")
    return phrases


def _architecture(named: str, teacher: Teacher) -> str:
    recorded = str(teacher.identity.get("architecture"))[:200]
    if not named and recorded not in MODELS:
        raise ValueError(
            f"the store says that teacher {teacher.name!r} is {recorded!r}, and a store does not decide how large a"
            " network is, or which library, folder or file it comes from; if it is right, pass --teacher with that"
            " name (answers of arrays, exports and estimators cannot be repeated: compare them with cli diff)"
        )
    return named or recorded


def _seen(split: Split, folds: Folds | None, said: tuple[Claims, ...]) -> Seen:
    if not said:
        return nothing_seen(split)
    return said[0].seen(split) if folds is None else seen_out_of_fold(split, folds, said)


def _precision(teacher: Teacher) -> str:
    said = teacher.identity.get("precision")
    if isinstance(said, str) and said in PRECISIONS:
        return said
    raise ValueError(f"teacher {teacher.name!r} answered in precision {str(said)[:50]!r}, which no network here has")


def _recorded_scaling(teacher: Teacher) -> list[Preprocessing]:
    try:
        return [Preprocessing.from_attributes(said) for said in teacher.identity["preprocessing"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"teacher {teacher.name!r} has no input scaling that can be read ({error}); if it was a network, do not"
            " use this store"
        ) from error


def _short(value: object) -> str:
    """Enough to tell it by: of a sum its first digits, of scalings all that is not absurdly long."""
    text, most = str(value), 60 if isinstance(value, str) else 100
    return text if len(text) <= most else f"{text[:12]}..."
