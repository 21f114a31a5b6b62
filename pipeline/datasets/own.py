"""Data of one's own: ``path/to/file.py:factory?option=value``."""

from collections.abc import Mapping

import numpy as np

from pipeline.datasets.split import Split
from pipeline.user_code import call_factory


def load_own(factory: str, options: Mapping[str, str]) -> Split:
    """Calls the factory with the spec's options, as text, and ``split`` ("train" when left out).

    It returns a ``pipeline.datasets.Split``, or a pair (samples, labels): uint8 images [N, H, W, C] or a float table
    [N, D], and integers [N] with -1 for unlabelled rows. The same call must give the same examples in the same order.

    Raises:
        ValueError: The factory cannot be called so, or returns something else.
    """
    options = {"split": "train", **options}
    spec = factory + "?" + "&".join(f"{name}={value}" for name, value in options.items())
    made = call_factory(factory, options)
    if isinstance(made, Split):
        return made
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError(f"{spec}: the factory returned {type(made).__name__}; expected (samples, labels) or a Split")
    samples, labels = (np.asarray(part) for part in made)
    image = samples.ndim == 4 and samples.dtype == np.uint8
    if not image and not (samples.ndim == 2 and np.issubdtype(samples.dtype, np.number)):
        raise ValueError(
            f"{spec}: samples are {samples.dtype} {list(samples.shape)}; expected uint8 [N, H, W, C] or numbers [N, D]"
        )
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{spec}: labels are {labels.dtype} {list(labels.shape)}; expected integers [N]")
    return Split(
        name=factory.rpartition(":")[2],
        split=options["split"],
        spec=spec,
        samples=np.ascontiguousarray(samples if image else samples.astype(np.float32)),
        labels=labels.astype(np.int64),
        num_classes=max(int(labels.max(initial=-1)) + 1, 2),
    )
