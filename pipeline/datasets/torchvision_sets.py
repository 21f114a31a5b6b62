"""torchvision's small image datasets, decoded into memory: CIFAR10, CIFAR100, MNIST, FashionMNIST."""

from pathlib import Path

import numpy as np

from logitbank.pipeline.datasets.classes import number_classes
from logitbank.pipeline.datasets.spec import check_split, read_flag, said, spell
from logitbank.pipeline.datasets.split import Split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.spelling import unknown

TORCHVISION_SETS = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST")


def load_torchvision(
    name: str, *, split: str = "train", root: str = "data", download: str = "0", classes: str = ""
) -> Split:
    """One of torchvision's datasets from a folder; downloads nothing unless ``download=1``.

    Args:
        name: One of ``TORCHVISION_SETS``.
        split: "train" or "test".
        root: Folder that holds the files as torchvision stores them.
        download: "1" allows torchvision to download them.
        classes: Number of classes, or a file of their names; see ``known_classes``.

    Raises:
        ValueError: Unknown name or split, or files that are not there.
    """
    prepare_torchvision()
    from torchvision import datasets

    if name not in TORCHVISION_SETS:
        raise ValueError(unknown("torchvision dataset", name, TORCHVISION_SETS))
    given = said({"download": download, "classes": classes}, {"download": "0"})
    spec = spell("torchvision", name, {"root": root, "split": split, **given})
    check_split(spec, split)
    allowed = read_flag(spec, "download", download)
    try:
        source = getattr(datasets, name)(root=str(Path(root)), train=split == "train", download=allowed)
        images, targets, own = np.asarray(source.data), np.asarray(source.targets, dtype=np.int64), source.classes
    except Exception as error:  # the library raises many kinds on files that are missing or damaged
        reason = " ".join(str(error).split()).split(".")[0].lower() or type(error).__name__
        raise ValueError(
            f"{spec}: dataset not found in {Path(root).resolve()} ({reason}); give root=DIR, or"
            " download=1 to download it"
        ) from error
    labels, num_classes, names = number_classes(targets, len(own) - 1, own, classes, spec)
    return Split(
        name=name,
        split=split,
        spec=spec,
        samples=np.ascontiguousarray(images[..., None] if images.ndim == 3 else images),
        labels=labels,
        num_classes=num_classes,
        class_names=names,
    )
