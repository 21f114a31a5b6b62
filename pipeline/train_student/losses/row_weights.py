"""How much each row counts, and at which temperature it is compared: small rules that go with any loss.

A rule sees the student's and the teacher's logits at T = 1 and the labels, and answers one number per row,
without gradient. Shapes: B batch, C classes. Rows with label -1 are unlabelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .class_weights import effective_number, inverse_frequency
from .domains import Option, Value, defaults, number, switch, words

TINY = 1e-12


def _label_entry(log_prob_BC: Tensor, labels_B: Tensor) -> Tensor:
    return log_prob_BC.gather(1, labels_B.clamp(min=0)[:, None])[:, 0]


def teacher_confidence(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, confidence_power: float = 1.0
) -> Tensor:
    """More weight where the teacher is sure.

    w = (max_c p_c)^power, with p = softmax(teacher).

    Args:
        student_BC: Unused.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        confidence_power: Exponent; negative values prefer unsure rows.

    Returns:
        Weight of each row, shape [B].

    References:
        A common heuristic, not one paper's; compare Tang et al., Understanding and Improving Knowledge
        Distillation, 2020, section 4, on per-example confidence.
    """
    return (confidence_power * F.log_softmax(teacher_BC, dim=1).amax(1)).exp()


def entropy_gate(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    entropy_threshold: float = 0.0,
    entropy_keep: str = "certain",
) -> Tensor:
    """Gate on the teacher's entropy, soft by default, hard with a threshold.

    h = H(p) / log C; w = 1 - h, or with a threshold w = [h <= threshold]. keep = "uncertain" takes 1 - w.

    Args:
        student_BC: Unused.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        entropy_threshold: 0 for the soft gate, else in (0, 1).
        entropy_keep: "certain" or "uncertain".

    Returns:
        Weight of each row in [0, 1], shape [B].

    References:
        The hard gate on uncertain rows as described in A Survey of On-Policy Distillation (second hand); the soft
        form is ours.
    """
    log_p_BC = F.log_softmax(teacher_BC, dim=1)
    entropy_B = -(log_p_BC.exp() * log_p_BC).sum(1) / math.log(teacher_BC.shape[1])
    if entropy_threshold > 0.0:
        weight_B = (entropy_B <= entropy_threshold).to(log_p_BC.dtype)
    else:
        weight_B = 1.0 - entropy_B.clamp(0.0, 1.0)
    return 1.0 - weight_B if entropy_keep == "uncertain" else weight_B


def paced(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    paced_a: float = 1.0,
    paced_b: float = 1.0,
    paced_by: str = "student",
) -> Tensor:
    """PACED: the rows at the edge of the student's competence count most.

    w = p^a (1 - p)^b, p the probability of the label at T = 1. The paper takes p from sampled answers that pass a
    check; the label's probability is our form for classifiers.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits; used by paced_by = "teacher" (out-of-fold rows) only.
        labels_B: Class ids.
        paced_a: Exponent of p: how much hopeless rows lose.
        paced_b: Exponent of 1 - p: how much mastered rows lose.
        paced_by: "student" or "teacher": whose p.

    Returns:
        Weight of each row, shape [B].

    References:
        PACED. arXiv, version 3, 2026, abstract (a = b = 1); the body was not read.
    """
    log_p_B = _label_entry(F.log_softmax(teacher_BC if paced_by == "teacher" else student_BC, dim=1), labels_B)
    log_miss_B = (-torch.expm1(log_p_B)).clamp(min=TINY).log()
    return (paced_a * log_p_B + paced_b * log_miss_B).exp()


def label_noise(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, noise_power: float = 1.0) -> Tensor:
    """Less weight where a teacher that never saw the row disagrees with its label.

    w = (p_y / max_c p_c)^power, p = softmax(teacher), out-of-fold: 1 where the teacher is right.

    Args:
        student_BC: Unused.
        teacher_BC: Out-of-fold teacher logits; a teacher that saw the label agrees with the noise.
        labels_B: Class ids.
        noise_power: Exponent; larger is stricter.

    Returns:
        Weight of each row in [0, 1], shape [B].

    References:
        Idea of out-of-sample self-confidence: Northcutt, Jiang, Chuang. Confident Learning: Estimating
        Uncertainty in Dataset Labels. JAIR 70, 2021, section 3. The soft weight is ours.
    """
    log_p_BC = F.log_softmax(teacher_BC, dim=1)
    return (noise_power * (_label_entry(log_p_BC, labels_B) - log_p_BC.amax(1))).exp()


def difficulty_temperature(
    student_BC: Tensor, teacher_BC: Tensor, *, temperature: float, difficulty_c: float = 0.5
) -> Tensor:
    """AdaKD's temperature: sharp targets on hard rows, soft targets on easy ones.

    T_b = T exp(-c tanh(log(d_b / median d))), d the Hellinger distance of teacher and student at T = 1.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        temperature: T, the base.
        difficulty_c: Strength; temperatures lie in [T exp(-c), T exp(c)].

    Returns:
        Temperature of each row, shape [B].

    References:
        AdaKD, adaptive token-wise distillation. AAAI 2026, the IDTS rule.
    """
    gap_BC = (0.5 * F.log_softmax(teacher_BC, dim=1)).exp() - (0.5 * F.log_softmax(student_BC, dim=1)).exp()
    log_d_B = 0.5 * (0.5 * gap_BC.square().sum(1)).clamp(min=TINY).log()
    return temperature * (-difficulty_c * torch.tanh(log_d_B - log_d_B.median())).exp()


@dataclass(frozen=True, kw_only=True)
class RowWeight:
    """One row weight: its function, what it needs, and which terms of an objective it is about.

    counts: the function takes ``class_counts_C``, training rows of each class, and goes by classes alone.
    touches: "teacher", terms that follow the teacher; "labels", terms of which a wrong label spoils the target.
    """

    fn: Callable[..., Tensor]
    use: str
    takes: Mapping[str, Option] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    needs: frozenset[str] = frozenset()
    counts: bool = False
    touches: frozenset[str] = frozenset({"teacher", "labels"})

    @property
    def options(self) -> dict[str, Value]:
        """The options' defaults."""
        return defaults(self.takes)


