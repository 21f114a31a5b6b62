"""Pictures as Pillow opens them, brought to upright RGB: each mode of Pillow is read right or refused by name.

Shapes: S x S pixels.
"""

import io
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".avif", ".tga"}
)
MAX_PIXELS = 89_478_485  # Pillow's own limit, from which on it warns; 268 MB as RGB
_EIGHT_BITS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})
_PREMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO, _ORIENTATION = 258, 262, 0, 274

# One mechanism for a picture over the limit, whoever opens it: Pillow's warning is an error here.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def open_image(source: Path | BinaryIO) -> Image.Image:
    """Opens an encoded image, of which only the header is read, and refuses what cannot be read right.

    Raises:
        ValueError: No picture of a known format, too large a one, or a mode without a meaning.
    """
    try:
        image = Image.open(source, formats=FORMATS)
    except Exception as error:  # Pillow's plugins raise many kinds on damaged bytes
        raise ValueError(_said(error)) from error
    try:
        check_image(image)
    except ValueError:
        image.close()
        raise
    return image


def check_image(image: Image.Image) -> None:
    """Raises ValueError for a picture that is too large, or whose numbers have no known range."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels; expected at most {MAX_PIXELS:,}")
    if image.mode not in _EIGHT_BITS and not _is_16_bit(image):
        raise ValueError(f"mode {image.mode!r} is not read: no known range or conversion; save it with 8 bits")


def shrink(whole: Image.Image, size: int) -> npt.NDArray[np.uint8]:
    """A whole picture in RGB with its shorter side ``size``, cropped in the middle: uint8 [size, size, 3]."""
    return np.asarray(ImageOps.fit(whole, (size, size), Image.Resampling.BILINEAR), dtype=np.uint8)


def decode_whole(data: bytes, *, upright: bool) -> Image.Image:
    """``whole_image`` of an encoded image."""
    return whole_image(open_image(io.BytesIO(data)), upright=upright)


def whole_image(image: Image.Image, *, upright: bool) -> Image.Image:
    """The whole picture in RGB, in its own size: the very pixels that ``Image.convert`` gives.

    Where Pillow's conversion loses what is there, ours does not: grey of 16 bits keeps its whole range in proportion
    (65,535 becomes 255). Transparency is dropped, as it is everywhere in the field. Of several frames the first is
    read.

    Args:
        image: As Pillow opened it; it is what is returned where there is nothing to convert.
        upright: Turn it as its EXIF says; the loaders of torchvision and timm do not.

    Raises:
        ValueError: Damaged bytes, or a picture that cannot be read right.
    """
    check_image(image)
    try:
        image.load()
        shown = _to_8_bits(image) if _is_16_bit(image) else image
        return _to_rgb(ImageOps.exif_transpose(shown) if upright else shown)
    except Exception as error:  # Pillow's plugins raise many kinds on damaged bytes
        raise ValueError(_said(error)) from error


def is_turned(image: Image.Image) -> bool:
    """Whether the header of a picture, which is not decoded, says that it is to be turned or mirrored."""
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode it to look behind the pixels
        return False
    try:
        return image.getexif().get(_ORIENTATION, 1) not in (0, 1)
    except Exception:  # damaged EXIF says nothing
        return False


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _PREMULTIPLIED:
        image = image.convert(_PREMULTIPLIED[image.mode])
    if image.mode in ("P", "PA") and "transparency" in image.info:
        image = image.convert("RGBA")  # as Pillow asks for; the colours are the same
    return image if image.mode == "RGB" else image.convert("RGB")  # a conversion to itself is a copy


def _is_16_bit(image: Image.Image) -> bool:
    """Grey of 16 bits; mode ``I`` holds 32 bits, but the 16-bit pictures of two formats come in it."""
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Mode ``L``, which keeps what the file says of the picture's orientation."""
    tags = getattr(image, "tag_v2", {})
    highest = 2 ** int(tags.get(_BITS_PER_SAMPLE, (16,))[0]) - 1
    grey = np.minimum(np.asarray(image).astype(np.uint32), highest)
    grey = (grey * 255 + highest // 2) // highest
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = 255 - grey
    made = Image.fromarray(grey.astype(np.uint8))
    exif = Image.Exif()
    exif[_ORIENTATION] = image.getexif().get(_ORIENTATION, 1)
    made.info["exif"] = exif.tobytes()
    return made


def _said(error: Exception) -> str:
    """The error in one line, without the address of the buffer that Pillow names."""
    if isinstance(error, UnidentifiedImageError):
        return "no picture of a known format"
    return " ".join(str(error).split()) or type(error).__name__
