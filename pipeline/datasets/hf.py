"""Image classification datasets of the Hugging Face hub, through its own library."""

from typing import Any

import numpy as np

from pipeline.datasets.pictures import fit_image
from pipeline.datasets.split import Split


def load_hf(
    name: str,
    *,
    split: str = "train",
    image: str = "image",
    label: str = "label",
    size: str = "224",
    config: str = "",
    revision: str = "",
) -> Split:
    """A dataset of the hub, decoded into memory; needs ``pip install logitbank[hf]``. No code of the dataset is run.

    Args:
        name: Such as ``uoft-cs/cifar10``.
        split: As the dataset calls it.
        image: Column of the images.
        label: Column of the class ids; -1 or null is unlabelled.
        size: Pixels of the square that every image is brought to.
        config: Configuration of the dataset.
        revision: Commit or tag; without it, the newest.

    Raises:
        ValueError: The library is not installed, or the dataset has no such split or columns.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError("hf: needs the datasets library; run `pip install logitbank[hf]`") from error
    options = {"image": image, "label": label, "size": size, "config": config, "revision": revision}
    spec = f"hf:{name}?split={split}" + "".join(f"&{key}={value}" for key, value in options.items() if value)
    if not size.isdigit() or int(size) < 1:
        raise ValueError(f"{spec}: size is {size!r}; expected a number of pixels")
    try:
        source: Any = datasets.load_dataset(name, config or None, split=split, revision=revision or None)
    except Exception as error:  # the library raises many kinds
        raise ValueError(f"{spec}: cannot be loaded ({str(error).splitlines()[0]})") from error
    missing = [column for column in (image, label) if column not in source.column_names]
    if missing:
        raise ValueError(f"{spec}: no column {missing[0]!r}; it has {', '.join(source.column_names)}")
    labels = np.array([-1 if value is None else int(value) for value in source[label]], dtype=np.int64)
    names = tuple(getattr(source.features[label], "names", None) or ())
    return Split(
        name=name.rpartition("/")[2],
        split=split,
        spec=spec,
        samples=np.stack([fit_image(picture, int(size)) for picture in source[image]]),
        labels=labels,
        num_classes=len(names) or max(int(labels.max(initial=-1)) + 1, 2),
        class_names=names,
    )
