"""Several teachers of one store that speak as one: "a,b" or, weighted, "a:2,b:1".

Shapes: B batch, C classes, N examples, M teachers.
"""

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.signal import Signal, StoredAnswer, TeacherSignal, View, refuse_idle_tail
from logitbank.pipeline.answers.slab import Grouping, default_budget
from logitbank.pipeline.spelling import unknown
from logitbank.stores import Store

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

    Raises:
        ValueError: No such teacher, rule or way, or one that would change nothing.
    """
    if combine not in COMBINE:
        raise ValueError(unknown("way to combine teachers", combine, COMBINE))
    names = parse_teachers(teacher)
    share = (default_budget() if memory_budget is None else memory_budget) // max(len(names), 1)
    parts = [TeacherSignal(store, name=name, tail=tail, device=device, memory_budget=share) for name in names or [None]]
    refuse_idle_tail(parts, tail)
    if len(parts) == 1:
        if combine != COMBINE[0]:
            raise ValueError(f"--combine {combine} does nothing with one teacher; leave it out, or name several")
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
        self.num_views = parts[0].num_views
        self.weights_M = torch.tensor(weights, dtype=torch.float32)
        self.grouping = _grouping(parts)

    @property
    def offers(self) -> frozenset[str]:
        return frozenset.intersection(*(part.offers for part in self.parts))

    def answer(self, rows_B: Tensor, view: View) -> "EnsembleAnswer":
        return EnsembleAnswer(self, [part.answer(rows_B, view) for part in self.parts])

    def logits(
        self, rows_B: Tensor, view: View, *, student_BC: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        answer = self.answer(rows_B, view)
        served_B = answer.served()
        if served_B is not None:
            raise ValueError(
                f"no teacher serves {int((~served_B).sum())} of {len(served_B)} rows; ask served(view) which rows have"
                " an answer"
            )
        return answer.decoded(student_BC, temperature)

    def served(self, view: int) -> npt.NDArray[np.bool_]:
        return np.asarray(np.stack([part.served(view) for part in self.parts]).any(axis=0))

    def prefetch(self, view: int) -> None:
        for part in self.parts:
            part.prefetch(view)

    def expect(self, view: int, groups: Sequence[Tensor]) -> None:
        for part in self.parts:
            part.expect(view, groups)

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def warnings(self, temperature: float) -> list[str]:
        return [f"teacher {part.teacher.name!r}: {line}" for part in self.parts for line in part.warnings(temperature)]


class EnsembleAnswer:
    """What several teachers say of B rows, as one."""

    def __init__(self, ensemble: Ensemble, parts: Sequence[StoredAnswer]) -> None:
        self.ensemble, self.parts = ensemble, list(parts)

    @property
    def offers(self) -> frozenset[str]:
        return self.ensemble.offers

    def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
        return self.decoded(student_BC, temperature)

    def decoded(self, student_BC: Tensor | None, temperature: float) -> Tensor:
        """The mean's logits, with a student for the ``bucket`` rule."""
        share_BM = self._served_BM.float() * self.ensemble.weights_M
        logits_MBC = torch.stack([part.decoded(student_BC, temperature) for part in self.parts])
        share_MB1 = (share_BM / share_BM.sum(dim=1, keepdim=True)).T[:, :, None].to(logits_MBC.device)
        if self.ensemble.combine == "mean-logit":
            return (share_MB1 * logits_MBC).sum(dim=0)
        return (share_MB1.log() + logits_MBC.log_softmax(dim=2)).logsumexp(dim=0)

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor | None:
        """True where each teacher's order is known, and all store each class that one of them puts above the label.

        A class that one stores above the label and another only predicts may end up on either side of it. So may any
        class in a mean of probabilities when the tail rule does not keep them exact at T = 1.
        """
        known = [part.order_known(student_BC, temperature) for part in self.parts]
        if all(known_B is None for known_B in known):
            return None
        serves_MB1 = self._served_BM.T[:, :, None].to(self.parts[0].signal.device)
        above_MBC = torch.stack([part.above_label_BC(student_BC, temperature) for part in self.parts]) & serves_MB1
        stored_MBC = torch.stack([part.stored_BC() for part in self.parts])
        missing_MB = (above_MBC.any(dim=0) & ~stored_MBC & serves_MB1).any(dim=2)
        unknown_B = missing_MB.any(dim=0)
        if self.ensemble.combine == "mean-prob" and self.ensemble.tail in ("bucket", "renormalise"):
            unknown_B |= serves_MB1.sum(dim=0)[:, 0] > 1
        for known_B, serves_B in zip(known, serves_MB1[:, :, 0], strict=True):
            if known_B is not None:
                unknown_B |= serves_B & ~known_B
        return ~unknown_B

    def served(self) -> Tensor | None:
        served_B = self._served_BM.any(dim=1)
        return None if served_B.all() else served_B

    @cached_property
    def _served_BM(self) -> Tensor:
        every_B = torch.ones(len(self.parts[0].rows_B), dtype=torch.bool)
        masks = [part.served() for part in self.parts]
        return torch.stack([every_B if served_B is None else served_B for served_B in masks], dim=1)


def _grouping(parts: Sequence[TeacherSignal]) -> Grouping | None:
    """The largest blocks among those of the parts, as many as every part can hold."""
    own = [part.grouping for part in parts if part.grouping is not None]
    if not own:
        return None
    block_rows = max(grouping.block_rows for grouping in own)
    rows = min(grouping.block_rows * grouping.num_blocks for grouping in own)
    return Grouping(block_rows=block_rows, num_blocks=max(rows // block_rows, 1))


def teachers_of(signal: Signal) -> list[TeacherSignal]:
    """The single teachers behind a signal."""
    if isinstance(signal, Ensemble):
        return signal.parts
    assert isinstance(signal, TeacherSignal)
    return [signal]
