"""Which input transform a model has: what its library says, over which the user may write.

The library's own evaluation transform, number by number, so that the tensor which reaches the network is the one that
the library's pipeline makes of the same file.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.resize_crop import INTERPOLATIONS, MODES, ResizeCrop
from logitbank.pipeline.datasets.spec import tell
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.domains import MEANS, STDS, check_input
from logitbank.pipeline.models.preprocessing import AS_THEY_ARE, Preprocessing, fit_preprocessing
from logitbank.pipeline.spelling import unknown

_IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224)


@dataclass(frozen=True, kw_only=True)
class InputTransform:
    """What the user writes over a model's own input transform; None leaves a part as it is.

    Attributes:
        resize: See ``ResizeCrop``; it follows ``crop`` where only that is given.
        crop: Likewise.
        interpolation: Likewise.
        mode: Likewise.
        mean: See ``Preprocessing``.
        std: Likewise.
    """

    resize: tuple[int, int] | None = None
    crop: tuple[int, int] | None = None
    interpolation: str | None = None
    mode: str | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @classmethod
    def parse(cls, text: str) -> "InputTransform":
        """From ``resize=256,crop=224,interpolation=bicubic,mean=0.5,0.5,0.5,std=0.5,0.5,0.5``, parts in any order.

        Raises:
            ValueError: An unknown part or value, or a part twice.
        """
        parts: dict[str, Any] = {}
        for part in re.split(r",(?=[a-z_]+=)", text):
            name, _, value = part.partition("=")
            where = f"--input-transform {text!r}: {name}"
            if name not in _READERS:
                raise ValueError(f"--input-transform {text!r}: {unknown('part', name, _READERS)}")
            if name in parts:
                raise ValueError(f"{where} is given twice; give it once")
            parts[name] = _READERS[name](where, value)
        return cls(**parts)

    def over(self, base: Preprocessing, split: Split) -> Preprocessing:
        """The user's parts, and those of ``base`` for the rest.

        Raises:
            ValueError: The split's pictures have one size, or are none; or the crop is larger than what it is cut of.
        """
        scaled = replace(base.on(split), mean=self.mean or base.mean, std=self.std or base.std)
        named = [name for name in ("resize", "crop", "interpolation", "mode") if getattr(self, name) is not None]
        fit = scaled.fit
        if fit is None:
            return self._over_one_size(scaled, named, split) if named else scaled
        crop = self.crop or fit.crop
        chosen = replace(
            fit,
            crop=crop,
            resize=self.resize or (crop if self.crop else fit.resize),
            interpolation=self.interpolation or fit.interpolation,
            mode=self.mode or fit.mode,
        )
        if named and any(side < part for side, part in zip(chosen.resize, chosen.crop, strict=True)):
            raise ValueError(
                f"--input-transform resizes to {chosen.resize} and cuts {chosen.crop} out of it; expected at most that"
            )
        return replace(scaled, fit=replace(chosen, fill=_fill(scaled.mean) if chosen.mode == "border" else ()))

    def _over_one_size(self, scaled: Preprocessing, named: list[str], split: Split) -> Preprocessing:
        """Of pictures of one size the user may say to which square they are resized, and no more."""
        if not split.is_image:
            raise ValueError(f"--input-transform {named[0]} does nothing here, because {split.spec} is {split.holds}")
        idle = next((name for name in named if name != "resize"), None)
        if idle is not None:
            raise ValueError(
                f"--input-transform {idle} does nothing here, because {split.spec} is pictures of one size;"
                " resize=PIXELS says to which square they are resized"
            )
        height, width = cast(tuple[int, int], self.resize)
        if height != width:
            raise ValueError(f"--input-transform resize is {height} x {width}; pictures of one size become squares")
        return replace(scaled, size=height)


Given = Preprocessing | InputTransform


def read_given(mean: str, std: str, transform: str) -> Given | None:
    """What the user says of a network's input as the command line has it; None where nothing is said.

    Raises:
        ValueError: Texts that cannot be read, or do not go together.
    """
    check_input(mean, std, transform)
    if transform:
        return InputTransform.parse(transform)
    return Preprocessing(mean=MEANS.read("--mean", mean), std=STDS.read("--std", std)) if mean else None


def settle(split: Split, given: Given | None, *said: Preprocessing | None) -> Preprocessing | None:
    """The input transform of a model for the examples of a split.

    Args:
        split: The examples.
        given: The user's. A whole one without a size, or a way to resize originals, takes that from what others say.
        said: What others say, the first to speak counts: a store, its weights, its library.

    Returns:
        None where nobody says how inputs are scaled.

    Raises:
        ValueError: Something is given for tokens, which no model scales; the user's mean is not on the 0..1 scale of
            images; or see ``InputTransform.over``.
    """
    if split.is_tokens:
        if given is not None:
            raise ValueError(f"--mean, --std and --input-transform do nothing here, because {split.spec} holds tokens")
        return AS_THEY_ARE
    if given is not None and split.is_image and max(given.mean or (0.0,)) > 1:
        raise ValueError(f"--mean is {max(given.mean or ()):g}; expected the 0..1 scale of pixels / 255, --std too")
    base = next((each for each in said if each is not None), None)
    if isinstance(given, Preprocessing):
        if base is None or given.size or given.fit:
            return given.on(split)
        return replace(given, size=base.size, fit=base.fit).on(split)
    if given is not None and base is None and given.mean and given.std:
        base = Preprocessing(mean=given.mean, std=given.std)
    if base is None:
        return None
    return base.on(split) if given is None else given.over(base, split)


def settle_fresh(
    name: str, split: Split, given: Given | None, rows: npt.NDArray[np.integer] | None = None
) -> Preprocessing:
    """The same for a model that is still untrained: what nobody says is fitted to its training rows (default: all)."""
    found = settle(split, given, own_preprocessing(name, split))
    return found or cast(Preprocessing, settle(split, given, fit_preprocessing(split, rows)))


def own_preprocessing(name: str, split: Split) -> Preprocessing | None:
    """The input transform that a library's model is evaluated with, or None for models without one.

    Args:
        name: A name of ``build_model``; behind a dot torchvision's say whose weights, as timm's do:
            ``torchvision:resnet50.IMAGENET1K_V1``.
        split: Pictures of any sizes are resized as the library resizes files, others to the size that it says.
    """
    library, _, inner = name.partition(":")
    if library == "subclasses":
        return own_preprocessing(inner.partition(":")[2], split)
    if library == "timm":
        return _of_timm(inner, split)
    if library == "sklearn":  # trees ask for an order, which no scaling changes
        channels = split.input_shape[-1]
        return Preprocessing(mean=(0.0,) * channels, std=(1.0,) * channels)
    if library == "torchvision":
        return _IMAGENET if split.originals is None else _of_torchvision(inner)
    return None


def _of_timm(name: str, split: Split) -> Preprocessing | None:
    """As timm's ``validate.py`` does it: at the test size, where there is one."""
    prepare_torchvision()
    import timm
    from timm.data.config import resolve_data_config

    config = timm.get_pretrained_cfg(name)
    if config is None:
        return None
    if split.originals is None:
        return Preprocessing(mean=tuple(config.mean), std=tuple(config.std), size=int(config.input_size[-1]))
    data: dict[str, Any] = resolve_data_config({}, pretrained_cfg=config.to_dict(), use_test_size=True)  # type: ignore[no-untyped-call]
    crop = (int(data["input_size"][-2]), int(data["input_size"][-1]))
    mean, mode = tuple(data["mean"]), data["crop_mode"] if data["crop_mode"] in MODES else "center"
    fit = ResizeCrop(
        resize=(math.floor(crop[0] / data["crop_pct"]), math.floor(crop[1] / data["crop_pct"])),
        crop=crop,
        interpolation=data["interpolation"],
        mode=mode,
        fill=_fill(mean) if mode == "border" else (),
    )
    return Preprocessing(mean=mean, std=tuple(data["std"]), fit=fit)


