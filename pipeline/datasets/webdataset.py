"""Tar shards of pictures and their labels, in the layout of WebDataset: ``000001.jpg``, ``000001.cls``."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from logitbank.pipeline.datasets.encoded import ON_ERROR, encoded_samples
from logitbank.pipeline.datasets.labels import place_labels, read_labels
from logitbank.pipeline.datasets.patterns import find_files
from logitbank.pipeline.datasets.picture_files import MAX_SIZE
from logitbank.pipeline.datasets.remote_files import RemoteFile, find_remote
from logitbank.pipeline.datasets.spec import check_split, read_one, read_whole, said, spell
from logitbank.pipeline.datasets.split import Split
from logitbank.pipeline.datasets.tar_shards import open_shards
from logitbank.stores.format.address import is_url, shown


def load_webdataset(
    path: str,
    *,
    split: str = "train",
    label: str = "cls",
    test: str = "",
    size: str = "",
    classes: str = "",
    first_label: str = "0",
    on_error: str = "stop",
) -> Split:
    """Pictures of tar shards, in the order of the shards' names and of their members.

    A picture is read from its place in its shard when it is asked for. Where each lies, and its key, is found out once
    and kept in the cache folder.

    Args:
        path: A shard, or a pattern such as ``train-*.tar``; not compressed. It may be in a bucket
            (``s3://bucket/train-*.tar``) or on a web server (``https://host/train-{000..099}.tar``): then the shards
            used last lie here, see ``remote_files``.
        split: "train" or "test".
        label: Ending of the members that hold a label: a class id or a name. A sample without one is unlabelled.
        test: The shards of the test split.
        size: For small trials: see ``load_image_folder``.
        classes: Number of classes, or a file of their names; see ``known_classes``.
        first_label: 1 when labels count from 1.
        on_error: ``stop`` refuses what is no picture by its header, or cut off, when the keys are made; what only the
            decoder sees stops the pass there, and names the picture. ``skip`` decodes every picture once now, and masks
            the rows of those that fail.

    Raises:
        ValueError: No such shards, damaged ones, or samples that are not one picture and its label.
    """
    options = {"label": label, "test": test, "size": size, "classes": classes, "first_label": first_label}
    given = said({**options, "on_error": on_error}, {"label": "cls", "first_label": "0", "on_error": "stop"})
    spec = spell("webdataset", path, {"split": split, **given})
    check_split(spec, split)
    if not (label.isascii() and label.replace(".", "").isalnum()) or label != label.lower():
        raise ValueError(f"{spec}: label is {label!r}; expected the ending of members, such as cls")
    if split == "test" and not test:
        raise ValueError(f"{spec}: nothing says which shards are the test split; pass test=PATTERN")
    read_one(spec, "on_error", on_error, ON_ERROR)
    pixels = read_whole(spec, "size", size, 1, MAX_SIZE, f"1 to {MAX_SIZE} pixels") if size else 0
    from_one = read_one(spec, "first_label", first_label, ("0", "1")) == "1"
    what = "tar shards, such as train-*.tar"
    parts = [open_shards(_find(each, spec, what), label, spec) for each in (path, test) if each]
    chosen = 1 if split == "test" else 0
    texts = [read_labels(_numbers(part.labels), f"{spec}: labels", from_one=from_one) for part in parts]
    labels, num_classes, names = place_labels(texts, chosen, classes, spec)
    samples, readable = encoded_samples(parts[chosen], pixels, spec, on_error)
    return Split(
        name=Path(path).name.partition("*")[0].rstrip("-_.0123456789") or "shards",
        split=split,
        spec=spec,
        samples=samples,
        labels=labels,
        num_classes=num_classes,
        class_names=names,
        readable=readable,
    )


def _find(pattern: str, spec: str, what: str) -> Sequence[Path | RemoteFile]:
    if not is_url(pattern):
        return find_files(pattern, spec, what)
    found = find_remote(pattern)
    if not found:
        raise ValueError(f"{spec}: nothing is at {shown(pattern)}; expected {what}")
    return found


def _numbers(texts: "np.ndarray[tuple[int], np.dtype[np.str_]]") -> np.ndarray:
    """Class ids where all labels are, and the texts where one is a name."""
    found = [text for text in texts.tolist() if text]
    if all(text.removeprefix("-").isdecimal() and len(text) < 10 for text in found):
        return np.array([int(text) if text else -1 for text in texts.tolist()], np.int64)
    return texts
