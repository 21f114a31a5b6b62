"""The examples of a store for one's own training loop: what the student sees, with the row and view to ask about.

Shapes: B batch, N examples.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.resize_crop import ResizeCrop
from logitbank.pipeline.views import Views
from logitbank.stores import Store

Preprocess = Callable[[Tensor], Tensor]


@runtime_checkable
class Resizes(Protocol):
    """What a model's ``Preprocessing`` says beside its call: how the model resizes originals."""

    fit: ResizeCrop | None


class Example(NamedTuple):
    """One example; a loader stacks each field, so that a batch is an ``Example`` of tensors [B, ...]."""

    sample: Tensor
    """What the teacher saw in the view, preprocessed for the student."""
    label: int | Tensor
    """Class id; -1 where there is none, also in views that show two examples. Of L positions int64 [L]."""
    row: int
    """Of the store."""
    view: int
    """Of the store; ``answers.of(row, view)`` is the teacher's answer to these very pixels."""


class DistillationDataset(Dataset[Example]):
    """Map-style: row i of the store, in the view of the epoch.

    An example names its own row and view, so no sampler, subset, order, worker or process can give it the answer to
    another one. The epoch lies in memory that is shared with the workers of a loader, persistent ones too, however
    they are started.

    Args:
        store: A finished store.
        split: The data that it was written for.
        preprocess: From samples as the views give them, uint8 [B, H, W, C] or float32 [B, D], to the student's inputs,
            such as ``own_preprocessing("timm:resnet18", split)`` or ``fit_preprocessing(split)``; None hands them out
            as they are.

    Raises:
        ValueError: Row i of the store is not example i of the data.
    """

    def __init__(self, store: Store, split: Split, preprocess: Preprocess | None = None) -> None:
        check_data(store, split)
        self.views = Views.from_attributes(store.views)
        if self.views.label_map:
            raise ValueError(
                f"{store.path} holds label maps, which train-student takes crops of; for a loop of your own see"
                " CroppedAnswers in pipeline/answers/label_map.py"
            )
        self._split, self._preprocess = split, preprocess
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]

    def set_epoch(self, epoch: int) -> None:
        """Called before each epoch, counted from 0, as of a sampler: epoch e shows view e modulo V."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; expected 0 or more")
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, row: int) -> Example:
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Example]:
        """The examples of some rows, transformed together: what a loader asks for a batch."""
        chosen = np.asarray(rows, dtype=np.int64)
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self):
            raise IndexError(f"expected rows 0 to {len(self) - 1}, found {int(chosen.min())} to {int(chosen.max())}")
        view = self.views.of_epoch(int(self._epoch))
        fit = self._preprocess.fit if isinstance(self._preprocess, Resizes) else None
        samples = torch.from_numpy(self.views.samples(self._split, chosen, view, fit))
        if self._preprocess is not None:
            samples = self._preprocess(samples)
        labels = np.full_like(self._split.labels[chosen], -1) if self.views.mixes else self._split.labels[chosen]
        each = labels.tolist() if labels.ndim == 1 else torch.from_numpy(labels)
        return [Example(*found, view) for found in zip(samples, each, chosen.tolist(), strict=True)]

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._epoch.share_memory_()  # a copy has an epoch of its own, and shares it with its own workers
