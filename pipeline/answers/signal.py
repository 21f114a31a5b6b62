"""What a student hears of its teacher: answers, asked for by row number and view.

Shapes: B batch, C classes, N examples, V views.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.slab import (
    BlockedSlabs,
    Grouping,
    PreparedTeacher,
    Records,
    Slabs,
    WholeSlabs,
    default_budget,
)
from logitbank.pipeline.answers.slab_file import remove_unused
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.encoding import TAIL_RULES
from logitbank.pipeline.train_student.losses import Answer
from logitbank.stores import Store, open_store
from logitbank.stores.share.cache import default_cache

View = int | Tensor

_WHOLE = (torch.int64, torch.int32, torch.int16, torch.uint8)
_WARNING_SAMPLE, _WARNING_SHARE = 2000, 0.01


class Signal(Protocol):
    """What stage two asks of one teacher, or of several that speak as one.

    Nothing that is called changes what another call returns: a row's answer is asked for by its number and view.
    Rows are int64 [B] on any device, a view is one number or one for each row, int64 [B].
    """

    tail: str
    grouping: Grouping | None
    """The order of rows in which the memory budget serves them fast; None when whole slabs fit: any."""

    @property
    def num_views(self) -> int:
        """V; views count from 0."""
        ...

    @property
    def offers(self) -> frozenset[str]:
        """Which of ``losses.context.OFFERS`` hold for its answers."""
        ...

    def answer(self, rows_B: Tensor, view: View) -> Answer:
        """What the teacher says of the rows, and what of it is known; what a loss takes."""
        ...

    def logits(
        self, rows_B: Tensor, view: View, *, student_BC: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        """Dense, finite teacher logits, float32 [B, C]; student and temperature matter to the ``bucket`` rule only.

        Raises:
            ValueError: There is no such row or view, or the teacher does not serve one of the rows.
        """
        ...

    def served(self, view: int) -> npt.NDArray[np.bool_]:
        """Rows that have an answer in the view, bool [N]."""
        ...

    def prefetch(self, view: int) -> None:
        """Starts reading a view in a thread of its own: answers come sooner, and are the same."""
        ...

    def expect(self, view: int, groups: Sequence[Tensor]) -> None:
        """With a grouping: the rows of the view that will be asked for, group after group; they come sooner."""
        ...

    def close(self) -> None:
        """Gives back the memory that is held; what is asked for later is read again."""
        ...

    def warnings(self, temperature: float) -> list[str]:
        """What a user should know before training at this temperature."""
        ...


class TeacherSignal:
    """The dense logits of one teacher for any rows of any view.

    A slab that fits into the memory budget is whole in memory, and shared with other processes that read it. One
    that does not is read block by block; then rows come fastest in an order of ``grouping``. A copy that was pickled
    opens the store again where it is used, and refuses another store that stands there.

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
        self.decoder = TeacherRows(store, self.teacher, tail=tail, device=device)
        self.encoding, self.labels = self.decoder.encoding, self.decoder.labels_N
        self.tail, self.device, self.num_views = tail, self.decoder.device, store.num_views
        self._prepared = PreparedTeacher(self.decoder, digest=store.attributes["digest"])
        self._budget = default_budget() if memory_budget is None else memory_budget
        self.grouping = self._prepared.grouping(self._budget, num_slabs=min(store.num_views, 2))
        self._path = store.path
        self._shared = default_cache() / "slabs"
        self._slabs: Slabs | None = None
        self._slabs_process = 0
        self._served_N: dict[int, Tensor | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self._path, self.teacher.digest, self.teacher.name, self.tail, self.device, self._budget)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def offers(self) -> frozenset[str]:
        found = set()
        if self.encoding.kind != "topk":
            found.add("dense")
        if self.encoding.kind == "dense" or self.tail != "bucket":
            found.add("fixed_tail")
        if self.teacher.row_folds is not None:
            found.add("out_of_fold")
        return frozenset(found)

    def answer(self, rows_B: Tensor, view: View) -> "StoredAnswer":
        return StoredAnswer(self, *self._asked(rows_B, view))

    def logits(
        self, rows_B: Tensor, view: View, *, student_BC: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        answer = self.answer(rows_B, view)
        refuse_unserved(answer)
        return answer.decoded(student_BC, temperature)

    def served(self, view: int) -> npt.NDArray[np.bool_]:
        _, view_B = self._asked(torch.zeros(1, dtype=torch.int64), view)
        served_N = self._mask(int(view_B[0]))
        return np.ones(len(self.labels), np.bool_) if served_N is None else served_N.numpy().copy()

    def prefetch(self, view: int) -> None:
        if self.grouping is None:
            self._read().prefetch(view)

    def expect(self, view: int, groups: Sequence[Tensor]) -> None:
        self._read().expect(view, groups)

    def close(self) -> None:
        if self._slabs is not None:
            self._slabs.clear()
            self._slabs = None
        with suppress(OSError):
            remove_unused(self._shared)

    def warnings(self, temperature: float) -> list[str]:
        return self._of_tail(temperature)

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
        """Which of the rows the teacher serves, bool [B]; None: all."""
        if "mask" not in self.teacher.arrays:
            return None
        served_B = torch.ones(len(rows_B), dtype=torch.bool)
        for view in torch.unique(view_B).tolist():
            served_N, own_B = self._mask(view), view_B == view
            served_B[own_B] = True if served_N is None else served_N[rows_B[own_B]]
        return None if served_B.all() else served_B

    def _mask(self, view: int) -> Tensor | None:
        if view not in self._served_N:
            served_N = torch.from_numpy(self.decoder.served(view))
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
                self._slabs = WholeSlabs(self._prepared, self._shared)
            else:
                self._slabs = BlockedSlabs(self._prepared.block, self._prepared.dtype, self.grouping)
        return self._slabs

    def _of_tail(self, temperature: float) -> list[str]:
        """A line when, at this temperature, most of some rows' mass lies in classes that the store only predicts."""
        if self.encoding.kind != "topk":
            return []
        num_rows = len(self.labels) if self.grouping is None else self.grouping.block_rows
        rows_B = torch.arange(0, num_rows, max(1, num_rows // _WARNING_SAMPLE))
        rows_B = rows_B[torch.from_numpy(self.served(0))[rows_B]]
        if not len(rows_B):
            return []
        answer = self.answer(rows_B, 0)
        flat_BC = torch.zeros((len(rows_B), self.encoding.num_classes), device=self.device)
        prob_BC = torch.softmax(answer.decoded(flat_BC, temperature) / temperature, dim=-1)
        head_B = prob_BC[answer.stored_BC()].reshape(len(rows_B), -1).sum(dim=-1)
        share = float((head_B < 0.5).float().mean())
        if share < _WARNING_SHARE:
            return []
        return [
            f"at temperature {temperature:g}, {share:.0%} of the rows have most of their mass outside the stored top"
            f" {self.encoding.top_k}; {self._tail_loss(temperature)}; a lower temperature, topk+tail or dense would be"
            " closer to the teacher"
        ]

    def _tail_loss(self, temperature: float) -> str:
        """What the tail rule in use loses at a temperature, as far as it was measured."""
        if self.tail == "renormalise":
            return "its tail rule 'renormalise' calls them impossible (KL infinite)"
        if self.tail == "bucket":
            return "its tail rule 'bucket' takes the student's word for them, and has no KL of its own"
        uniform = self.tail == "uniform" and "tail_matrix" in self.teacher.constant_names
        found = self.teacher.fidelity.get(f"uniform_{temperature:g}" if uniform else f"{temperature:g}")
        if not isinstance(found, int | float):
            return f"KL T^2 of the tail rule {self.tail!r} was not measured at this temperature"
        return f"measured KL T^2 of the tail rule {self.tail!r} is {found:.2g}"


class StoredAnswer:
    """What a store holds of B rows, decoded when it is asked for."""

    def __init__(self, signal: TeacherSignal, rows_B: Tensor, view_B: Tensor) -> None:
        self.signal, self.rows_B, self.view_B = signal, rows_B, view_B
        self._decoded: dict[float, tuple[Tensor | None, Tensor]] = {}

    @property
    def offers(self) -> frozenset[str]:
        return self.signal.offers

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        return self.decoded(student_BC, temperature)

    def decoded(self, student_BC: Tensor | None, temperature: float) -> Tensor:
        """Logits, with a student for the ``bucket`` rule; the last of each temperature are kept."""
        if self.signal.tail != "bucket":
            student_BC, temperature = None, 1.0
        student, logits_BC = self._decoded.get(temperature, (None, None))
        if logits_BC is None or student is not student_BC:
            names = [name for name in self._records_B.dtype.names or () if name != "label_rank"]
            logits_BC = self.signal.decoder.logits(
                {name: torch.from_numpy(self._records_B[name]) for name in names},
                self.rows_B,
                student_BC=student_BC,
                temperature=temperature,
            )
            self._decoded[temperature] = student_BC, logits_BC
        return logits_BC

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        """True where the label is in the head, and as many classes decode at or above it as the teacher had there."""
        if self.signal.encoding.kind == "dense":
            return None
        rank_B = torch.from_numpy(self._records_B["label_rank"].astype(np.int64)).to(self.signal.device)
        known_B = rank_B <= self.signal.encoding.top_k
        if self.signal.tail != "bucket":  # no other tail rises above the head
            return known_B
        return known_B & ((self.above_label_BC(student_BC, temperature).sum(dim=1) == rank_B) | (rank_B == 0))

    def served(self) -> Tensor | None:
        return self.signal.mask(self.rows_B, self.view_B)

    def above_label_BC(self, student_BC: Tensor, temperature: float) -> Tensor:
        """Classes that decode at or above the label, the label's own included, bool [B, C]."""
        logits_BC = self.decoded(student_BC, temperature)
        labels_B1 = self.signal.labels[self.rows_B].clamp(min=0)[:, None].to(logits_BC.device)
        return logits_BC >= logits_BC.gather(1, labels_B1)

    def stored_BC(self) -> Tensor:
        """Classes whose logit the store holds by itself, the label's aside, bool [B, C]."""
        shape = (len(self.rows_B), self.signal.encoding.num_classes)
        if self.signal.encoding.kind == "dense":
            return torch.ones(shape, dtype=torch.bool, device=self.signal.device)
        index_BK = torch.from_numpy(self._records_B["index"].astype(np.int64)).to(self.signal.device)
        return torch.zeros(shape, dtype=torch.bool, device=self.signal.device).scatter_(1, index_BK, True)

    @cached_property
    def _records_B(self) -> Records:
        return self.signal.records(self.rows_B, self.view_B)


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


def refuse_unserved(answer: "StoredAnswer") -> None:
    """Raises ValueError when the teacher has no answer to one of the rows."""
    served_B = answer.served()
    if served_B is not None:
        first = int(answer.rows_B[~served_B][0])
        raise ValueError(
            f"teacher {answer.signal.teacher.name!r} does not serve {int((~served_B).sum())} of {len(served_B)} rows,"
            f" such as row {first}; ask served(view) which rows have an answer"
        )


def refuse_idle_tail(signals: Sequence[TeacherSignal], tail: str) -> None:
    """Raises ValueError when a tail rule was chosen and no teacher has a tail."""
    if tail != TAIL_RULES[0] and all(signal.encoding.kind == "dense" for signal in signals):
        raise ValueError(f"--tail {tail} does nothing here, since the store keeps every class; leave it out")


def _reopened(path: Path, digest: str, name: str, tail: str, device: torch.device, memory_budget: int) -> TeacherSignal:
    """The signal that was pickled, over the same store."""
    signal = TeacherSignal(open_store(path), name=name, tail=tail, device=device, memory_budget=memory_budget)
    if signal.teacher.digest != digest:
        raise ValueError(f"{path} is another store than the one that this signal was made from; open it again")
    return signal
