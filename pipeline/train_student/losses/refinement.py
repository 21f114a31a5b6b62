"""Losses that repair a wrong teacher before they follow it: LA (swap), RC, LR. Shapes: B batch, C classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import Temperature, at, kl, log_probs, mean_square, probs, raised


def swapped_kl_divergence(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Label-swapped KL (LA): exchange the teacher's top logit with the label's, then distil.

    T^2 KL(softmax(z' / T) || softmax(s / T)), z' = z with z_argmax and z_y exchanged.

    Args:
        student_BC: Student logits s.
        teacher_BC: Teacher logits z, dense and finite.
        labels_B: Class ids.
        temperature: T > 0, one number or one per row.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Wen, Lai, Qian. Preparing Lessons: Improve Knowledge Distillation with Better Supervision.
        Neurocomputing 2021, section 3 (label adjustment), as compared with in RLD, ICCV 2025.
    """
    teacher_BC = raised(teacher_BC)
    top_B1, label_B1 = teacher_BC.argmax(1, keepdim=True), labels_B[:, None]
    pair_B2 = torch.cat([top_B1, label_B1], dim=1)
    swapped_BC = teacher_BC.scatter(1, pair_B2, teacher_BC.gather(1, pair_B2.flip(1)))
    return kl(log_probs(swapped_BC, temperature), log_probs(student_BC, temperature)) * temperature**2


def revised_student_kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    rc_weight: float = 0.1,
) -> Tensor:
    """RC: KD, and a small pull towards the student's own answer with the label's logit moved by the largest one.

    T^2 [KL(p || q) + rc_weight KL(r || q)], r = softmax(s' / T), s' = sg(s) with s_y + max_c s_c in the place of
    s_y: raised where the largest logit is positive, above all others if s_y is positive too; lowered where all are
    negative.

    Args:
        student_BC: Student logits s.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids.
        temperature: T > 0, one number or one per row.
        rc_weight: Weight of the second term.

    Returns:
        Loss of each example in nats, shape [B]; not 0 at student = teacher.

    References:
        RC as compared with in Sun et al., Knowledge Distillation with Refined Logits. ICCV 2025, section 4.
    """
    log_q_BC = log_probs(student_BC, temperature)
    own_BC = raised(student_BC.detach())
    revised_BC = own_BC.scatter_add(1, labels_B[:, None], own_BC.amax(1, keepdim=True))
    rows_B = kl(log_probs(teacher_BC, temperature), log_q_BC)
    rows_B = rows_B + rc_weight * kl(log_probs(revised_BC, temperature), log_q_BC)
    return rows_B * temperature**2


def label_revision(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    eta: float = 0.8,
    logit_weight: float = 4.0,
) -> Tensor:
    """LR: trust the logits where the teacher is right, a repaired distribution where it is wrong.

    Teacher right: B/n_right [-log q_y + logit_weight/C sum_c (s_c - z_c)^2]. Teacher wrong: B/n_wrong 1/C sum_c
    (q_c - t_c)^2 with t = b p + (1 - b) y, b = eta / (p_max - p_y + 1), y the one-hot label: then t_y is the largest
    entry of t. n_right and n_wrong count the rows of either kind among the B of the batch, so that the mean over the
    batch is the authors' sum of two means; a kind without rows adds nothing.

    Args:
        student_BC: Student logits s.
        teacher_BC: Teacher logits z, dense and finite.
        labels_B: Class ids; of labelled rows only, as the counts are of all rows given.
        eta: In (0, 1): how much of the teacher is left where it is wrong.
        logit_weight: Weight of the squared logit error.

    Returns:
        Loss of each example, shape [B].

    References:
        LR (label revision) as compared with in Sun et al., Knowledge Distillation with Refined Logits. ICCV 2025,
        section 4, and their released comparison code.
    """
    teacher_BC, log_q_BC = raised(teacher_BC), log_probs(student_BC)
    p_BC = probs(teacher_BC.detach())
    keep_B1 = (eta / (p_BC.amax(1) - at(p_BC, labels_B) + 1.0))[:, None]
    revised_BC = p_BC.mul_(keep_B1).scatter_add_(1, labels_B[:, None], 1.0 - keep_B1)
    wrong_B = (log_q_BC.exp() - revised_BC).square().mean(1)
    right_B = mean_square(raised(student_BC) - teacher_BC) * logit_weight - at(log_q_BC, labels_B)
    is_right_B = teacher_BC.argmax(1) == labels_B
    num_right = is_right_B.to(p_BC.dtype).sum()
    num_same_B = torch.where(is_right_B, num_right, len(labels_B) - num_right)
    return torch.where(is_right_B, right_B, wrong_B) * (len(labels_B) / num_same_B)
