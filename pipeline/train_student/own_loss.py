"""Losses and target transforms of the user's own, from the files that ``--loss`` and ``--set`` name."""

from collections.abc import Mapping

from logitbank.pipeline.train_student.losses import (
    TARGET_TRANSFORM,
    Loss,
    Objective,
    TargetTransform,
    own_loss,
    own_names,
    own_transform,
    parse_objective,
)
from logitbank.pipeline.user_code import factory_sha256, load_factory


def load_losses(text: str) -> dict[str, Loss]:
    """The losses that a text of ``--loss`` takes from files: ``file.py:function`` -> its entry.

    Raises:
        ValueError: No such file or function, or another signature than that of a loss.
    """
    return {name: own_loss(load_factory(name), name, sha256=factory_sha256(name)) for name in own_names(text)}


def load_transforms(text: str) -> dict[str, TargetTransform]:
    """The target transforms that a text takes from files, likewise.

    Raises:
        ValueError: No such file or function, or another signature than that of a transform.
    """
    return {name: own_transform(load_factory(name), name, sha256=factory_sha256(name)) for name in own_names(text)}


def read_objective(text: str, settings: Mapping[str, str | float], num_classes: int | None) -> Objective:
    """The objective of ``--loss`` and ``--set``; the user's own parts are loaded, and tried with so many classes.

    Raises:
        ValueError: As ``parse_objective``, and as ``load_losses``.
    """
    own_transforms = load_transforms(str(settings.get(TARGET_TRANSFORM, "")))
    return parse_objective(
        text, settings, own=load_losses(text), own_transforms=own_transforms, num_classes=num_classes
    )
