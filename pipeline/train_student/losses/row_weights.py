"""How much each row counts, and at which temperature it is compared: small rules that go with any loss.

A rule sees the student's and the teacher's logits at T = 1 and the labels, and answers one number per row,
without gradient. Shapes: B batch, C classes. Rows with label -1 are unlabelled.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .learned import LearnedTemperature

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
    rate_B: Tensor | None = None,
) -> Tensor:
    """PACED: the rows at the edge of the student's competence count most.

    w = p^a (1 - p)^b, p the probability of the label at T = 1, or the share of the stored views, of all teachers that
    are used, whose best class is the label. The paper takes p from sampled answers of the student that pass a check;
    these are our forms for classifiers.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits; used by paced_by = "teacher" (out-of-fold rows) only.
        labels_B: Class ids.
        paced_a: Exponent of p: how much hopeless rows lose.
        paced_b: Exponent of 1 - p: how much mastered rows lose.
        paced_by: "student" or "teacher": whose p; "views": the share of views in which teachers that did not see the
            row are right, a number of the store.
        rate_B: That share.

    Returns:
        Weight of each row, shape [B].

    References:
        PACED. arXiv, version 3, 2026, abstract (a = b = 1); the body was not read.
    """
    if paced_by == "views":
        assert rate_B is not None
        known_B = rate_B.nan_to_num(0.5).clamp(0.0, 1.0).to(student_BC.dtype)
        return known_B**paced_a * (1.0 - known_B) ** paced_b
    log_p_B = _label_entry(F.log_softmax(teacher_BC if paced_by == "teacher" else student_BC, dim=1), labels_B)
    log_miss_B = (-torch.expm1(log_p_B)).clamp(min=TINY).log()
    return (paced_a * log_p_B + paced_b * log_miss_B).exp()


def entropy_gap(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
    """More weight where the student is less sure than the teacher.

    w = sigmoid(H(q) - H(p)), the entropies of student and teacher in nats at T = 1.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.

    Returns:
        Weight of each row in (0, 1), shape [B].

    References:
        TSD-KD, the authors' code (kmswin1/TSD-KD), where it weighs a Jensen-Shannon divergence at 0.9 (gjs); the
        paper's body was not read.
    """
    return torch.sigmoid(_entropy(student_BC) - _entropy(teacher_BC))


def teacher_ahead(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
    """Weight where the teacher knows the label better than the student does, and none elsewhere.

    w = max(0, log p_y - log q_y) at T = 1: what the student can still learn about the row.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids.

    Returns:
        Weight of each row, 0 or more, shape [B].

    References:
        DASD, distribution-aligned sequence distillation, technical report, 2026: examples are preferred whose
        probability is far larger for the teacher. It names no threshold; this form is ours.
    """
    log_p_B, log_q_B = (_label_entry(F.log_softmax(part_BC, dim=1), labels_B) for part_BC in (teacher_BC, student_BC))
    return (log_p_B - log_q_B).clamp(min=0.0)


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


def hardest(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, kept: float) -> Tensor:
    """AdaKD's selection: the rows on which student and teacher are farthest apart, as many as feedback says.

    w = [d is among the r B largest], d the Hellinger distance at T = 1. r is 1 for the first steps. L is a running
    average of the loss of the kept rows: once it is below L_ref (1 - epsilon), r falls by the share delta, once it is
    above L_ref (1 + epsilon), r rises by it, at most to 1; then L_ref is L. With row_weight_floor=0 the mean is over
    the kept rows, as in the paper.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        kept: r, which feedback found.
        feedback_epsilon: How far the loss must have moved.
        feedback_delta: How much r then changes.
        feedback_memory: Of the running average, each step.
        feedback_warmup: Share of the run's steps in which all rows are kept.
        feedback_least: r falls no lower.

    Returns:
        Weight of each row, 1 or 0, shape [B].

    References:
        AdaKD, adaptive token-wise distillation. AAAI 2026, Algorithm 1 (LATF); the floor of r is that of the authors'
        code.
    """
    distance_B = _hellinger_squared(student_BC, teacher_BC)
    number = min(max(math.ceil(kept * len(distance_B) - 1e-6), 1), len(distance_B))
    return (distance_B >= distance_B.topk(number).values[-1]).to(distance_B.dtype)


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
    log_d_B = 0.5 * _hellinger_squared(student_BC, teacher_BC).clamp(min=TINY).log()
    return temperature * (-difficulty_c * torch.tanh(log_d_B - log_d_B.median())).exp()


def _entropy(logits_BC: Tensor) -> Tensor:
    log_p_BC = F.log_softmax(logits_BC, dim=1)
    return -(log_p_BC.exp() * log_p_BC).sum(1)


def _hellinger_squared(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
    gap_BC = (0.5 * F.log_softmax(teacher_BC, dim=1)).exp() - (0.5 * F.log_softmax(student_BC, dim=1)).exp()
    return 0.5 * gap_BC.square().sum(1)


def learned_temperature(
    student_BC: Tensor, teacher_BC: Tensor, *, temperature: float, module: LearnedTemperature, epoch: int
) -> Tensor:
    """CTKD's temperature: one number for all rows, learned against the student.

    T = lowest + width sigmoid(theta). theta climbs the loss that the student descends: its gradient is multiplied by
    -(1 - cos(pi min(epoch / epochs, 1))) / 2, so that tasks grow harder in the course of the first epochs.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        temperature: T at the start; CTKD's own is 15.62.
        module: Holds theta.
        epoch: Counts from 1.
        learned_lowest: T stays above it.
        learned_width: T stays below learned_lowest + learned_width.
        learned_epochs: Epochs until the gradient is turned round whole.

    Returns:
        Temperature of each row, all the same, with a gradient, shape [B].

    References:
        Li, Li, Yang, Zhao, Song, Luo, Li, Yang. Curriculum Temperature for Knowledge Distillation. AAAI 2023, section 3
        (the global version), and the authors' code.
    """
    found: Tensor = module(epoch)
    return found.to(student_BC).expand(len(student_BC))
