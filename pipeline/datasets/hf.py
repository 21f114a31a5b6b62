"""Image classification datasets of the Hugging Face hub, through its own library."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.encoded import ON_ERROR, encoded_samples
from logitbank.pipeline.datasets.file_notes import Notes
from logitbank.pipeline.datasets.labels import place_labels, read_labels
from logitbank.pipeline.datasets.picture_files import MAX_SIZE
from logitbank.pipeline.datasets.spec import read_one, read_whole, said, spell
from logitbank.pipeline.datasets.split import Split


@dataclass(frozen=True)
class HubPictures:
    """Encoded pictures of a column; ``Blobs``.

    Attributes:
        rows: The library's table, with that column alone, undecoded.
        image: The column.
        files: Where the library keeps the table; none when it is in memory.
        spec: Which rows of them, and for errors.
    """

    rows: Any
    image: str
    files: Sequence[Path]
    spec: str

    def __len__(self) -> int:
        return len(self.rows)

    def read(self, number: int) -> bytes:
        value = self.rows[number][self.image]
        data, path = (value.get("bytes"), value.get("path")) if isinstance(value, dict) else (None, None)
        if isinstance(data, bytes):
            return data
        if not isinstance(path, str):
            raise ValueError(f"{self.name(number)} holds no picture; name the column with image=")
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise ValueError(f"{path}: cannot be read ({error.strerror or error}); fetch it again") from error

    def name(self, number: int) -> str:
        return f"{self.spec}: row {number}"

    def notes(self, about: str) -> Notes | None:
        return Notes(self.files, f"hub, {self.spec}, {about}") if self.files else None


def load_hf(
    name: str,
    *,
    split: str = "train",
    image: str = "image",
    label: str = "label",
    size: str = "",
    config: str = "",
    revision: str = "",
    classes: str = "",
    first_label: str = "0",
    on_error: str = "stop",
) -> Split:
    """A dataset of the hub; needs ``pip install logitbank[hf]``. No code of the dataset is run.

    Pictures stay in the files of the library's own cache, as they were encoded, and are decoded when they are read.

    Args:
        name: Such as ``uoft-cs/cifar10``.
        split: As the dataset calls it.
        image: Column of the images.
        label: Column of the class ids, or of their names; -1 or null is unlabelled.
        size: For small trials: see ``load_image_folder``.
        config: Configuration of the dataset.
        revision: Commit or tag; without it, the newest.
        classes: Number of classes, or a file of their names; see ``known_classes``.
        first_label: 1 when labels count from 1 and the dataset does not name its classes.
        on_error: ``stop`` refuses what is no picture by its header, or cut off, when the keys are made; what only the
            decoder sees stops the pass there, and names the picture. ``skip`` decodes every picture once now, and masks
            the rows of those that fail.

    Raises:
        ValueError: The library is not installed, or the dataset has no such split or columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("hf: needs the datasets library; run `pip install logitbank[hf]`") from error
    options = {"image": image, "label": label, "size": size, "config": config, "revision": revision}
    options |= {"classes": classes, "first_label": first_label, "on_error": on_error}
    given = said(options, {"first_label": "0", "on_error": "stop"})
    spec = spell("hf", name, {"split": split, **given})
    read_one(spec, "on_error", on_error, ON_ERROR)
    pixels = read_whole(spec, "size", size, 1, MAX_SIZE, f"1 to {MAX_SIZE} pixels") if size else 0
    from_one = read_one(spec, "first_label", first_label, ("0", "1")) == "1"
    try:
        source: Any = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:  # the library raises many kinds
        raise ValueError(f"{spec}: cannot be loaded ({str(error).splitlines()[0]})") from error
    missing = [column for column in (image, label) if column not in source.column_names]
    if missing:
        raise ValueError(f"{spec}: no column {missing[0]!r}; it has {', '.join(source.column_names)}")
    try:
        rows = source.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    except Exception as error:  # the library raises many kinds
        raise ValueError(f"{spec}: column {image!r} holds no pictures; name the column with image=") from error
    pictures = HubPictures(rows, image, [Path(each["filename"]) for each in source.cache_files], spec)
    if len(pictures):
        pictures.read(0)  # another kind of column is found at once
    own = tuple(getattr(source.features[label], "names", None) or ())
    labels, num_classes, names = _labels(source[label], own, from_one, classes, spec)
    samples, readable = encoded_samples(pictures, pixels, spec, on_error)
    return Split(
        name=name.rpartition("/")[2],
        split=split,
        spec=spec,
        samples=samples,
        labels=labels,
        num_classes=num_classes,
        class_names=names,
        readable=readable,
    )


def _labels(
    values: Sequence[Any], own: tuple[str, ...], from_one: bool, classes: str, spec: str
) -> tuple[npt.NDArray[np.int64], int, tuple[str, ...]]:
    texts = any(isinstance(value, str) for value in values)
    absent = "" if texts else -1
    try:
        raw = np.array([absent if value is None else value for value in values])
    except ValueError as error:  # rows of several lengths
        raise ValueError(f"{spec}: labels are no numbers or texts ({error}); name another column") from error
    part = read_labels(raw, f"{spec}: labels", from_one=from_one)
    return place_labels([part], 0, classes, spec, own=own)
