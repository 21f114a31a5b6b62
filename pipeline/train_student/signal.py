"""What a student hears of its teacher: one view's answers, whole in memory, gathered by row number.

Shapes: B batch, C classes, N examples, V views.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from pipeline.datasets import Split
from pipeline.datasets.split import set_fingerprint
from pipeline.encoding import Encoding, decode, finite
from pipeline.views import Views, check_probes
from stores import Store


class TeacherSignal:
    """The teacher's dense logits for any rows of the view that was loaded last.

    Args:
        store: A finished store, already checked against the data (``check_data``).
        name: Which teacher (default: the only one).
        tail: Tail rule for classes that are not stored: predicted, bucket, uniform or renormalise.
        device: Where logits are wanted.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str | None = None,
        tail: str = "predicted",
        device: torch.device | None = None,
    ) -> None:
        self.teacher = store.teacher(name)
        self.encoding = Encoding.from_attributes(self.teacher.encoding)
        self.tail, self.device = tail, device or torch.device("cpu")
        self.labels = torch.from_numpy(np.asarray(store.labels, dtype=np.int64))
        self._slab: Mapping[str, Tensor] = {}
        self._view = -1

    def load(self, view: int) -> None:
        """Reads one view's slab, checked against its checksums."""
        if view != self._view:
            self._slab = {name: torch.from_numpy(array) for name, array in self.teacher.slab(view).items()}
            self._view = view

    def rows(self, rows_B: Tensor) -> dict[str, Tensor]:
        """The stored arrays of the given rows, on the device."""
        return {name: array[rows_B].to(self.device) for name, array in self._slab.items()}

    def logits(self, rows_B: Tensor, student_BC: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Dense, finite teacher logits, float32 [B, C]; student and temperature matter to the ``bucket`` rule only."""
        logits_BC = decode(
            self.rows(rows_B),
            self.labels[rows_B].to(self.device),
            self.encoding,
            tail=self.tail,
            student_BC=student_BC,
            temperature=temperature,
        )
        return finite(logits_BC)

    def label_in_head(self, rows_B: Tensor) -> Tensor | None:
        """Rows whose label is among the stored classes, bool [B]; None when every class is stored."""
        if self.encoding.kind == "dense":
            return None
        return (self._slab["label_rank"][rows_B].long() <= self.encoding.top_k).to(self.device)


def check_data(store: Store, split: Split) -> None:
    """Proves that row i of the store is example i of the split, in every view.

    Raises:
        ValueError: Another dataset or split, another order, other labels, or views that replay to other pixels.
    """
    said, views = store.dataset, Views.from_attributes(store.views)
    if said["fingerprint"] != split.fingerprint:
        raise ValueError(_difference(store, split))
    check_probes(split, views, store.probes, num_views=views.num_views)


def _difference(store: Store, split: Split) -> str:
    said = store.dataset
    wrote = f"store was written for {said['name']} {said['split']} ({said['num_examples']} examples,"
    wrote = f"{wrote} fingerprint {str(said['fingerprint'])[:8]})"
    found = f"this data is {split.spec} ({len(split)} examples, fingerprint {split.fingerprint[:8]})"
    if said.get("fingerprint_unordered") == set_fingerprint(split.keys, split.labels):
        return f"{wrote}; {found} holds the same examples in another order: restore the order of the store"
    if len(split) == store.num_examples and np.array_equal(np.asarray(store.keys), split.keys):
        wrong = int((np.asarray(store.labels) != split.labels).sum())
        return f"{wrote}; {found} has other labels on {wrong} examples: use the labels that the store was made with"
    if len(split) == store.num_examples and np.array_equal(np.sort(store.keys), np.sort(split.keys)):
        return f"{wrote}; {found} holds the same examples in another order and with other labels"
    return f"{wrote}; {found}: pass the data that the store was written for with --data"
