"""The tables of row weights and of rules of temperatures, and how a rule of them is applied.

Shapes: B batch, C classes. Rows with label -1 are unlabelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .class_weights import effective_number, inverse_frequency
from .domains import Option, Value, defaults, number, switch, words
from .row_weights import (
    TINY,
    difficulty_temperature,
    entropy_gap,
    entropy_gate,
    hardest,
    label_noise,
    learned_temperature,
    paced,
    teacher_ahead,
    teacher_confidence,
)


@dataclass(frozen=True, kw_only=True)
class RowWeight:
    """One row weight: its function, what it needs, and which terms of an objective it is about.

    feeds_back: its options are those of a ``Feedback``, whose share the function takes as ``kept``.
    counts: the function takes ``class_counts_C``, training rows of each class, and goes by classes alone.
    touches: "teacher", terms that follow the teacher; "labels", terms of which a wrong label spoils the target.
    """

    fn: Callable[..., Tensor]
    use: str
    takes: Mapping[str, Option] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    feeds_back: bool = False
    counts: bool = False
    touches: frozenset[str] = frozenset({"teacher", "labels"})

    @property
    def options(self) -> dict[str, Value]:
        """The options' defaults."""
        return defaults(self.takes)


@dataclass(frozen=True, kw_only=True)
class TemperatureRule:
    """One temperature rule: its function and options.

    learns: its options are those of a ``LearnedTemperature``, which the function takes as ``module``. couples_rows: a
    row's temperature depends on the other rows of its batch.
    """

    fn: Callable[..., Tensor]
    use: str
    takes: Mapping[str, Option] = field(default_factory=dict)
    learns: bool = False
    couples_rows: bool = False

    @property
    def options(self) -> dict[str, Value]:
        """The options' defaults."""
        return defaults(self.takes)


ROW_WEIGHTS: dict[str, RowWeight] = {
    "confidence": RowWeight(
        fn=teacher_confidence,
        use="teachers whose unsure answers are noise; weighs the teacher's terms only",
        takes={"confidence_power": number(1.0, "[-5, 5]", without=0.0)},
        touches=frozenset({"teacher"}),
    ),
    "entropy": RowWeight(
        fn=entropy_gate,
        use="keep, or leave out, rows on which the teacher hesitates; weighs the teacher's terms only",
        takes={"entropy_threshold": number(0.0, "[0, 1)"), "entropy_keep": words("certain", "uncertain")},
        touches=frozenset({"teacher"}),
    ),
    "paced": RowWeight(
        fn=paced,
        use="spend the steps on rows that are neither hopeless nor mastered; weighs every term",
        takes={
            "paced_a": number(1.0, "[0, 10]"),
            "paced_b": number(1.0, "[0, 10]"),
            "paced_by": words("student", "teacher", "views"),
        },
        parts=("paced_a", "paced_b"),
        needs=frozenset({"labels"}),
    ),
    "entropy_gap": RowWeight(
        fn=entropy_gap,
        use="follow the teacher where it is surer than the student (TSD-KD); weighs the teacher's terms only",
        touches=frozenset({"teacher"}),
    ),
    "teacher_ahead": RowWeight(
        fn=teacher_ahead,
        use="rows of which the teacher can still teach something (DASD); weighs every term",
        needs=frozenset({"labels", "label_prob"}),
    ),
    "label_noise": RowWeight(
        fn=label_noise,
        use="mislabelled data with a cross-fitted teacher; weighs the terms that a wrong label misleads",
        takes={"noise_power": number(1.0, "(0, 10]")},
        needs=frozenset({"labels", "label_prob", "out_of_fold"}),
        touches=frozenset({"labels"}),
    ),
    "hardest": RowWeight(
        fn=hardest,
        use="spend the steps on rows that the student has not got yet, fewer of them while it learns (AdaKD)",
        takes={
            "feedback_epsilon": number(0.05, "(0, 1)"),
            "feedback_delta": number(0.05, "(0, 1)"),
            "feedback_memory": number(0.99, "[0, 1)"),
            "feedback_warmup": number(0.05, "[0, 1)"),
            "feedback_least": number(0.1, "(0, 1]"),
        },
        feeds_back=True,
        touches=frozenset({"teacher"}),
    ),
    "inverse_frequency": RowWeight(
        fn=inverse_frequency,
        use="rare classes that matter as much as frequent ones; weighs every term",
        takes={"class_power": number(1.0, "(0, 1]")},
        counts=True,
    ),
    "effective_number": RowWeight(
        fn=effective_number,
        use="the same for long tails, whose rarest classes would weigh too much (Cui et al.); weighs every term",
        takes={"class_beta": number(0.999, "(0, 1)")},
        counts=True,
    ),
}

