"""Several teachers of one store that answer as one.

Shapes: B batch, C classes, N examples, M teachers.
"""

import math
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.stored_batch import StoredBatch, View

COMBINE = ("mean-prob", "mean-logit")


class Ensemble:
    """The weighted mean of teachers' probabilities at T = 1, or of their logits, over those that serve a row.

    With top-k teachers the mean is as good as their tail rules.

    Args:
        parts: Teachers of one store.
        weights: One positive number each.
        combine: "mean-prob" or "mean-logit".
    """

    def __init__(self, parts: Sequence[StoredAnswers], weights: Sequence[float], *, combine: str) -> None:
        self.parts, self.combine, self.tail = list(parts), combine, parts[0].tail
        self.num_views = parts[0].num_views
        self.weights_M = torch.tensor(weights, dtype=torch.float32)
        self.grouping = _grouping(parts)

    @property
    def offers(self) -> frozenset[str]:
        shared = frozenset.intersection(*(part.offers for part in self.parts))
        return shared - {"embedding", "sparse"}  # each teacher's features are a space of its own

    def of(self, rows_B: Tensor, view: View) -> "EnsembleBatch":
        return EnsembleBatch(self, [part.of(rows_B, view) for part in self.parts])

    def logits(
        self, rows_B: Tensor, view: View, *, student_BC: Tensor | None = None, temperature: float = 1.0
    ) -> Tensor:
        answer = self.of(rows_B, view)
        served_B = answer.served()
        served_B = None if served_B is None else served_B.reshape(len(rows_B), -1).any(dim=1)
        if served_B is not None and not served_B.all():
            raise ValueError(
                f"no teacher serves {int((~served_B).sum())} of {len(served_B)} rows; ask served(view) which rows have"
                " an answer"
            )
        student_PC = None if student_BC is None else student_BC.flatten(0, len(answer.shape) - 1)
        logits_PC = answer.decoded(student_PC, temperature)
        return logits_PC.reshape(*answer.shape, logits_PC.shape[1])  # also of no rows

    def served(self, view: int) -> npt.NDArray[np.bool_]:
        return np.asarray(np.stack([part.served(view) for part in self.parts]).any(axis=0))

    def read_ahead(self, view: int, groups: Sequence[Tensor] = ()) -> None:
        for part in self.parts:
            part.read_ahead(view, groups)

    def close(self) -> None:
        for part in self.parts:
            part.close()


class EnsembleBatch:
    """What several teachers say of B rows, or of their answers at positions, as one; see ``StoredBatch``."""

    def __init__(self, ensemble: Ensemble, parts: Sequence[StoredBatch]) -> None:
        self.ensemble, self.parts = ensemble, list(parts)

    @property
    def offers(self) -> frozenset[str]:
        return self.ensemble.offers

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parts[0].shape

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
        serves_MB1 = self._served_BM.T[:, :, None].to(self.parts[0].answers.decoder.device)
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

    def part(self, some: slice) -> "EnsembleBatch":
        return EnsembleBatch(self.ensemble, [part.part(some) for part in self.parts])

    def features(self) -> tuple[Tensor, Tensor]:
        raise ValueError("several teachers have no features in common; name one of them")

    @cached_property
    def _served_BM(self) -> Tensor:
        every_B = torch.ones(math.prod(self.shape), dtype=torch.bool)
        masks = [part.served() for part in self.parts]
        return torch.stack([every_B if served_B is None else served_B for served_B in masks], dim=1)


def _grouping(parts: Sequence[StoredAnswers]) -> Grouping | None:
    """The largest blocks among those of the parts, as many as every part can hold."""
    own = [part.grouping for part in parts if part.grouping is not None]
    if not own:
        return None
    block_rows = max(grouping.block_rows for grouping in own)
    rows = min(grouping.num_rows for grouping in own)
    return Grouping(block_rows=block_rows, num_blocks=max(rows // block_rows, 1))
