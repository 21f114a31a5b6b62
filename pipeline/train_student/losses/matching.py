"""Transformed teacher matching: the temperature on the teacher alone. Shapes: B batch, C classes."""

from __future__ import annotations

from torch import Tensor

from .numerics import Temperature, kl, log_probs


def transformed_teacher_matching(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Transformed teacher matching: KD without a temperature on the student.

    KL(p_T || q), with p_T = softmax(teacher / T) and q = softmax(student); no factor T^2.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T = 1/gamma of the teacher, one number or one per row.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Zheng, Yang. Knowledge Distillation Based on Transformed Teacher Matching. ICLR 2024, section 4.
    """
    return kl(log_probs(teacher_BC, temperature), log_probs(student_BC))


def weighted_transformed_teacher_matching(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Weighted transformed teacher matching: more weight where the teacher is smooth.

    U KL(p_T || q) with U = sum_c p_c^(1/T), p = softmax(teacher), p_T = softmax(teacher / T), q = softmax(student).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T = 1/gamma of the teacher, one number or one per row.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Zheng, Yang. Knowledge Distillation Based on Transformed Teacher Matching. ICLR 2024, section 5.
    """
    log_p_BC = log_probs(teacher_BC)
    smoothness_B = log_p_BC.div(temperature if isinstance(temperature, float | int) else temperature[:, None])
    weight_B = smoothness_B.exp().sum(1)
    return weight_B * kl(log_probs(log_p_BC, temperature), log_probs(student_BC))