@dataclass(frozen=True, kw_only=True)
class TemperatureRule:
    """One temperature rule: its function and options."""

    fn: Callable[..., Tensor]
    use: str
    takes: Mapping[str, Option] = field(default_factory=dict)

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
            "paced_by": words("student", "teacher"),
        },
        parts=("paced_a", "paced_b"),
        needs=frozenset({"labels"}),
    ),
    "label_noise": RowWeight(
        fn=label_noise,
        use="mislabelled data with a cross-fitted teacher; weighs the terms that a wrong label misleads",
        takes={"noise_power": number(1.0, "(0, 10]")},
        needs=frozenset({"labels", "label_prob", "out_of_fold"}),
        touches=frozenset({"labels"}),
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
) -> Tensor:
    """Weight of each row by a rule of the table, with floor and mean 1; the mean on rows it cannot judge.

    Args:
        name: Key of ROW_WEIGHTS.
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids, -1 unlabelled.
        options: The rule's options and the shared ones.
        class_counts: Training rows of each class, for rules that go by them.

    Returns:
        Weights without gradient, shape [B].

    Raises:
        ValueError: The rule goes by counts that are not given.
    """
    rule = ROW_WEIGHTS[name]
    own: dict[str, Any] = {key: options.get(key, default) for key, default in rule.options.items()}
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
    name: str, student_BC: Tensor, teacher_BC: Tensor, temperature: float, options: Mapping[str, Value]
) -> Tensor:
    """Temperature of each row by a rule of the table, without gradient, shape [B]."""
    rule = TEMPERATURE_RULES[name]
    own = {key: options.get(key, default) for key, default in rule.options.items()}
    with torch.no_grad():
        return rule.fn(student_BC, teacher_BC, temperature=temperature, **own)
