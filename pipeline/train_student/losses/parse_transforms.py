"""Reading ``--set target_transform=...``: which transforms, in which order, and whether they go with the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .own_transform import tried_transform
from .plan import unknown
from .term import Term
from .transforms import TRANSFORMS, TargetTransform, Transform
from .written import split_parts

TARGET_TRANSFORM = "target_transform"


def read_transforms(text: str, own: Mapping[str, TargetTransform], num_classes: int | None) -> tuple[Transform, ...]:
    """The transforms of a text such as ``calibrate + label_mix?alpha=0.3``, in order.

    Args:
        text: Names of the table, or of ``own``, each with "?option=value&..." where it has settings.
        own: Transforms of one's own by the name that they have in the text, such as "file.py:function".
        num_classes: How many classes these are tried with; None leaves the trial for later.

    Raises:
        ValueError: An unknown name or option, a value outside its domain, an order that makes no sense, or a law that
            one of one's own breaks.
    """
    known = {**TRANSFORMS, **own}
    found: list[Transform] = []
    for written in split_parts(text):
        if written.name not in known:
            raise ValueError(unknown("target transform", written.name, {**TRANSFORMS, "file.py:function": None}))
        if written.weight is not None:
            raise ValueError(f"target transform {written.name!r} takes no weight; transforms follow one another")
        rule = known[written.name]
        given = written.read_options()
        for key in given:
            if key not in rule.takes:
                raise ValueError(unknown(f"setting of {written.spelled}", key, rule.takes))
        options = {key: option.read(key, given.get(key, option.default)) for key, option in rule.takes.items()}
        transform = Transform(name=written.spelled, rule=rule, options=options)
        found.append(tried_transform(transform, num_classes) if rule.sha256 and num_classes else transform)
    _refuse_order(found)
    return tuple(found)


def _refuse_order(transforms: Sequence[Transform]) -> None:
    names = [transform.name for transform in transforms]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"target transform {twice!r} stands twice; leave one out")
    labelled = ""
    for place, transform in enumerate(transforms):
        if transform.rule.mixes and place:
            raise ValueError(f"{transform.name} mixes what the teacher said; write it first")
        if transform.rule.fit is not None and labelled:
            raise ValueError(
                f"{transform.name} is fitted to the labels, which {labelled} has put into the target; write it before"
                f" {labelled}"
            )
        if transform.rule.fit is None and "labels" in transform.rule.needs:
            labelled = transform.name


def refuse_unfit(transforms: Sequence[Transform], terms: Sequence[Term], text: str) -> None:
    """Raises ValueError when transforms do nothing for an objective, or do not go with a term of it."""
    following = [term for term in terms if term.fits_teacher]
    if transforms and not following:
        raise ValueError(
            f"target_transform={transforms[0].name} changes what the teacher says, which no term of loss {text!r} fits;"
            " leave it out"
        )
    for transform in transforms:
        for term in following:
            if transform.rule.gives == "probabilities" and "logits" in term.loss_needs:
                raise ValueError(
                    f"target transform {transform.name} gives probabilities, but {term.name} compares raw logits;"
                    " choose a loss of probabilities"
                )
        labelled = [term.name for term in terms if "labels" in term.needs]
        if transform.rule.mixes and labelled:
            raise ValueError(
                f"{transform.name}: a mixed sample has no label, which {labelled[0]} needs; take a loss of the teacher"
                " alone, such as --loss kd --set ce_weight=0"
            )
