"""The table of transforms, and how one is spelled: ``rrc+randaugment?size=160``, or ``file.py:factory``.

A transform maps uint8 images and one 64-bit seed per image to uint8 images of the same batch. The first one may look at
the originals instead.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.user_code import call_factory, factory_name, factory_sha256, is_file_factory
from logitbank.pipeline.views.geometry import (
    Boxes,
    crop_originals,
    flip_crop,
    flip_crop_boxes,
    random_resized_crop,
    rrc_boxes,
    whole,
)
from logitbank.pipeline.views.mixing import cutmix, mixup
from logitbank.pipeline.views.randaugment import randaugment, randaugment_pictures


@dataclass(frozen=True, kw_only=True)
class Transform:
    """One line of the table.

    Attributes:
        apply: (samples, seeds, **options) -> samples; a mixing one takes (samples, partners' samples, seeds).
        images_only: Whether it needs images.
        about: What a user reads.
        mixes: Whether it mixes two examples; it stands last.
        cut: The same of pictures of any sizes, (originals, rows, seeds, fit, **options) -> images; it stands first.
        of_cuts: The same of what was cut from them, where another way is faster.
        boxes: Where it looks, (height, width, seeds, **options) -> ``Boxes``, if it cuts, and at most mirrors.
    """

    apply: Callable[..., Any]
    images_only: bool
    about: str
    mixes: bool = False
    cut: Callable[..., Any] | None = None
    of_cuts: Callable[..., Any] | None = None
    boxes: Callable[..., Boxes] | None = None


TRANSFORMS: dict[str, Transform] = {
    "none": Transform(apply=lambda samples, seeds: samples, boxes=whole, images_only=False, about="the sample itself"),
    "flip-crop": Transform(
        apply=flip_crop,
        boxes=flip_crop_boxes,
        images_only=True,
        about="random crop after padding by an eighth, random mirror",
    ),
    "rrc": Transform(
        apply=random_resized_crop,
        cut=crop_originals,
        boxes=rrc_boxes,
        images_only=True,
        about="random crop of the original, random mirror; ?size=160 pixels, ?scale=0.08 smallest share of the area",
    ),
    "randaugment": Transform(
        apply=randaugment,
        of_cuts=randaugment_pictures,
        images_only=True,
        about="RandAugment; ?num_ops=2 operations, ?magnitude=9 of 30",
    ),
    "mixup": Transform(apply=mixup, images_only=True, mixes=True, about="weighted mean with another example"),
    "cutmix": Transform(apply=cutmix, images_only=True, mixes=True, about="a rectangle of another example"),
}

Step = tuple[Transform, dict[str, Any]]

_user_code: dict[str, tuple[Transform, str]] = {}  # by name without folder; only what a user named in this process


def parse_transform(text: str) -> list[Step]:
    """The steps of a transform, in order, with their options.

    Raises:
        ValueError: Unknown step or option, a mixing step that is not last, or user code that nobody named here.
    """
    if is_file_factory(text):
        if text not in _user_code:
            raise ValueError(
                f"views were made by your own code {text}; name its path on the command line"
                f" (--transform path/to/{text}) to let it run"
            )
        return [(_user_code[text][0], {})]
    names, _, query = text.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    steps: list[Step] = []
    for name in names.split("+"):
        if name not in TRANSFORMS:
            raise ValueError(unknown("transform", name, [*TRANSFORMS, "file.py:factory"]))
        if steps and steps[-1][0].mixes:
            raise ValueError(f"transform {text!r}: mixup and cutmix come last; write {name} before them")
        known = {
            parameter.name: parameter.annotation
            for parameter in inspect.signature(TRANSFORMS[name].apply).parameters.values()
            if parameter.kind is parameter.KEYWORD_ONLY
        }
        steps.append(
            (
                TRANSFORMS[name],
                {key: _number(text, key, options.pop(key), known[key]) for key in known & options.keys()},
            )
        )
    if options:
        raise ValueError(f"transform {text!r}: unknown option {next(iter(options))!r} of {names}; see --help")
    return steps


def _number(text: str, option: str, value: str, kind: type) -> int | float:
    try:
        return int(value) if kind is int else float(value)
    except ValueError:
        raise ValueError(f"transform {text!r}: {option} is {value!r}; expected a number") from None


def allow_transform(text: str) -> str:
    """A transform that the user named on the command line, as ``Views`` and a store spell it.

    ``path/to/file.py:factory`` is loaded, which is the only way to let such code run, and loses its folder;
    ``factory()`` gives a function (images, seeds) -> images. Every other transform is returned as it is.
    """
    if not is_file_factory(text):
        return text
    apply = call_factory(text, {})
    if not callable(apply):
        raise ValueError(f"{text}: the factory returned {type(apply).__name__}; expected a function (images, seeds)")
    name = factory_name(text)
    _user_code[name] = (Transform(apply=apply, images_only=False, about="user code"), factory_sha256(text))
    return name


def allow_views(text: str, views: Mapping[str, Any]) -> None:
    """Lets the user's code run that made a store's views; empty allows none.

    A store of label maps has no views of its own: whoever uses it names the crops.

    Raises:
        ValueError: The store's views were made by something else.
    """
    if text and not views.get("label_map") and allow_transform(text) != views["transform"]:
        raise ValueError(
            f"--transform is {text}, but the store's views were made by {views['transform']}, and are replayed so;"
            " leave it out, or name the file.py:factory that made them"
        )


def user_code_sha256(name: str) -> str | None:
    """SHA-256 of the user's file behind a transform, or None for a transform of the table."""
    return _user_code[name][1] if name in _user_code else None
