"""Logits that somebody computed before: a .npy file in the data's order.

Shapes: C classes, L positions, N examples, V views.
"""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.teachers import ARRAY_PREFIX
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features, Rows, in_turn
from logitbank.pipeline.cache_teacher.teachers.claims import nothing_known
from logitbank.pipeline.cache_teacher.teachers.load import fold_attributes
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import FoldPlan, Folds
from logitbank.pipeline.views import Views


class ArrayTeacher:
    """A teacher that has already spoken: a .npy file of logits [N, C], or [V, N, C], read through a memory map.

    Where examples are answered at positions it has [N, L, C], or [V, N, L, C].

    The file's rows must be in the order of the split; nothing in it can prove that, so it is worth a look at the
    accuracy that ``cache-teacher`` prints.

    Args:
        path: The file; numbers of any real type.
        split: The examples.
        views: As many as the array has.
        plan: How rows were assigned to folds, when the answers are out-of-fold ones.

    Raises:
        ValueError: Missing file, or an array of another shape or type.
    """

    features: Features | None = None

    def __init__(
        self,
        path: Path,
        split: Split,
        views: Views,
        *,
        plan: FoldPlan | None = None,
    ) -> None:
        try:
            array: Any = np.lib.format.open_memmap(path, mode="r")  # never unpickles
        except Exception as error:  # numpy parses the header as Python, which raises many kinds
            raise ValueError(f"{path}: not a readable .npy file of logits ({error})") from error
        expected = (views.num_views, len(split), *split.answer_shape)
        if array.ndim == len(expected) - 1:
            array = array[None]
        if array.shape != expected or not np.issubdtype(array.dtype, np.floating):
            raise ValueError(
                f"{path}: found {array.dtype} {list(array.shape)}, expected floats {list(expected)}:"
                f" --views, examples of {split.spec}, {'' if split.positions is None else 'positions, '}classes"
            )
        self.path, self.array = path, array
        self.split, self.views = split, views
        self.folds, self.fold_attributes = declared_folds(plan, split)
        self.groups = split.groups if plan is None else plan.groups(split)
        self.seen = nothing_known(split)

    def identity(self) -> dict[str, Any]:
        with self.path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256")
        return {
            "architecture": ARRAY_PREFIX + self.path.name,
            "weights_sha256": [digest.hexdigest()],
            "precision": str(self.array.dtype),
        }

    def __call__(self, rows: Rows, view: int) -> Tensor:
        return torch.from_numpy(np.asarray(self.array[view][rows], dtype=np.float32))

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        return in_turn(self, rows, view, self.split)


def declared_folds(plan: FoldPlan | None, split: Split) -> tuple[Folds | None, Mapping[str, Any] | None]:
    """Folds [N] and how a store records them, for answers whose teacher nobody can ask: the caller says so."""
    if plan is None:
        return None, None
    folds = plan.assign(split)
    return folds, fold_attributes(plan, split, folds, proof="declared")
