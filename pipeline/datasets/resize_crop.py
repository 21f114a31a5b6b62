"""From a picture as it is in its file to the pixels that a network reads: one resampling, then a crop in the middle.

Bit for bit what timm's and torchvision's evaluation transforms make of the same picture.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from logitbank.pipeline.datasets.pictures import MAX_PIXELS
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.spelling import unknown

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
_PILLOW = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
MODES = ("center", "squash", "border")
MAX_SIDE = 2048  # pixels that a file may ask pictures to be resized to

Sides = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class ResizeCrop:
    """A model's evaluation geometry.

    Attributes:
        resize: Height and width in pixels that a picture is resized to. ``center``: so that both are covered (a square:
            its shorter side); ``squash``: exactly; ``border``: so that it lies within.
        crop: Height and width that are cut out of the middle; what is missing is filled.
        interpolation: One of ``INTERPOLATIONS``, antialiased.
        mode: One of ``MODES``, in timm's words.
        fill: Colour of borders in mode ``border``, 0 to 255; other modes fill with black.
    """

    resize: Sides = (256, 256)
    crop: Sides = (224, 224)
    interpolation: str = "bilinear"
    mode: str = "center"
    fill: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(unknown("interpolation", self.interpolation, INTERPOLATIONS))
        if self.mode not in MODES:
            raise ValueError(unknown("mode", self.mode, MODES))
        for name, sides in (("resize", self.resize), ("crop", self.crop)):
            if len(sides) != 2 or not all(1 <= side <= MAX_SIDE for side in sides):
                raise ValueError(f"{name} is {sides}; expected height and width, each of 1 to {MAX_SIDE} pixels")

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture's part that the network reads, of the crop's size."""
        functional = _functional()
        size, resample = list(self.resize), self._resample
        if self.mode == "border" or (self.mode == "center" and size[0] != size[1]):
            ratios = picture.height / size[0], picture.width / size[1]
            ratio = max(ratios) if self.mode == "border" else min(ratios)
            size = [round(picture.height / ratio), round(picture.width / ratio)]
        elif self.mode == "center":
            size = size[:1]
        if self.mode == "center" and _is_slender(picture, size):
            return self._middle(picture, size)
        resized = functional.resize(picture, size, resample)
        if self.mode == "border":
            return _crop_or_pad(resized, self.crop, self.fill)
        cropped: Image.Image = functional.center_crop(resized, list(self.crop))
        return cropped

    def _middle(self, picture: Image.Image, size: list[int]) -> Image.Image:
        """The middle of a picture so slender that it would not fit into memory resized: up to rounding the same."""
        height, width = _resized(picture, size)
        crop = min(self.crop[0], height), min(self.crop[1], width)
        top, left = round((height - crop[0]) / 2), round((width - crop[1]) / 2)
        down, along = picture.height / height, picture.width / width
        box = left * along, top * down, (left + crop[1]) * along, (top + crop[0]) * down
        middle = picture.resize((crop[1], crop[0]), _PILLOW[self.interpolation], box=box)
        made: Image.Image = _functional().center_crop(middle, list(self.crop))
        return made

    def cut(self, picture: Image.Image, box: tuple[int, int, int, int], size: Sides) -> Image.Image:
        """A rectangle (top, left, height, width) of the picture, resampled once, as this model resamples."""
        made: Image.Image = _functional().resized_crop(picture, *box, list(size), self._resample)
        return made

    @property
    def _resample(self) -> Any:
        prepare_torchvision()
        from torchvision.transforms import InterpolationMode

        return InterpolationMode(self.interpolation)

    def attributes(self) -> dict[str, Any]:
        fill = {"fill": list(self.fill)} if self.mode == "border" else {}
        sides = {"resize": list(self.resize), "crop": list(self.crop)}
        return {**sides, "interpolation": self.interpolation, "mode": self.mode, **fill}

    @classmethod
    def from_attributes(cls, attributes: Any) -> "ResizeCrop":
        """What ``attributes`` gave, read back from a file that anybody may have written.

        Raises:
            ValueError: Anything else.
        """
        said = attributes if isinstance(attributes, Mapping) else {}
        lists = [said.get(name, []) for name in ("resize", "crop", "fill")]
        texts = [said.get(name) for name in ("interpolation", "mode")]
        numbers = all(isinstance(each, list) and all(type(side) is int for side in each) for each in lists)
        if not numbers or not all(isinstance(text, str) for text in texts):
            raise ValueError(f"its resizing is {str(attributes)[:80]!r}; expected resize, crop, interpolation and mode")
        resize, crop, fill = (tuple(each) for each in lists)
        if len(fill) not in (0, 3) or not all(0 <= value <= 255 for value in fill):
            raise ValueError(f"its fill is {fill}; expected three numbers of 0 to 255")
        return cls(resize=resize, crop=crop, fill=fill, interpolation=texts[0], mode=texts[1])  # type: ignore[arg-type]


STANDARD = ResizeCrop()
"""What is shown where no model says how it wants pictures: the field's 256 / 224; probes of views show it, too."""


def _resized(picture: Image.Image, size: list[int]) -> tuple[int, int]:
    """Height and width after resizing, where one number is the shorter side."""
    if len(size) == 2:
        return size[0], size[1]
    short, long = sorted(picture.size)
    longer = int(size[0] * long / short)
    return (longer, size[0]) if picture.height > picture.width else (size[0], longer)


def _is_slender(picture: Image.Image, size: list[int]) -> bool:
    height, width = _resized(picture, size)
    return height * width > MAX_PIXELS


def _functional() -> Any:
    prepare_torchvision()
    from torchvision.transforms import functional

    return functional


def _crop_or_pad(picture: Image.Image, crop: Sides, fill: tuple[int, ...]) -> Image.Image:
    prepare_torchvision()
    from timm.data.transforms import center_crop_or_pad

    pad: Any = center_crop_or_pad  # its types speak of tensors alone
    made: Image.Image = pad(picture, list(crop), fill=list(fill) or 0)
    return made
