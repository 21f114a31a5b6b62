"""Losses that fit the labels, robustly or not. Shapes: B batch, C classes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .numerics import Temperature, at, cross_entropy, log_probs, probs

CLIPPED_LOG = 1e-4
"""Smallest target probability inside the logarithm of the reverse cross-entropy."""


def hard_cross_entropy(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Cross-entropy with the labels.

    -(1 - s) log q_y - s/C sum_c log q_c, with q = softmax(student).

    Args:
        student_BC: Student logits.
        teacher_BC: Unused.
        labels_B: Class ids.
        smoothing: Label smoothing s in [0, 1).

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Szegedy et al. Rethinking the Inception Architecture for Computer Vision. CVPR 2016, section 7.
    """
    log_q_BC = log_probs(student_BC)
    label_B = -at(log_q_BC, labels_B)
    return label_B if smoothing == 0.0 else torch.lerp(label_B, -log_q_BC.mean(1), smoothing)


def soft_cross_entropy(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Cross-entropy with the teacher's probabilities: KL plus the teacher's entropy, the same gradient.

    -T^2 sum_c p_c log q_c, with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Hinton, Vinyals, Dean. Distilling the Knowledge in a Neural Network. 2015, section 2.
    """
    rows_B = cross_entropy(probs(teacher_BC, temperature), log_probs(student_BC, temperature))
    return rows_B * temperature**2


def generalized_cross_entropy(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    q: float = 0.7,
    truncate: float = 0.0,
    truncate_start: float = 1.0 / 3.0,
    target: str = "label",
    progress: float = 1.0,
) -> Tensor:
    """Generalised cross-entropy: between cross-entropy (q -> 0) and mean absolute error (q = 1).

    (1 - q_y^q) / q; with truncate = k, rows whose q_y <= k give the constant (1 - k^q) / q and no gradient, once
    the share truncate_start of the training is done: a student at its start believes in no label. The authors' code
    begins at epoch 40 of 120 and judges rows by its best checkpoint, every ten epochs; ours by the student of the
    step. target = "teacher" takes sum_c p_c (1 - q_c^q) / q instead, our soft form and not the paper's.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits; used by target = "teacher" only.
        labels_B: Class ids.
        temperature: T > 0 of both softmaxes, one number or one per row; no factor T^2.
        q: Exponent in (0, 1].
        truncate: 0 for none, else k in (0, 1); 0.5 in the paper.
        truncate_start: Share of the training before rows are left out.
        target: "label" or "teacher".
        progress: Share of the training that is done, in [0, 1].

    Returns:
        Loss of each example, shape [B], at most 1/q.

    References:
        Zhang, Sabuncu. Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels.
        NeurIPS 2018, section 3.
    """
    log_q_BC = log_probs(student_BC, temperature)
    if target == "teacher":
        return -(probs(teacher_BC, temperature) * torch.expm1(q * log_q_BC)).sum(1) / q
    rows_B = -torch.expm1(q * at(log_q_BC, labels_B)) / q
    if truncate == 0.0 or progress < truncate_start:
        return rows_B
    return rows_B.clamp(max=(1.0 - truncate**q) / q)


def symmetric_cross_entropy(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    a: float = 0.1,
    b: float = 1.0,
    target: str = "label",
) -> Tensor:
    """Symmetric cross-entropy: cross-entropy plus a bounded reverse cross-entropy.

    -a sum_c t_c log q_c - b sum_c q_c log max(t_c, 1e-4), with t the one-hot label, or the teacher's
    probabilities for target = "teacher" (our soft form, not the paper's).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits; used by target = "teacher" only.
        labels_B: Class ids.
        temperature: T > 0 of both softmaxes, one number or one per row; no factor T^2.
        a: Weight of the cross-entropy.
        b: Weight of the reverse cross-entropy.
        target: "label" or "teacher".

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Wang et al. Symmetric Cross Entropy for Robust Learning with Noisy Labels. ICCV 2019, section 3.
    """
    log_q_BC = log_probs(student_BC, temperature)
    if target == "teacher":
        p_BC = probs(teacher_BC, temperature)
        log_t_BC = p_BC.clamp(min=CLIPPED_LOG).log()
        return a * cross_entropy(p_BC, log_q_BC) + b * cross_entropy(log_q_BC.exp(), log_t_BC)
    log_label_B = at(log_q_BC, labels_B)
    return -a * log_label_B + b * math.log(CLIPPED_LOG) * torch.expm1(log_label_B)


def active_passive_loss(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    a: float = 1.0,
    b: float = 1.0,
    passive: str = "rce",
) -> Tensor:
    """Active passive loss: normalised cross-entropy, which is robust, and a bounded one beside it, so that it learns.

    a (log q_y) / (sum_c log q_c) + b P, with q = softmax(student) and P = -log(1e-4) (1 - q_y), the reverse
    cross-entropy of SCE, or with passive = "mae" P = 1 - q_y, half of the mean absolute error as in the authors' code.

    Args:
        student_BC: Student logits.
        teacher_BC: Unused.
        labels_B: Class ids.
        a: Weight of the normalised cross-entropy.
        b: Weight of the passive loss.
        passive: "rce" or "mae".

    Returns:
        Loss of each example, shape [B].

    References:
        Ma, Huang, Wang, Romano, Erfani, Bailey. Normalized Loss Functions for Deep Learning with Noisy Labels. ICML
        2020, section 4, and the authors' code.
    """
    log_q_BC = log_probs(student_BC)
    label_B = at(log_q_BC, labels_B)
    missed_B = 1.0 - label_B.exp()
    scale = -math.log(CLIPPED_LOG) if passive == "rce" else 1.0
    return a * label_B / log_q_BC.sum(1) + b * scale * missed_B
