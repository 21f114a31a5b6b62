"""A folder of images, one folder a class."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from pipeline.datasets.image_files import ImageFiles, broken_message
from pipeline.datasets.split import Split

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
UNLABELLED = "unlabelled"
ON_ERROR = ("stop", "skip")


def load_image_folder(path: str, *, split: str = "train", size: str = "224", on_error: str = "stop") -> Split:
    """``DIR/train/CLASS/**`` when DIR has a folder of the split's name, else ``DIR/CLASS/**``, sorted by path.

    Images stay in their files, and are decoded when they are read. A folder ``unlabelled`` is no class: its images
    have the label -1.

    Args:
        path: DIR.
        split: "train" or "test"; "val" and "validation" are other names of the test split's folder.
        size: Pixels that the shorter side is resized to, before a square is cut out of the middle.
        on_error: ``stop`` looks at every header now and refuses files that are no images; one that turns out to be cut
            off later stops the pass. ``skip`` decodes every image once now, and masks the rows of those that fail, in
            their places: no other row moves.

    Raises:
        ValueError: No such folder, no images, or images that cannot be decoded.
    """
    spec = f"imagefolder:{path}?split={split}&size={size}" + ("" if on_error == "stop" else f"&on_error={on_error}")
    if on_error not in ON_ERROR:
        raise ValueError(f"{spec}: on_error is {on_error!r}; expected stop or skip")
    if not size.isdigit() or not 1 <= int(size) <= 4096:
        raise ValueError(f"{spec}: size is {size!r}; expected 1 to 4096 pixels")
    folder, root = _folder(path, split, spec), Path(path)
    classes = _classes(folder if split == "train" else _folder(path, "train", spec))
    label_of = {UNLABELLED: -1, **{name: label for label, name in enumerate(classes)}}
    inside = [(file, file.relative_to(folder).parts[0]) for file in _files(folder)]
    found = [(file, label_of[name]) for file, name in inside if name in label_of]
    if not classes or not found:
        raise ValueError(f"{spec}: no images in {folder}; expected {folder}/CLASS/*.jpg")
    files = ImageFiles([file for file, _ in found], int(size))
    broken = files.find_broken(decode=on_error == "skip")
    if broken.any() and (on_error == "stop" or broken.all()):
        raise ValueError(broken_message(spec, [files.paths[row] for row in np.flatnonzero(broken)]))
    files.broken = broken
    return Split(
        name=root.name,
        split=split,
        spec=spec,
        samples=cast(Any, files),
        labels=np.array([label for _, label in found], dtype=np.int64),
        num_classes=max(len(classes), 2),
        class_names=tuple(classes) if len(classes) >= 2 else (),
        readable=~broken if broken.any() else None,
    )


def _folder(path: str, split: str, spec: str) -> Path:
    root = Path(path)
    if split not in ("train", "test"):
        raise ValueError(f"{spec}: no split {split!r}; use split=train or split=test")
    if not root.is_dir():
        raise ValueError(f"{spec}: no such folder {path!r}; expected DIR/train/CLASS/*.jpg or DIR/CLASS/*.jpg")
    names = ("train",) if split == "train" else ("test", "val", "validation")
    inside = next((root / name for name in names if (root / name).is_dir()), None)
    if inside is not None:
        return inside
    if split == "test":
        raise ValueError(f"{spec}: {path} has no folder test, val or validation; pass other data to evaluate on")
    return root


def _classes(folder: Path) -> list[str]:
    children = (child for child in folder.iterdir() if child.is_dir() and child.name != UNLABELLED)
    return sorted(child.name for child in children if _files(child))


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
