"""torchvision's small image datasets, decoded into memory: CIFAR10, CIFAR100, MNIST, FashionMNIST."""

from pathlib import Path

import numpy as np

from pipeline.datasets.split import Split
from pipeline.spelling import unknown
from pipeline.torchvision_ops import prepare_torchvision

TORCHVISION_SETS = ("CIFAR10", "CIFAR100", "MNIST", "FashionMNIST")


def load_torchvision(name: str, *, split: str = "train", root: str = "data", download: str = "0") -> Split:
    """One of torchvision's datasets from a folder; downloads nothing unless ``download=1``.

    Args:
        name: One of ``TORCHVISION_SETS``.
        split: "train" or "test".
        root: Folder that holds the files as torchvision stores them.
        download: "1" allows torchvision to download them.

    Raises:
        ValueError: Unknown name or split, or files that are not there.
    """
    prepare_torchvision()
    from torchvision import datasets

    if name not in TORCHVISION_SETS:
        raise ValueError(unknown("torchvision dataset", name, TORCHVISION_SETS))
    if split not in ("train", "test"):
        raise ValueError(f"torchvision:{name} has no split {split!r}; use split=train or split=test")
    spec = f"torchvision:{name}?root={root}&split={split}"
    try:
        source = getattr(datasets, name)(root=str(Path(root)), train=split == "train", download=download == "1")
    except RuntimeError as error:
        raise ValueError(
            f"{spec}: dataset not found in {Path(root).resolve()} ({str(error).split('.')[0].lower()});"
            " give root=DIR, or download=1 to download it"
        ) from error
    images = np.asarray(source.data)
    return Split(
        name=name,
        split=split,
        spec=spec,
        samples=np.ascontiguousarray(images[..., None] if images.ndim == 3 else images),
        labels=np.asarray(source.targets, dtype=np.int64),
        num_classes=len(source.classes),
        class_names=tuple(source.classes),
    )
