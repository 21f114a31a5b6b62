"""Several teachers of one store that speak as one: "a,b" or, weighted, "a:2,b:1".

Shapes: B batch, C classes, N examples, M teachers.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.spelling import unknown
from pipeline.train_student.signal import Signal, TeacherSignal
from pipeline.train_student.slab import Grouping, default_budget
from stores import Store

COMBINE = ("mean-prob", "mean-logit")


def open_signal(
    store: Store,
    *,
    teacher: str | None = None,
    combine: str = "mean-prob",
    tail: str = "predicted",
    device: torch.device | None = None,
    memory_budget: int | None = None,
) -> "TeacherSignal | Ensemble":
    """The signal of the teacher, or of the teachers, that a text names.

    Args:
        store: A finished store.
        teacher: A name, or names with commas between, each with ":weight" or without (1); None for the only one.
        combine: How several become one, a name of ``COMBINE``.
        tail: Tail rule for classes that are not stored.
        device: Where logits are wanted.
        memory_budget: Bytes for slabs, of all teachers together (default: half of the memory that can still be had).
    """
    if combine not in COMBINE:
        raise ValueError(unknown("way to combine teachers", combine, COMBINE))
    names = parse_teachers(teacher)
    share = (default_budget() if memory_budget is None else memory_budget) // max(len(names), 1)
    parts = [TeacherSignal(store, name=name, tail=tail, device=device, memory_budget=share) for name in names or [None]]
    if len(parts) == 1:
        return parts[0]
    return Ensemble(parts, list(names.values()), combine=combine)


def parse_teachers(text: str | None) -> dict[str, float]:
    """Weights by name, in the order written; empty for None."""
    weights: dict[str, float] = {}
    for part in text.split(",") if text else ():
        name, _, weight = (piece.strip() for piece in part.partition(":"))
        try:
            value = float(weight or 1)
        except ValueError:
            value = 0.0
        if not name or not value > 0 or name in weights:
            raise ValueError(f"--teacher is {text!r}; expected names once each, such as a,b or a:2,b:1")
        weights[name] = value
    return weights


class Ensemble:
    """The weighted mean of teachers' probabilities at T = 1, or of their logits, over those that serve a row.

    With top-k teachers the mean is as good as their tail rules.

    Args:
        parts: Teachers of one store.
        weights: One positive number each.
        combine: "mean-prob" or "mean-logit".
    """

    def __init__(self, parts: Sequence[TeacherSignal], weights: Sequence[float], *, combine: str) -> None:
        self.parts, self.combine, self.tail = list(parts), combine, parts[0].tail
        self.weights_M = torch.tensor(weights, dtype=torch.float32)
        self._served_NM = torch.empty(0)

    def load(self, view: int) -> None:
        for part in self.parts:
            part.load(view)
        served = np.stack([part.served() for part in self.parts], axis=1)
        self._served_NM = torch.from_numpy(served).float()

    def prefetch(self, view: int) -> None:
        for part in self.parts:
            part.prefetch(view)

    @property
    def grouping(self) -> Grouping | None:
        """The largest blocks among those of the parts, as many as every part can hold."""
        own = [part.grouping for part in self.parts if part.grouping is not None]
        if not own:
            return None
        block_rows = max(grouping.block_rows for grouping in own)
        rows = min(grouping.block_rows * grouping.num_blocks for grouping in own)
        return Grouping(block_rows=block_rows, num_blocks=max(rows // block_rows, 1))

    def expect(self, groups: Sequence[Tensor]) -> None:
        for part in self.parts:
            part.expect(groups)

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def logits(self, rows_B: Tensor, student_BC: Tensor | None = None, temperature: float = 1.0) -> Tensor:
        share_BM = self._served_NM[rows_B] * self.weights_M
        share_MB1 = (share_BM / share_BM.sum(dim=1, keepdim=True)).T[:, :, None].to(self.parts[0].device)
        logits_MBC = torch.stack([part.logits(rows_B, student_BC, temperature) for part in self.parts])
        if self.combine == "mean-logit":
            return (share_MB1 * logits_MBC).sum(dim=0)
        return (share_MB1.log() + logits_MBC.log_softmax(dim=2)).logsumexp(dim=0)

    def label_in_head(self, rows_B: Tensor) -> Tensor | None:
        known = [known_B for part in self.parts if (known_B := part.label_in_head(rows_B)) is not None]
        return torch.stack(known).all(dim=0) if known else None

    def served(self) -> npt.NDArray[np.bool_]:
        return np.asarray(np.stack([part.served() for part in self.parts]).any(axis=0))

    def warnings(self, temperature: float) -> list[str]:
        return [f"teacher {part.teacher.name!r}: {line}" for part in self.parts for line in part.warnings(temperature)]


def teachers_of(signal: Signal) -> list[TeacherSignal]:
    """The single teachers behind a signal."""
    if isinstance(signal, Ensemble):
        return signal.parts
    assert isinstance(signal, TeacherSignal)
    return [signal]
