"""What a run reads: opened from its texts, shared by the runs of a sweep, or objects of one's own."""

from dataclasses import dataclass
from pathlib import Path

from logitbank.pipeline.datasets import Split, load_split, with_split
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import allow_views
from logitbank.stores import Store, local_store, open_store


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What runs read, and can share; where they are given, a run's own store and data are not opened.

    Attributes:
        store: A finished store; it is checked against ``split`` before the first step.
        split: The data that the store was written for.
        test: Evaluated once, at the end; None evaluates nothing.
    """

    store: Store
    split: Split
    test: Split | None = None


def open_inputs(run: Run) -> Inputs:
    """Opens the store, copied into the cache first where it is elsewhere, and reads the data.

    Raises:
        ValueError: One of them cannot be read, or the store's views were not made by ``run.transform``.
    """
    store = open_store(local_store(Path(run.store)))
    allow_views(run.transform, store.views)
    test = load_split(run.eval_data or with_split(run.data, "test"))
    return Inputs(store=store, split=load_split(run.data), test=test)
