"""Students of stores and data in memory, for tests of what comes of them."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.described import from_values
from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.train_student.inputs import Inputs
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.stores import Store


def train(
    store: Store,
    split: Split,
    test: Split | None,
    out: Path,
    *,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
    asked: Mapping[str, Any] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains a student; what is asked, and further settings, are those of a run and of its training, by name."""
    base = {"store": str(store.path), "data": split.spec, "student": "mlp:16", "workers": 0}
    run = from_values(Run, {**base, **(asked or {}), **settings})
    inputs = Inputs(store=store, split=split, test=test)
    return train_student(run, out, inputs=inputs, on_epoch=on_epoch, on_warning=on_warning)
