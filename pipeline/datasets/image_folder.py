"""A folder of images, one folder a class."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from logitbank.pipeline.datasets.classes import known_classes
from logitbank.pipeline.datasets.image_files import ImageFiles
from logitbank.pipeline.datasets.image_tree import UNLABELLED, Tree, beside, find_folder, read_tree
from logitbank.pipeline.datasets.spec import check_split, read_one, read_whole, said, shown, spell, tell
from logitbank.pipeline.datasets.split import Split

ON_ERROR = ("stop", "skip")
MAX_SIZE = 4096


def load_image_folder(
    path: str, *, split: str = "train", size: str = "224", on_error: str = "stop", classes: str = ""
) -> Split:
    """``DIR/train/CLASS/**`` when DIR has a folder of the split's name, else ``DIR/CLASS/**``, sorted by path.

    Images stay in their files, and are decoded when they are read. A folder ``unlabelled`` is no class: its images
    have the label -1. Each file is a row, or is named with a number, or is refused; hidden files and folders are never
    read, and links are followed.

    Args:
        path: DIR.
        split: "train" or "test"; "val" and "validation" are other names of the test split's folder.
        size: Pixels that the shorter side is resized to, before a square is cut out of the middle.
        on_error: ``stop`` looks at every header now and refuses files that are no images; one that turns out to be cut
            off later stops the pass. ``skip`` decodes every image once now, and masks the rows of those that fail, in
            their places: no other row moves.
        classes: Number of classes, or a file of their names; see ``known_classes``. Without it they are the folders of
            the training split.

    Raises:
        ValueError: No such folder, no images, images that cannot be decoded, or outside the folders of known classes.
    """
    given = said({"on_error": on_error, "classes": classes}, {"on_error": "stop"})
    spec = spell("imagefolder", path, {"split": split, "size": size, **given})
    check_split(spec, split)
    read_one(spec, "on_error", on_error, ON_ERROR)
    pixels = read_whole(spec, "size", size, 1, MAX_SIZE, f"1 to {MAX_SIZE} pixels")
    tree, names = _read(path, split, classes, spec)
    files = ImageFiles(tree.images, pixels)
    looked = files.look(decode=on_error == "skip")
    broken = np.array([bool(fault) for fault in looked.faults])
    if broken.any():
        message = _broken_message(spec, files.paths, looked.faults)
        if on_error == "stop" or broken.all():
            raise ValueError(f"{message}; mend or remove them, or pass on_error=skip")
        tell(f"{message}; their rows are masked")
    if any(looked.frames):
        several = [str(file) for file, frames in zip(files.paths, looked.frames, strict=True) if frames]
        tell(f"{spec}: {len(several)} files hold several frames, the first is read: {shown(several)}")
    files.broken = broken
    label_of = {UNLABELLED: -1, **{name: label for label, name in enumerate(names)}}
    return Split(
        name=Path(path).name,
        split=split,
        spec=spec,
        samples=cast(Any, files),
        labels=np.array([label_of[tree.class_of(image)] for image in tree.images], dtype=np.int64),
        num_classes=max(len(names), 2),
        class_names=names if len(names) >= 2 else (),
        readable=~broken if broken.any() else None,
    )


def _read(path: str, split: str, classes: str, spec: str) -> tuple[Tree, tuple[str, ...]]:
    """The split's files, and the names of all classes."""
    folder = find_folder(path, split, spec)
    tree = read_tree(folder, spec)
    if not tree.images:
        raise ValueError(f"{spec}: no images in {folder}; expected {folder}/CLASS/*.jpg")
    if tree.others:
        files = [file.relative_to(folder) for file in tree.others]
        tell(f"{spec}: {len(files)} files are no images by their names: {shown(files)}")
    if tree.empty:
        tell(f"{spec}: {len(tree.empty)} folders hold no images and are no classes: {shown(tree.empty)}")
    left = beside(folder, Path(path))
    if left:
        tell(f"{spec}: {len(left)} folders beside {folder.name} are not read: {shown(left)}")
    alone = split == "train" or not (Path(path) / "train").is_dir()
    trained = tree if alone else read_tree(find_folder(path, "train", spec), spec)
    names = known_classes(trained.classes, classes, spec)
    odd = [image for image in tree.images if tree.class_of(image) not in (*names, UNLABELLED)]
    if odd:
        folders = sorted({tree.class_of(image) for image in odd})
        raise ValueError(
            f"{spec}: {len(odd)} of {len(tree.images)} images are of {len(folders)} classes that the training folder"
            f" lacks: {shown(folders)}; remove them, or pass classes=FILE, a file that names all classes"
        )
    return tree, names


def _broken_message(spec: str, paths: list[Path], faults: list[str]) -> str:
    found = [f"{path} ({fault})" for path, fault in zip(paths, faults, strict=True) if fault]
    return f"{spec}: {len(found)} files cannot be decoded: {shown(found)}"
