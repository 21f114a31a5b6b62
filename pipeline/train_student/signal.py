"""What a student hears of its teacher: one view's answers, whole in memory, gathered by row number.

Shapes: B batch, C classes, N examples, V views.
"""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.datasets import Split
from pipeline.datasets.split import set_fingerprint
from pipeline.encoding import TAIL_RULES, Encoding, decode, decode_log_prob, finite
from pipeline.spelling import unknown
from pipeline.tail_predictor import TailPredictor
from pipeline.train_student.slab import BlockedSlab, Grouping, PreparedTeacher, Records, WholeSlab, default_budget
from pipeline.train_student.slab_file import remove_unused
from pipeline.views import Views, check_probes
from pipeline.whole_file import whole_file
from stores import Store
from stores.share import default_cache

_DECODE_ROWS = 4096
_WARNING_SAMPLE, _WARNING_SHARE = 2000, 0.01


class Signal(Protocol):
    """What stage two asks of one teacher, or of several that speak as one."""

    tail: str

    def load(self, view: int) -> None:
        """Makes a view the one that is read, waiting for its slab if need be."""
        ...

    def prefetch(self, view: int) -> None:
        """Starts reading a view's slab in a thread of its own."""
        ...

    def logits(self, rows_B: Tensor, student_BC: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        """Dense, finite teacher logits, float32 [B, C]; student and temperature matter to the ``bucket`` rule only."""
        ...

    def label_in_head(self, rows_B: Tensor) -> Tensor | None:
        """Rows whose order above the label is exact, bool [B]; None when all are."""
        ...

    def served(self) -> npt.NDArray[np.bool_]:
        """Rows that have an answer in the loaded view, bool [N]."""
        ...

    @property
    def grouping(self) -> Grouping | None:
        """How rows must be shuffled to be read block by block; None when whole slabs fit into memory."""
        ...

    def expect(self, groups: Sequence[Tensor]) -> None:
        """With a grouping: the rows of the loaded view that will be asked for, group after group."""
        ...

    def close(self) -> None:
        """Gives back what the signal holds; it can be loaded again."""
        ...

    def warnings(self, temperature: float) -> list[str]:
        """What a user should know before training at this temperature."""
        ...


class TeacherSignal:
    """The teacher's dense logits for any rows of the view that was loaded last.

    A slab that fits into the memory budget is whole in memory, and shared with other processes that read it. One
    that does not is read block by block; then rows come fastest in an order of ``grouping``.

    Args:
        store: A finished store, already checked against the data (``check_data``).
        name: Which teacher (default: the only one).
        tail: Tail rule for classes that are not stored: predicted, bucket, uniform or renormalise.
        device: Where logits are wanted.
        memory_budget: Bytes for slabs (default: half of the memory that can still be had).
    """

    def __init__(
        self,
        store: Store,
        *,
        name: str | None = None,
        tail: str = "predicted",
        device: torch.device | None = None,
        memory_budget: int | None = None,
    ) -> None:
        self.teacher = store.teacher(name)
        self.encoding = Encoding.from_attributes(self.teacher.encoding)
        self.tail, self.device = tail, device or torch.device("cpu")
        if tail not in TAIL_RULES:
            raise ValueError(unknown("tail rule", tail, TAIL_RULES))
        self.labels = torch.from_numpy(np.asarray(store.labels, dtype=np.int64))
        self.folds = None if store.folds is None else torch.from_numpy(np.asarray(store.folds, dtype=np.int64))
        predictor = TailPredictor.from_constants(self.teacher.constants())
        self._predictor_here = None if predictor is None else predictor.to(self.device)
        self._prepared = PreparedTeacher(
            self.teacher,
            self.labels,
            self.encoding,
            predictor=predictor,
            folds_N=self.folds,
            tail=tail,
            digest=store.attributes["digest"],
        )
        budget = default_budget() if memory_budget is None else memory_budget
        self.grouping = self._prepared.grouping(budget, num_slabs=min(store.num_views, 2))
        self._shared = default_cache() / "slabs"
        self._slab: WholeSlab | BlockedSlab | None = None
        self._view = -1
        self._coming: dict[int, Future[WholeSlab]] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="slab")

    def load(self, view: int) -> None:
        if view == self._view:
            return
        self._slab, self._view = None, -1  # two slabs at most are in memory
        if self.grouping is None:
            coming = self._coming.pop(view, None)
            self._slab = self._prepared.whole(view, self._shared) if coming is None else coming.result()
        else:
            read = partial(self._prepared.block, view)
            self._slab = BlockedSlab(read, self._prepared.dtype, self.grouping, self._thread)
        self._view = view

    def prefetch(self, view: int) -> None:
        if self.grouping is None and view != self._view and view not in self._coming:
            self._coming[view] = self._thread.submit(self._prepared.whole, view, self._shared)

    def expect(self, groups: Sequence[Tensor]) -> None:
        if isinstance(self._slab, BlockedSlab):
            self._slab.expect(groups)

    def close(self) -> None:
        for coming in self._coming.values():
            coming.cancel()
        self._coming, self._slab, self._view = {}, None, -1
        with suppress(OSError):
            remove_unused(self._shared)

    def _take(self, rows_B: Tensor) -> Records:
        if self._slab is None:
            raise ValueError("no view is loaded; call load(view) first")
        return self._slab.take(rows_B.numpy())

    def rows(self, rows_B: Tensor) -> dict[str, Tensor]:
        """What `decode` needs of the given rows, on the device."""
        records_B = self._take(rows_B)
        wanted = [name for name in records_B.dtype.names or () if name != "label_rank"]
        return {name: torch.from_numpy(records_B[name]).to(self.device) for name in wanted}

    def logits(self, rows_B: Tensor, student_BC: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        logits_BC = decode(
            self.rows(rows_B),
            self.labels[rows_B].to(self.device),
            self.encoding,
            predictor=self._predictor_here,
            folds_B=None if self.folds is None else self.folds[rows_B].to(self.device),
            tail=self.tail,
            student_BC=student_BC,
            temperature=temperature,
        )
        return finite(logits_BC)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, row: int) -> Tensor:
        """The logits [C] of one row; with ``__len__`` what a map-style dataset has, so that loaders can stack both."""
        return self.__getitems__([row])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Tensor]:
        """The logits [C] of each of some rows, decoded together: what a loader asks for a batch."""
        rows_B = torch.as_tensor(rows)
        if len(rows_B) and not -len(self) <= int(rows_B.min()) <= int(rows_B.max()) < len(self):
            raise IndexError(f"rows {int(rows_B.min())} to {int(rows_B.max())} of {len(self)}")
        return list(self.logits(rows_B % len(self)))

    def label_in_head(self, rows_B: Tensor) -> Tensor | None:
        if self.encoding.kind == "dense":
            return None
        return torch.from_numpy(self._take(rows_B)["label_rank"] <= self.encoding.top_k).to(self.device)

    def served(self) -> npt.NDArray[np.bool_]:
        if "mask" not in self.teacher.arrays:
            return np.ones(len(self.labels), np.bool_)
        return self.teacher.slab(self._view, ["mask"])["mask"].astype(np.bool_)

    def warnings(self, temperature: float) -> list[str]:
        return [*self._of_reading(), *self._of_tail(temperature)]

    def _of_reading(self) -> list[str]:
        """What reading block by block means for the order of rows."""
        if self.grouping is None:
            return []
        mixed = self.grouping.block_rows * self.grouping.num_blocks
        lines = [
            f"a view of teacher {self.teacher.name!r} takes {self._prepared.num_bytes / 1e9:.3g} GB and does not fit"
            f" the memory budget: rows are read and shuffled in groups of {mixed} ({self.grouping.num_blocks} blocks)"
        ]
        first_N = self.labels[: self.grouping.block_rows]
        if len(torch.unique(first_N)) < len(torch.unique(self.labels)) / 2:
            lines.append(
                "the first block holds fewer than half of the classes, so a group does too: cache a shuffled order,"
                " --data '...?shuffle=0', or raise --memory-budget"
            )
        return lines

    def _of_tail(self, temperature: float) -> list[str]:
        """A line when, at this temperature, most of some rows' mass lies in classes that the store only predicts."""
        if self.encoding.kind != "topk":
            return []
        self.load(0)
        num_rows = len(self.labels) if self.grouping is None else self.grouping.block_rows
        rows_B = torch.arange(0, num_rows, max(1, num_rows // _WARNING_SAMPLE))
        flat_BC = torch.zeros((len(rows_B), self.encoding.num_classes), device=self.device)
        prob_BC = torch.softmax(self.logits(rows_B, flat_BC, temperature) / temperature, dim=-1)
        head_B = prob_BC.gather(1, torch.from_numpy(self._take(rows_B)["index"]).to(self.device).long()).sum(dim=-1)
        share = float((head_B < 0.5).float().mean())
        if share < _WARNING_SHARE:
            return []
        fidelity = (self.teacher.fidelity or {}).get(f"{temperature:g}")
        measured = f"; measured KL T^2 is {fidelity:.2g}" if isinstance(fidelity, float) else ""
        return [
            f"at temperature {temperature:g}, {share:.0%} of the rows have most of their mass outside the stored top"
            f" {self.encoding.top_k}{measured}; a lower temperature, topk+tail or dense would be closer to the teacher"
        ]


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


def decode_to_file(
    store: Store,
    out: Path,
    *,
    teacher: str | None = None,
    view: int = 0,
    temperature: float = 1.0,
    tail: str = "predicted",
    rows: str = "",
) -> tuple[int, int]:
    """Writes dense log-probabilities at a temperature, float32 [n, C], to a .npy file, block by block.

    Args:
        store: A finished store.
        out: The file; it appears when it is whole.
        teacher: Which teacher (default: the only one).
        view: Which view.
        temperature: T > 0.
        tail: Tail rule; ``bucket`` has no meaning without a student.
        rows: ``a:b`` as in a slice, empty for all.

    Returns:
        The shape written.
    """
    if tail == "bucket":
        raise ValueError("tail rule 'bucket' takes the student's shape and there is no student here; choose another")
    if not temperature > 0:
        raise ValueError(f"--temperature is {temperature}; expected more than 0")
    if not 0 <= view < store.num_views:
        raise ValueError(f"--view is {view}; expected 0 to {store.num_views - 1}")
    chosen = torch.arange(store.num_examples)[_slice(rows)]
    with closing(TeacherSignal(store, name=teacher, tail=tail)) as signal:
        signal.load(view)
        shape = (len(chosen), signal.encoding.num_classes)
        with whole_file(out) as beside, beside.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for rows_B in torch.split(chosen, _DECODE_ROWS):
                file.write(decode_log_prob(signal.logits(rows_B), temperature).numpy().data)
    return shape


def _slice(text: str) -> slice:
    first, colon, last = text.partition(":")
    try:
        if not text:
            return slice(None)
        if not colon:
            raise ValueError
        return slice(int(first) if first else None, int(last) if last else None)
    except ValueError:
        raise ValueError(f"--rows is {text!r}; expected a:b, such as 0:100") from None
