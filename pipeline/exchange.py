"""What makes a store of some other set of examples, and a store's numbers for people without Zarr.

Shapes: N examples, V views, C classes.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets.split import order_fingerprint, set_fingerprint
from pipeline.views import Views


def describe_examples(
    dataset: Mapping[str, Any],
    views: Mapping[str, Any],
    keys: npt.NDArray[np.uint64],
    labels: npt.NDArray[np.integer],
) -> dict[str, Any]:
    """The dataset attributes of a store of these examples of a dataset.

    Raises:
        ValueError: A view shows two examples, and which ones depends on all examples of the dataset.
    """
    if Views.from_attributes(views).mixes:
        raise ValueError(
            f"transform {views['transform']!r} mixes an example with others of its dataset, so its views are those of"
            " the whole dataset only; keep all examples together"
        )
    return {
        **dataset,
        "num_examples": len(keys),
        "fingerprint": order_fingerprint(keys, labels),
        "fingerprint_unordered": set_fingerprint(keys, labels),
    }
