"""torchvision's classification sets, read by its own classes: pictures stay in their files, arrays are as they are."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.classes import number_classes
from logitbank.pipeline.datasets.held_out import divide_rows
from logitbank.pipeline.datasets.picture_files import MAX_SIZE, read_pictures
from logitbank.pipeline.datasets.spec import read_flag, read_whole, said, spell
from logitbank.pipeline.datasets.split import Split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.spelling import unknown

Found = tuple[npt.NDArray[np.uint8] | list[Path], list[Any]]
"""Images [N, H, W] or [N, H, W, C], or one file an example; and labels, None where there is none."""


def _arrays(source: Any) -> Found:
    targets = np.asarray(source.targets)
    return np.asarray(source.data), list(targets[:, 0] if targets.ndim == 2 else targets)


def _channels_first(source: Any) -> Found:
    return np.moveaxis(source.data, 1, -1), list(source.labels)


def _decoded(source: Any) -> Found:
    pairs = [source[row] for row in range(len(source))]
    return np.stack([np.asarray(image) for image, _ in pairs]), [label for _, label in pairs]


def _loaded(source: Any) -> Found:
    """Of a class that takes a loader, here one that gives the path."""
    pairs = [source[row] for row in range(len(source))]
    if type(source).__name__ in ("SUN397", "INaturalist"):  # they list files as the file system does
        pairs.sort()
    return [Path(path) for path, _ in pairs], [label for _, label in pairs]


def _gtsrb(source: Any) -> Found:
    return [Path(path) for path, _ in source._samples], [label for _, label in source._samples]


def _pets(source: Any) -> Found:
    return list(source._images), list(source._labels)


def _caltech101(source: Any) -> Found:
    folder = Path(source.root) / "101_ObjectCategories"
    pairs = zip(source.y, source.index, strict=True)
    return [folder / source.categories[y] / f"image_{number:04d}.jpg" for y, number in pairs], source.y


def _caltech256(source: Any) -> Found:
    folder = Path(source.root) / "256_ObjectCategories"
    pairs = zip(source.y, source.index, strict=True)
    return [folder / source.categories[y] / f"{y + 1:03d}_{number:04d}.jpg" for y, number in pairs], source.y


def _path_itself(path: Any) -> Any:
    return path


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """One line of the table.

    Attributes:
        splits: Our split -> the arguments by which the class knows it. With "train" alone it has no test split.
        read: Images or files, and labels, of an instance of the class.
        of: Name of the class, where it is not that of the set.
        num_classes: Where the class does not name them.
        folder: What must lie under the root: the class would make it, or unpack archives.
        downloads: The class takes the argument ``download``.
        options: Arguments besides.
    """

    splits: Mapping[str, Mapping[str, Any]]
    read: Callable[[Any], Found] = _loaded
    of: str = ""
    num_classes: int = 0
    folder: Callable[[Mapping[str, Any]], str] | None = None
    downloads: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)


def _named(**splits: str) -> dict[str, dict[str, str]]:
    return {name: {"split": theirs} for name, theirs in splits.items()}


_FLAG = {"train": {"train": True}, "test": {"train": False}}
_BOTH = _named(train="train", test="test")
_THREE = _named(train="train", val="val", test="test")
_ALONE: dict[str, dict[str, Any]] = {"train": {}}
_EMNIST = ("balanced", "byclass", "bymerge", "letters", "digits", "mnist")

TORCHVISION_SETS: dict[str, TorchvisionSet] = {
    "CIFAR10": TorchvisionSet(splits=_FLAG, read=_arrays),
    "CIFAR100": TorchvisionSet(splits=_FLAG, read=_arrays),
    "MNIST": TorchvisionSet(splits=_FLAG, read=_arrays),
    "FashionMNIST": TorchvisionSet(splits=_FLAG, read=_arrays),
    "KMNIST": TorchvisionSet(splits=_FLAG, read=_arrays),
    "QMNIST": TorchvisionSet(splits=_FLAG, read=_arrays),
    **{
        f"EMNIST-{part}": TorchvisionSet(splits=_FLAG, read=_arrays, of="EMNIST", options={"split": part})
        for part in _EMNIST
    },
    "USPS": TorchvisionSet(splits=_FLAG, read=_arrays, num_classes=10),
    "SEMEION": TorchvisionSet(splits=_ALONE, read=_decoded, num_classes=10),
    "SVHN": TorchvisionSet(
        splits=_named(train="train", test="test", extra="extra"), read=_channels_first, num_classes=10
    ),
    "STL10": TorchvisionSet(
        splits=_named(train="train", test="test", unlabelled="unlabeled"), read=_channels_first, num_classes=10
    ),
    "FER2013": TorchvisionSet(splits=_BOTH, read=_decoded, num_classes=7, downloads=False),
    "Caltech101": TorchvisionSet(splits=_ALONE, read=_caltech101, folder=lambda _: "caltech101"),
    "Caltech256": TorchvisionSet(splits=_ALONE, read=_caltech256, folder=lambda _: "caltech256"),
    "CLEVRClassification": TorchvisionSet(splits=_THREE, num_classes=11),
    "Country211": TorchvisionSet(splits=_named(train="train", val="valid", test="test")),
    "DTD": TorchvisionSet(splits=_THREE),
    "EuroSAT": TorchvisionSet(splits=_ALONE),
    "FGVCAircraft": TorchvisionSet(splits=_named(train="trainval", test="test")),
    "Flowers102": TorchvisionSet(splits=_THREE, num_classes=102),
    "Food101": TorchvisionSet(splits=_BOTH),
    "GTSRB": TorchvisionSet(splits=_BOTH, read=_gtsrb, num_classes=43),
    "ImageNet": TorchvisionSet(
        splits=_named(train="train", test="val"), folder=lambda chosen: chosen["split"], downloads=False
    ),
    "Imagenette": TorchvisionSet(splits=_named(train="train", test="val")),
    "INaturalist": TorchvisionSet(
        splits={"train": {"version": "2021_train"}, "test": {"version": "2021_valid"}},
        folder=lambda chosen: chosen["version"],
    ),
    "LFWPeople": TorchvisionSet(splits=_BOTH),
    "OxfordIIITPet": TorchvisionSet(splits=_named(train="trainval", test="test"), read=_pets),
    "Places365": TorchvisionSet(splits=_named(train="train-standard", test="val")),
    "Places365-small": TorchvisionSet(
        splits=_named(train="train-standard", test="val"), of="Places365", options={"small": True}
    ),
    "RenderedSST2": TorchvisionSet(splits=_THREE),
    "StanfordCars": TorchvisionSet(splits=_BOTH),
    "SUN397": TorchvisionSet(splits=_ALONE),
}


def load_torchvision(
    name: str,
    *,
    split: str = "train",
    root: str = "data",
    download: str = "0",
    size: str = "",
    test_share: str = "",
    classes: str = "",
) -> Split:
    """One of torchvision's classification sets from a folder; downloads and unpacks nothing unless ``download=1``.

    Args:
        name: One of ``TORCHVISION_SETS``.
        split: "train" or "test"; some have others. The test split of ImageNet, Imagenette, INaturalist and Places365
            is their validation split, whose labels are known.
        root: Folder that holds the files as torchvision stores them.
        download: "1" allows torchvision to download and to unpack them.
        size: For small trials, of sets that keep pictures in files: see ``load_image_folder``.
        test_share: Share of the rows of a set without a test split that is its test split (default: 0.2).
        classes: Number of classes, or a file of their names; see ``known_classes``.

    Raises:
        ValueError: Unknown name or split, files that are not there, or an option that does nothing.
    """
    if name not in TORCHVISION_SETS:
        raise ValueError(unknown("torchvision dataset", name, [*TORCHVISION_SETS]))
    entry = TORCHVISION_SETS[name]
    given = {"download": download, "size": size, "test_share": test_share, "classes": classes}
    spec = spell("torchvision", name, {"root": root, "split": split, **said(given, {"download": "0"})})
    divided = "test" not in entry.splits
    known = ["train", "test"] if divided else list(entry.splits)
    if split not in known:
        raise ValueError(f"{spec}: no split {split!r}; use split={' or split='.join(known)}")
    if test_share and not divided:
        raise ValueError(f"{spec}: test_share does nothing here, because {name} has a test split; leave it out")
    pixels = read_whole(spec, "size", size, 1, MAX_SIZE, f"1 to {MAX_SIZE} pixels") if size else 0
    source = _open(name, entry, "train" if divided else split, root, read_flag(spec, "download", download), spec)
    images, targets = source[0]
    labels = np.array([-1 if target is None else target for target in targets], dtype=np.int64)
    if divided:
        train, test = divide_rows(len(labels), test_share, spec)
        rows = train if split == "train" else test
        labels = labels[rows]
        images = [images[row] for row in rows] if isinstance(images, list) else images[rows]
    labels, num_classes, names = number_classes(labels, source[1] - 1, source[2], classes, spec)
    return Split(
        name=name,
        split=split,
        spec=spec,
        samples=_samples(images, pixels, spec),
        labels=labels,
        num_classes=num_classes,
        class_names=names,
    )


def _samples(images: npt.NDArray[np.uint8] | list[Path], pixels: int, spec: str) -> Any:
    if isinstance(images, list):
        return read_pictures(images, spec, size=pixels)[0]
    if pixels:
        raise ValueError(f"{spec}: size does nothing here, because these images are no files; leave it out")
    return np.ascontiguousarray(images[..., None] if images.ndim == 3 else images)


def _open(
    name: str, entry: TorchvisionSet, split: str, root: str, download: bool, spec: str
) -> tuple[Found, int, tuple[str, ...]]:
    """Images and labels, the number of classes, and their names where the class has them."""
    prepare_torchvision()
    from torchvision import datasets

    chosen = entry.splits[split]
    missing = entry.folder is not None and not (Path(root) / entry.folder(chosen)).is_dir()
    if missing and not download:
        raise ValueError(_not_found(spec, root, f"no folder {entry.folder(chosen)}"))  # type: ignore[misc]
    arguments = {**entry.options, **chosen, **({"loader": _path_itself} if entry.read is _loaded else {})}
    if entry.downloads:
        arguments["download"] = download
    try:
        source = getattr(datasets, entry.of or name)(root=str(Path(root)), **arguments)
        found = entry.read(source)
    except Exception as error:  # the library raises many kinds on files that are missing or damaged
        reason = " ".join(str(error).split()).split(".")[0].lower() or type(error).__name__
        raise ValueError(_not_found(spec, root, reason)) from error
    listed = (getattr(source, name, ()) for name in ("classes", "categories", "all_categories", "class_to_idx"))
    own = next(filter(None, listed), ())
    names = tuple(each if isinstance(each, str) else ", ".join(each) for each in own)
    return found, len(names) or entry.num_classes, names


def _not_found(spec: str, root: str, reason: str) -> str:
    return (
        f"{spec}: dataset not found in {Path(root).resolve()} ({reason}); give root=DIR, or download=1 to download it"
    )