def _of_torchvision(name: str) -> Preprocessing | None:
    prepare_torchvision()
    from torchvision import models

    plain, _, tag = name.partition(".")
    if plain not in models.list_models(module=models):
        return None
    weights: Any = models.get_model_weights(plain)
    presets = {each.name: _of_preset(each.transforms()) for each in weights}
    if tag and tag not in presets:
        raise ValueError(unknown(f"weights of torchvision:{plain}", tag, presets))
    chosen = tag or weights.DEFAULT.name
    others = [each for each, preset in presets.items() if preset != presets[chosen]]
    if others and not tag:
        tell(
            f"torchvision:{plain}: pictures are resized as for its weights {chosen}; for others write"
            f" torchvision:{plain}.{others[0]}"
        )
    return presets[chosen]


def _of_preset(preset: Any) -> Preprocessing:
    (resize,), (crop,) = preset.resize_size, preset.crop_size
    fit = ResizeCrop(resize=(resize, resize), crop=(crop, crop), interpolation=preset.interpolation.value)
    return Preprocessing(mean=tuple(preset.mean), std=tuple(preset.std), fit=fit)


def _fill(mean: tuple[float, ...]) -> tuple[int, ...]:
    """timm's colour of borders."""
    return tuple(round(255 * value) for value in mean)


def _sides(where: str, text: str) -> tuple[int, int]:
    numbers = [int(side) for side in text.split(",") if side.isascii() and side.isdecimal() and len(side) < 6]
    if len(numbers) != text.count(",") + 1 or len(numbers) > 2:
        raise ValueError(f"{where} is {text!r}; expected pixels, such as 224, or height and width, such as 384,128")
    sides = numbers[0], numbers[-1]
    try:
        ResizeCrop(resize=sides, crop=sides)
    except ValueError as error:
        raise ValueError(f"{where}: {str(error).partition(' is ')[2]}") from error
    return sides


def _word(words: tuple[str, ...]) -> Callable[[str, str], str]:
    def read(where: str, text: str) -> str:
        if text not in words:
            raise ValueError(f"{where}: {unknown('value', text, words)}")
        return text

    return read


_READERS: dict[str, Callable[[str, str], Any]] = {
    "resize": _sides,
    "crop": _sides,
    "interpolation": _word(INTERPOLATIONS),
    "mode": _word(MODES),
    "mean": MEANS.read,
    "std": STDS.read,
}
