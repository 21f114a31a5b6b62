"""A folder of images, one folder a class."""

from pathlib import Path
from typing import Any, cast

import numpy as np

from logitbank.pipeline.datasets.classes import known_classes
from logitbank.pipeline.datasets.encoded import ON_ERROR
from logitbank.pipeline.datasets.image_tree import UNLABELLED, Tree, beside, find_folder, read_tree
from logitbank.pipeline.datasets.picture_files import MAX_SIZE, read_pictures
from logitbank.pipeline.datasets.spec import check_split, read_flag, read_one, read_whole, said, shown, spell, tell
from logitbank.pipeline.datasets.split import Split


def load_image_folder(
    path: str, *, split: str = "train", size: str = "", upright: str = "0", on_error: str = "stop", classes: str = ""
) -> Split:
    """``DIR/train/CLASS/**`` when DIR has a folder of the split's name, else ``DIR/CLASS/**``, sorted by path.

    Images stay in their files, as they are, and are decoded when they are read. A folder ``unlabelled`` is no class:
    its images have the label -1. Each file is a row, or is named with a number, or is refused; hidden files and folders
    are never read, and links are followed.

    Args:
        path: DIR.
        split: "train" or "test"; "val" and "validation" are other names of the test split's folder.
        size: For small trials: pixels that the shorter side is resized to, and the side of the square that is cut out
            of the middle, before any view. Without it views are cut from the original, and each model resizes it as
            its library does.
        upright: 1 turns pictures as their EXIF says. Without it they are read as they lie in the file, as torchvision
            and timm read them; ``size`` always turns them.
        on_error: ``stop`` looks at every header now and refuses files that are no images; one that turns out to be cut
            off later stops the pass. ``skip`` decodes every image once now, and masks the rows of those that fail, in
            their places: no other row moves.
        classes: Number of classes, or a file of their names; see ``known_classes``. Without it they are the folders of
            the training split.

    Raises:
        ValueError: No such folder, no images, images that cannot be decoded, or outside the folders of known classes.
    """
    given = said(
        {"size": size, "upright": upright, "on_error": on_error, "classes": classes},
        {"upright": "0", "on_error": "stop"},
    )
    spec = spell("imagefolder", path, {"split": split, **given})
    check_split(spec, split)
    read_one(spec, "on_error", on_error, ON_ERROR)
    turn = read_flag(spec, "upright", upright)
    pixels = read_whole(spec, "size", size, 1, MAX_SIZE, f"1 to {MAX_SIZE} pixels") if size else 0
    if turn and pixels:
        raise ValueError(f"{spec}: upright=1 does nothing here, because size always turns pictures; leave it out")
    tree, names = _read(path, split, classes, spec)
    samples, readable = read_pictures(tree.images, spec, size=pixels, upright=turn, skip=on_error == "skip")
    label_of = {UNLABELLED: -1, **{name: label for label, name in enumerate(names)}}
    return Split(
        name=Path(path).name,
        split=split,
        spec=spec,
        samples=cast(Any, samples),
        labels=np.array([label_of[tree.class_of(image)] for image in tree.images], dtype=np.int64),
        num_classes=max(len(names), 2),
        class_names=names if len(names) >= 2 else (),
        readable=readable,
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
