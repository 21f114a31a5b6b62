"""What every kind of encoding is given: its numbers, rows to encode, and what fills in the classes that rows leave out.

Shape suffixes: B rows, C classes, K kept classes.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from logitbank.pipeline.encoding.tail_predictor import TailPredictor

DENSE_CLASSES = 4096
"""Up to here a predictor is one full matrix, and a tail's code has as many directions as classes; beyond, few."""
MAX_BASIS = 1024
"""Directions of the code beyond; 8 bits at most for each."""
FINITE_RANGE = 1e4
"""How far below a row's best logit losses see a class that is impossible."""
TAIL_RULES = ("predicted", "bucket", "uniform", "renormalise")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers of an encoding.

    Args:
        num_classes: C.
        top_k: K, the classes kept exactly (0 for dense).
        tail_bits: Bits per class that the tail's code takes on average, up to 4 for "topk+tail", else 0.
            They go where they remove most error (see `tail_basis`), so 1 does more than 2 bits for every
            class would.
        bits: Bits of a log-probability: 8 (default) or 16, for dense also 32, which is lossless.
    """

    num_classes: int
    top_k: int = 0
    tail_bits: float = 0
    bits: int = 8

    @property
    def tail_bytes(self) -> int:
        """Bytes of a row's tail code."""
        return math.ceil(self.num_classes * self.tail_bits / 8)


def tail_bits_of(tail_bytes: int, num_classes: int) -> float:
    """The ``tail_bits`` at which a row's tail code takes so many bytes.

    Raises:
        ValueError: More than a code of so many classes can use.
    """
    most = num_classes // 2 if num_classes <= DENSE_CLASSES else MAX_BASIS
    if not 1 <= tail_bytes <= most:
        raise ValueError(f"expected 1 to {most} tail bytes for {num_classes} classes, found {tail_bytes}")
    tail_bits = 8 * tail_bytes / num_classes
    while Settings(num_classes=num_classes, tail_bits=tail_bits).tail_bytes > tail_bytes:
        tail_bits = math.nextafter(tail_bits, 0)
    return tail_bits


@dataclass(frozen=True, kw_only=True)
class Tail:
    """How classes are decoded that a row does not hold one by one.

    Args:
        rule: "predicted" (default); "uniform"; "bucket" (the tail takes the student's shape at the teacher's
            mass); "renormalise" (tail classes become impossible).
        predictor: The teacher's tail predictor, on the arrays' device; None falls back to a uniform tail.
        folds_B: Fold of each row, when the predictor holds one matrix per fold.
        student_BC: Student logits, only for "bucket"; no gradient flows into them.
        temperature: Only for "bucket": the temperature at which the tail's mass is exact.
    """

    rule: str = "predicted"
    predictor: TailPredictor | None = None
    folds_B: Tensor | None = None
    student_BC: Tensor | None = None
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if self.rule not in TAIL_RULES:
            raise ValueError(f"expected a tail rule among {', '.join(TAIL_RULES)}, found {self.rule!r}")

    @property
    def prediction(self) -> TailPredictor | None:
        """What shapes the tail; None where it is uniform, or impossible."""
        return self.predictor if self.rule in ("predicted", "bucket") else None


@dataclass(frozen=True)
class LabelledLogits:
    """Rows to encode.

    Args:
        logits_BC: Raw logits, float32; -inf marks a class that is masked.
        labels_B: int64 class ids on the same device, -1 where a row has no label.
    """

    logits_BC: Tensor
    labels_B: Tensor

    @property
    def labelled_B(self) -> Tensor:
        """Rows that have a label."""
        return self.labels_B >= 0

    @cached_property
    def label_logit_B(self) -> Tensor:
        """The label's logit; that of some class where there is no label."""
        return self.logits_BC.gather(1, self.labels_B.clamp(min=0)[:, None]).squeeze(1)

    def label_log_prob(self, log_sum_B: Tensor, best_B: Tensor) -> Tensor:
        """The label's log-probability float32 [B], NaN without one; ``log_sum_B``: logsumexp less the best logit."""
        # less the best first: beside a large logsumexp float32 has no room for what is left
        log_prob_B = self.label_logit_B - best_B - log_sum_B
        return torch.where(self.labelled_B, log_prob_B, math.nan)


def at_positions(folds_B: Tensor | None, labels_BL: Tensor) -> Tensor | None:
    """The fold of each answer, [B * L], from that of each example, [B]."""
    return None if folds_B is None else folds_B.repeat_interleave(labels_BL.shape[1])


def check_finite(logsumexp_B: Tensor) -> Tensor:
    """The same numbers; ValueError when one is none."""
    if not torch.isfinite(logsumexp_B).all():
        row = int((~torch.isfinite(logsumexp_B)).nonzero()[0])
        raise ValueError(
            f"expected finite logits (-inf marks a masked class), found NaN, +inf or only -inf in row {row}"
        )
    return logsumexp_B
