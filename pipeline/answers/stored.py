"""What one teacher of a store says, asked for by row number and view.

Shapes: B batch, C classes, N examples, V views.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.guessed_labels import guessed_labels
from logitbank.pipeline.answers.prepared import PreparedTeacher, default_budget
from logitbank.pipeline.answers.records import Records
from logitbank.pipeline.answers.slab import BlockedSlabs, Slabs, WholeSlabs
from logitbank.pipeline.answers.slab_file import remove_unused
from logitbank.pipeline.answers.stored_batch import StoredBatch, View
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.stores import Store, open_store
from logitbank.stores.folders import local_folder

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)


class StoredAnswers:
    """The dense logits of one teacher for any rows of any view.

    A slab that fits into the memory budget is whole in memory, and shared with other processes that read it. One
    that does not is read block by block; then rows come fastest in an order of ``grouping``. A copy that was pickled
    opens the store again where it is used, and refuses another store that stands there.

    Args:
        store: A finished store, already checked against the data (``check_data``).
        name: Which teacher (default: the only one).
        tail: Tail rule for classes that are not stored: predicted, bucket, uniform or renormalise.
        device: Where logits are wanted.
        memory_budget: Bytes for slabs (default: half of the machine's memory).
        features: Read the teacher's features, too, where it has some.
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str | None = None,
        tail: str = "predicted",
        device: torch.device | None = None,
        memory_budget: int | None = None,
        features: bool = False,
    ) -> None:
        self.teacher = store.teacher(name)
        self.decoder = TeacherRows(store, self.teacher, tail=tail, device=device, features=features)
        self.encoding, self.labels = self.decoder.encoding, self.decoder.labels_N
        self.tail, self.device, self.num_views = tail, self.decoder.device, store.num_views
        self._prepared = PreparedTeacher(self.decoder, digest=store.attributes["digest"])
        self._budget = default_budget() if memory_budget is None else memory_budget
        self.grouping = self._prepared.grouping(self._budget, num_slabs=min(store.num_views, 2))
        self._path = store.path
        self._shared = local_folder("slabs")
        self._slabs: Slabs | None = None
        self._slabs_process = 0
        self._served_N: dict[int, Tensor | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        said = self._path, self.teacher.digest, self.teacher.name, self.tail, self.device, self._budget
        return _reopened, (*said, "embedding" in self.decoder.names)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def parts(self) -> "list[StoredAnswers]":
        return [self]

    @property
    def offers(self) -> frozenset[str]:
        found = set()
        if self.encoding.every_class:
            found.add("dense")
        if not self.encoding.has_tail or self.tail != "bucket":
            found.add("fixed_tail")
        if guessed_labels(self.teacher) == 0:
            found.add("label_prob")
        if self.teacher.row_folds is not None:
            found.add("out_of_fold")
        if self.decoder.sparse_rows:
            found.add("sparse")
        if "embedding" in self.decoder.names:
            found.add("embedding")
        return frozenset(found)

    def of(self, rows_B: Tensor, view: View) -> StoredBatch:
        return StoredBatch(self, *self._asked(rows_B, view))

    def logits(
        self, rows_B: Tensor, view: View, *, student_BC: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        answer = self.of(rows_B, view)
        answer.refuse_unserved()
        student_PC = None if student_BC is None else student_BC.flatten(0, len(answer.shape) - 1)
        logits_PC = answer.decoded(student_PC, temperature)
        return logits_PC.reshape(*answer.shape, logits_PC.shape[1])  # also of no rows

    def served(self, view: int) -> npt.NDArray[np.bool_]:
        _, view_B = self._asked(torch.zeros(1, dtype=torch.int64), view)
        served_N = self._mask(int(view_B[0]))
        if served_N is None:
            return np.ones(len(self.labels), np.bool_)
        return np.asarray(served_N.numpy().reshape(len(self.labels), -1).any(axis=1))

    def read_ahead(self, view: int, groups: Sequence[Tensor] = ()) -> None:
        self._read().read_ahead(view, groups)

    def close(self) -> None:
        if self._slabs is not None:
            self._slabs.clear()
            self._slabs = None
        with suppress(OSError):
            remove_unused(self._shared)

    @property
    def view_bytes(self) -> int:
        """Memory that a view takes."""
        return self._prepared.num_bytes

    def records(self, rows_B: Tensor, view_B: Tensor) -> Records:
        """The stored records [B] of rows and views on the CPU, in their order."""
        views = torch.unique(view_B).tolist()
        if len(views) == 1:
            return self._read().take(views[0], rows_B.numpy())
        records_B = np.empty(len(rows_B), self._prepared.dtype)
        for view in views:
            own_B = (view_B == view).numpy()
            records_B[own_B] = self._read().take(view, rows_B.numpy()[own_B])
        return records_B

    def mask(self, rows_B: Tensor, view_B: Tensor) -> Tensor | None:
        """Which of the rows' answers the teacher gives, bool [B], or [B * L]; None: all."""
        if "mask" not in self.teacher.arrays:
            return None
        served_B = torch.ones((len(rows_B), *self.labels.shape[1:]), dtype=torch.bool)
        for view in torch.unique(view_B).tolist():
            served_N, own_B = self._mask(view), view_B == view
            served_B[own_B] = True if served_N is None else served_N[rows_B[own_B]]
        return None if served_B.all() else served_B.flatten()

    def _mask(self, view: int) -> Tensor | None:
        if view not in self._served_N:
            served_N = torch.from_numpy(self.decoder.answered(view))
            self._served_N[view] = None if served_N.all() else served_N
        return self._served_N[view]

    def _asked(self, rows_B: Tensor, view: View) -> tuple[Tensor, Tensor]:
        """Row and view of each of B answers, int64 [B] on the CPU; ValueError where there is none."""
        rows_B = _numbers("rows", rows_B, len(self.labels))
        view_B = _numbers("views", torch.as_tensor(view).reshape(-1), self.num_views)
        if len(view_B) not in (1, len(rows_B)):
            raise ValueError(f"found {len(view_B)} views for {len(rows_B)} rows; expected one, or one for each")
        return rows_B, view_B.expand(len(rows_B))

    def _read(self) -> Slabs:
        """The slabs of this process: one that was forked starts anew, since threads and locks do not come along."""
        if self._slabs is None or self._slabs_process != os.getpid():
            self._slabs_process = os.getpid()
            if self.grouping is None:
                self._slabs = WholeSlabs(partial(self._prepared.whole, shared=self._shared))
            else:
                self._slabs = BlockedSlabs(self._prepared.block, self._prepared.dtype, self.grouping)
        return self._slabs


def _numbers(what: str, numbers: Tensor, count: int) -> Tensor:
    """Whole numbers from 0 to below ``count``, int64 on the CPU."""
    if not isinstance(numbers, Tensor) or numbers.ndim != 1 or numbers.dtype not in _WHOLE:
        found = f"{numbers.dtype} {list(numbers.shape)}" if isinstance(numbers, Tensor) else type(numbers).__name__
        raise ValueError(f"expected {what} as whole numbers [B], found {found}; pass what the dataset handed out")
    numbers = numbers.detach().to("cpu", torch.int64)
    low, high = (int(numbers.min()), int(numbers.max())) if len(numbers) else (0, 0)
    if not 0 <= low <= high < count:
        raise ValueError(
            f"expected {what} from 0 to {count - 1}, found {low} to {high}; pass what the dataset handed out"
        )
    return numbers


def _reopened(
    path: Path, digest: str, name: str, tail: str, device: torch.device, memory_budget: int, features: bool
) -> StoredAnswers:
    """The answers that were pickled, over the same store."""
    answers = StoredAnswers(
        open_store(path), name=name, tail=tail, device=device, memory_budget=memory_budget, features=features
    )
    if answers.teacher.digest != digest:
        raise ValueError(f"{path} is another store than the one that these answers were opened from; open it again")
    return answers
