"""scikit-learn's handwritten digits: 1,797 real 8 x 8 scans inside the wheel; nothing is downloaded."""

import numpy as np

from logitbank.pipeline.datasets.classes import number_classes
from logitbank.pipeline.datasets.spec import check_split, said, spell
from logitbank.pipeline.datasets.split import Split

TEST_SHARE = 0.2
SPLIT_SEED = 0


def load_digits(*, split: str = "train", classes: str = "") -> Split:
    """The digits, split once and for all: stratified, 1,437 train and 360 test images of [8, 8, 1].

    Args:
        split: "train" or "test".
        classes: Number of classes, or a file of their names; see ``known_classes``.

    Raises:
        ValueError: Another split, or classes that are not those of digits.

    References:
        Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI repository, 1998.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    spec = spell("digits", "", {"split": split, **said({"classes": classes}, {})})
    check_split(spec, split)
    bunch = sklearn_digits()
    rows = np.arange(len(bunch.target))
    train, test = train_test_split(rows, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=bunch.target)
    chosen = np.sort(train if split == "train" else test)
    images = (bunch.images * 15).astype(np.uint8)[..., None]  # grey levels 0..16 become 0..240
    digits = tuple(str(digit) for digit in range(10))
    labels, num_classes, names = number_classes(bunch.target[chosen].astype(np.int64), 9, digits, classes, spec)
    return Split(
        name="digits",
        split=split,
        spec=spec,
        samples=images[chosen],
        labels=labels,
        num_classes=num_classes,
        class_names=names,
    )