TEMPERATURE_RULES: dict[str, TemperatureRule] = {
    "difficulty": TemperatureRule(
        fn=difficulty_temperature,
        use="rows differ much in difficulty (AdaKD); divergences at T",
        takes={"difficulty_c": number(0.5, "(0, 3]")},
        couples_rows=True,
    ),
    "learned": TemperatureRule(
        fn=learned_temperature,
        use="no temperature to search: it is learned, against the student, from easy to hard (CTKD)",
        takes={
            "learned_lowest": number(1.0, "[0.01, 100]"),
            "learned_width": number(20.0, "(0, 1000]"),
            "learned_epochs": number(10.0, "(0, 1e6]"),
        },
        learns=True,
    ),
}

SHARED: Mapping[str, Option] = {"row_weight_floor": number(0.01, "[0, 1)"), "row_weight_mean_one": switch(True)}
"""Options of every row weight: a floor, so that no row is lost for good, and mean 1 within the batch."""

SHARED_OPTIONS: Mapping[str, Value] = defaults(SHARED)


def row_weights(
    name: str,
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    options: Mapping[str, Value],
    class_counts: Sequence[int] = (),
    kept: float = 1.0,
    rate_B: Tensor | None = None,
) -> Tensor:
    """Weight of each row by a rule of the table, with floor and mean 1; the mean on rows it cannot judge.

    Args:
        name: Key of ROW_WEIGHTS.
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids, -1 unlabelled.
        options: The rule's options and the shared ones.
        class_counts: Training rows of each class, for rules that go by them.
        kept: Share of the rows that feedback keeps, for rules that go by it.
        rate_B: How often teachers are right about the row, likewise.

    Returns:
        Weights without gradient, shape [B].

    Raises:
        ValueError: The rule goes by counts that are not given.
    """
    rule = ROW_WEIGHTS[name]
    own: dict[str, Any] = {key: options.get(key, default) for key, default in rule.options.items()}
    if own.get("paced_by") == "views":
        own["rate_B"] = rate_B
    if rule.feeds_back:
        own = {"kept": kept}
    if rule.counts:
        if len(class_counts) != student_BC.shape[1]:
            raise ValueError(
                f"row_weight={name} goes by the training rows of each class, found {len(class_counts)} of"
                f" {student_BC.shape[1]} counts; pass objective.with_class_counts(counts)"
            )
        own["class_counts_C"] = torch.tensor(class_counts, dtype=torch.float64, device=student_BC.device)
    shared = {key: options.get(key, default) for key, default in SHARED_OPTIONS.items()}
    with torch.no_grad():
        weight_B = rule.fn(student_BC, teacher_BC, labels_B, **own).clamp(min=float(shared["row_weight_floor"]))
        judged_B = labels_B >= 0 if "labels" in rule.needs else torch.ones_like(labels_B, dtype=torch.bool)
        mean = torch.where(judged_B, weight_B, 0.0).sum() / judged_B.sum()
        mean = torch.where(judged_B.any(), mean, 1.0)
        weight_B = torch.where(judged_B, weight_B, mean)
        return weight_B / mean.clamp(min=TINY) if shared["row_weight_mean_one"] else weight_B


def row_temperatures(
    name: str,
    student_BC: Tensor,
    teacher_BC: Tensor,
    temperature: float,
    options: Mapping[str, Value],
    module: nn.Module | None = None,
    epoch: int = 1,
) -> Tensor:
    """Temperature of each row by a rule of the table, shape [B]; without gradient, unless its module learns."""
    rule = TEMPERATURE_RULES[name]
    if rule.learns:
        return rule.fn(student_BC.detach(), teacher_BC, temperature=temperature, module=module, epoch=epoch)
    own = {key: options.get(key, default) for key, default in rule.options.items()}
    with torch.no_grad():
        return rule.fn(student_BC, teacher_BC, temperature=temperature, **own)
