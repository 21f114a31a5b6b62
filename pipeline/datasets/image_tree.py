"""Which files of a folder of images are rows: each file is a row, or is named with a number, or is refused.

Hidden files and folders are never read. Links are followed, and a loop of links is refused.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from logitbank.pipeline.datasets.pictures import SUFFIXES
from logitbank.pipeline.datasets.spec import shown

UNLABELLED = "unlabelled"
TRAIN_NAMES = ("train",)
TEST_NAMES = ("test", "val", "validation")
_SPLIT_LIKE = frozenset({*TRAIN_NAMES, *TEST_NAMES, "training", "testing", "valid", "eval", "dev"})


@dataclass(frozen=True)
class Tree:
    """What lies under one folder.

    Attributes:
        folder: The folder.
        images: Images in the folders of classes, sorted by path.
        others: Files that are no images by their names.
        empty: Names of folders that hold no images and so are no classes.
    """

    folder: Path
    images: list[Path]
    others: list[Path]
    empty: list[str]

    def class_of(self, image: Path) -> str:
        return image.parts[len(self.folder.parts)]

    @property
    def classes(self) -> list[str]:
        """Names of the folders that hold images, sorted; ``unlabelled`` is none."""
        return sorted({self.class_of(image) for image in self.images} - {UNLABELLED})


def find_folder(path: str, split: str, spec: str) -> Path:
    """The folder of a split: ``DIR/train`` and ``DIR/test`` (or val, validation), else DIR itself for training.

    Raises:
        ValueError: No such folder, or one whose folders look like splits under other names.
    """
    root = Path(path)
    if not root.is_dir():
        raise ValueError(f"{spec}: no such folder {path!r}; expected DIR/train/CLASS/*.jpg or DIR/CLASS/*.jpg")
    names = TRAIN_NAMES if split == "train" else TEST_NAMES
    inside = next((root / name for name in names if (root / name).is_dir()), None)
    if inside is not None:
        return inside
    if split == "test":
        raise ValueError(f"{spec}: {path} has no folder test, val or validation; pass other data to evaluate on")
    odd = sorted(child.name for child in root.iterdir() if child.name.lower() in _SPLIT_LIKE and child.is_dir())
    if odd:
        raise ValueError(
            f"{spec}: {path} has no folder train, but {shown(odd)}, which would be read as classes; name the folders"
            " train and test"
        )
    return root


def beside(folder: Path, root: Path) -> list[str]:
    """Folders beside that of a split that no split reads: no splits, or other names of the test split."""
    if folder == root:
        return []
    read = {*TRAIN_NAMES, next((name for name in TEST_NAMES if (root / name).is_dir()), "")}
    return [name for name in _folders(root) if name not in read]


def read_tree(folder: Path, spec: str) -> Tree:
    """Everything under a folder.

    Raises:
        ValueError: Images outside the folders of classes, a loop of links, or names that are no text.
    """
    files = sorted(_walk(folder, (), spec), key=lambda file: file.parts)
    images = [file for file in files if file.suffix.lower() in SUFFIXES]
    loose = [file.name for file in images if file.parent == folder]
    if loose:
        raise ValueError(
            f"{spec}: {len(loose)} images lie in {folder} outside the folders of classes: {shown(loose)}; move them"
            f" into a folder {UNLABELLED} when their classes are not known"
        )
    others = [file for file in files if file.suffix.lower() not in SUFFIXES]
    held = {image.parts[len(folder.parts)] for image in images}
    return Tree(folder, images, others, [name for name in _folders(folder) if name not in held])


def all_pictures(folder: Path, spec: str) -> list[Path]:
    """Every image below a folder, whatever folders it lies in, sorted by path.

    Raises:
        ValueError: No such folder, no images, a loop of links, or names that are no text.
    """
    if not folder.is_dir():
        raise ValueError(f"{spec}: no such folder {str(folder)!r}; expected one with pictures in it")
    images = [file for file in _walk(folder, (), spec) if file.suffix.lower() in SUFFIXES]
    if not images:
        raise ValueError(f"{spec}: no images in {folder}; expected files such as .jpg or .png")
    return sorted(images, key=lambda file: file.parts)


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder that are not hidden."""
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _walk(folder: Path, above: tuple[tuple[int, int], ...], spec: str) -> Iterator[Path]:
    try:
        status = folder.stat()
        with os.scandir(folder) as found:
            entries = [(entry.name, entry.is_dir(), entry.is_file()) for entry in found if entry.name[0] != "."]
    except OSError as error:
        raise ValueError(f"{spec}: {folder} cannot be read ({error.strerror}); mend or remove it") from error
    here = (status.st_dev, status.st_ino)
    if here in above:
        raise ValueError(f"{spec}: {shown([folder])} is a link to a folder that it lies in; remove the link")
    for name, is_folder, is_file in entries:
        path = folder / name
        if not _is_text(name):
            raise ValueError(f"{spec}: the name of {shown([path])} is no UTF-8 text; rename it")
        if is_folder:
            yield from _walk(path, (*above, here), spec)
        elif is_file:
            yield path
        else:
            raise ValueError(f"{spec}: {path} is no file (a link to nowhere?); mend or remove it")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
