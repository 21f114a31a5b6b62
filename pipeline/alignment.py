"""Row i of a store is example i of the data: proved before anything is answered, learnt or compared.

Shapes: N examples, V views.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import Split, few_rows
from logitbank.pipeline.datasets.split import order_fingerprint, set_fingerprint
from logitbank.pipeline.views import Views, check_probes
from logitbank.stores import Store


def check_data(store: Store, split: Split) -> None:
    """Proves that row i of the store is example i of the split, in every view.

    Raises:
        ValueError: Another dataset or split, another order, other labels, or views that replay to other pixels.
    """
    said, views = store.dataset, Views.from_attributes(store.views)
    if views.label_map and store.positions != views.label_map**2:
        raise ValueError(
            f"{store.path} says that it holds label maps of {views.label_map} x {views.label_map}, but has"
            f" {store.positions} positions; do not use this store"
        )
    split = views.answered(split)
    if store.positions != split.positions:
        raise ValueError(
            f"{store.path} has {_answers(store.positions)}, {split.spec} has {_answers(split.positions)}; pass the"
            " data that the store was written for"
        )
    if said["fingerprint"] != split.fingerprint:
        raise ValueError(_difference(store, split))
    if split.num_classes != said["num_classes"]:
        raise ValueError(
            f"store was written for {said['num_classes']} classes, {split.spec} has {split.num_classes}; add"
            f" classes={said['num_classes']} to the data"
        )
    if not (np.array_equal(store.keys, split.keys) and np.array_equal(store.labels, split.labels)):
        raise ValueError(
            f"{store.path}: its keys and labels are not those that its fingerprint {split.fingerprint[:8]} is made of;"
            " do not use this store"
        )
    check_probes(split, views, store.probes, num_views=views.num_views)


def _answers(positions: int | None) -> str:
    return "one label an example" if positions is None else f"labels at {positions} positions"


def _difference(store: Store, split: Split) -> str:
    said = store.dataset
    wrote = f"store was written for {said['name']} {said['split']} ({said['num_examples']} examples,"
    wrote = f"{wrote} fingerprint {str(said['fingerprint'])[:8]})"
    found = f"this data is {split.spec} ({len(split)} examples, fingerprint {split.fingerprint[:8]})"
    if said.get("fingerprint_unordered") == set_fingerprint(split.keys, split.labels):
        return f"{wrote}; {found}, with the same examples in another order: restore the order of the store"
    if len(split) == store.num_examples and np.array_equal(np.asarray(store.keys), split.keys):
        differ = (np.asarray(store.labels) != split.labels).reshape(len(split), -1)
        wrong = int(differ.any(axis=1).sum())
        return f"{wrote}; {found}, with other labels on {wrong} examples: use the labels that the store was made with"
    if len(split) == store.num_examples and np.array_equal(np.sort(store.keys), np.sort(split.keys)):
        return (
            f"{wrote}; {found}, with the same examples in another order and with other labels, as after a class was"
            " renamed: restore its name, or the order and the labels"
        )
    if np.array_equal(np.asarray(store.keys), split.keys[few_rows(len(split), store.num_examples)]):
        return f"{wrote}; {found}: the store is of a trial; add limit={store.num_examples} to the data"
    if len(split) > store.num_examples and np.isin(np.asarray(store.keys), split.keys).all():
        more = len(split) - store.num_examples
        return f"{wrote}; {found}, with {more} more: take those out, or cache all again, since a store does not grow"
    shrunk = "" if split.originals is None else ", with its size= where pictures were shrunk (once 224 by default)"
    return f"{wrote}; {found}: pass the data that the store was written for with --data{shrunk}"


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
