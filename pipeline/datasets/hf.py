"""Image classification datasets of the Hugging Face hub, through its own library."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from logitbank.pipeline.datasets.labels import from_zero, place_labels, read_labels
from logitbank.pipeline.datasets.limits import check_fits
from logitbank.pipeline.datasets.picture_files import MAX_SIZE
from logitbank.pipeline.datasets.pictures import fit_image
from logitbank.pipeline.datasets.spec import read_one, read_whole, said, spell
from logitbank.pipeline.datasets.split import Split


def load_hf(
    name: str,
    *,
    split: str = "train",
    image: str = "image",
    label: str = "label",
    size: str = "224",
    config: str = "",
    revision: str = "",
    classes: str = "",
    first_label: str = "0",
) -> Split:
    """A dataset of the hub, decoded into memory; needs ``pip install logitbank[hf]``. No code of the dataset is run.

    Args:
        name: Such as ``uoft-cs/cifar10``.
        split: As the dataset calls it.
        image: Column of the images.
        label: Column of the class ids, or of their names; -1 or null is unlabelled.
        size: Pixels of the square that every image is brought to.
        config: Configuration of the dataset.
        revision: Commit or tag; without it, the newest.
        classes: Number of classes, or a file of their names; see ``known_classes``.
        first_label: 1 when labels count from 1 and the dataset does not name its classes.

    Raises:
        ValueError: The library is not installed, or the dataset has no such split or columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("hf: needs the datasets library; run `pip install logitbank[hf]`") from error
    options = {"image": image, "label": label, "size": size, "config": config, "revision": revision}
    given = said({**options, "classes": classes, "first_label": first_label}, {"first_label": "0"})
    spec = spell("hf", name, {"split": split, **given})
    pixels = read_whole(spec, "size", size, 1, MAX_SIZE, f"1 to {MAX_SIZE} pixels")
    first = int(read_one(spec, "first_label", first_label, ("0", "1")))
    try:
        source: Any = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:  # the library raises many kinds
        raise ValueError(f"{spec}: cannot be loaded ({str(error).splitlines()[0]})") from error
    missing = [column for column in (image, label) if column not in source.column_names]
    if missing:
        raise ValueError(f"{spec}: no column {missing[0]!r}; it has {', '.join(source.column_names)}")
    check_fits(spec, len(source) * pixels * pixels * 3)
    own = tuple(getattr(source.features[label], "names", None) or ())
    labels, num_classes, names = _labels(source[label], own, first, classes, spec)
    return Split(
        name=name.rpartition("/")[2],
        split=split,
        spec=spec,
        samples=np.stack([_picture(picture, pixels, row, spec) for row, picture in enumerate(source[image])]),
        labels=labels,
        num_classes=num_classes,
        class_names=names,
    )


def _labels(
    values: Sequence[Any], own: tuple[str, ...], first: int, classes: str, spec: str
) -> tuple[npt.NDArray[np.int64], int, tuple[str, ...]]:
    texts = any(isinstance(value, str) for value in values)
    absent = "" if texts else -1
    try:
        raw = np.array([absent if value is None else value for value in values])
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{spec}: labels are no numbers or texts ({error}); name another column") from error
    part = read_labels(raw, f"{spec}: labels")
    if first:
        part = from_zero(part, f"{spec}: labels")
    return place_labels([part], 0, classes, spec, own=own)


def _picture(picture: Any, pixels: int, row: int, spec: str) -> npt.NDArray[np.uint8]:
    if not isinstance(picture, Image.Image):
        raise ValueError(f"{spec}: row {row} holds {type(picture).__name__}, no picture; name the column with image=")
    try:
        return fit_image(picture, pixels)
    except ValueError as error:
        raise ValueError(f"{spec}: the picture of row {row} cannot be decoded ({error})") from error
