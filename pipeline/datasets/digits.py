"""scikit-learn's handwritten digits: 1,797 real 8 x 8 scans inside the wheel; nothing is downloaded."""

import numpy as np

from pipeline.datasets.split import Split

TEST_SHARE = 0.2
SPLIT_SEED = 0


def load_digits(split: str = "train") -> Split:
    """The digits, split once and for all: stratified, 1,437 train and 360 test images of [8, 8, 1].

    Raises:
        ValueError: When the split is neither "train" nor "test".

    References:
        Alpaydin, Kaynak. Optical Recognition of Handwritten Digits. UCI repository, 1998.
    """
    from sklearn.datasets import load_digits as sklearn_digits
    from sklearn.model_selection import train_test_split

    if split not in ("train", "test"):
        raise ValueError(f"digits has no split {split!r}; use split=train or split=test")
    bunch = sklearn_digits()
    rows = np.arange(len(bunch.target))
    train, test = train_test_split(rows, test_size=TEST_SHARE, random_state=SPLIT_SEED, stratify=bunch.target)
    chosen = np.sort(train if split == "train" else test)
    images = (bunch.images * 15).astype(np.uint8)[..., None]  # grey levels 0..16 become 0..240
    return Split(
        name="digits",
        split=split,
        spec=f"digits?split={split}",
        samples=images[chosen],
        labels=bunch.target[chosen].astype(np.int64),
        num_classes=10,
        class_names=tuple(str(digit) for digit in range(10)),
    )
