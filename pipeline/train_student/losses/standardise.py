"""Logit standardisation, a wrapper for any loss, and NormKD, which is made of it. Shapes: B batch, C classes."""

from __future__ import annotations

from torch import Tensor

from .numerics import LARGEST_SQUARED, Temperature, kl, log_probs, raised


def standardised(logits_BC: Tensor, eps: float = 1e-7) -> Tensor:
    """Z-score of each row of logits, so that a loss sees relations and not the teacher's scale.

    (x - mean(x)) / (eps + std(x)), with the standard deviation over C - 1.

    Args:
        logits_BC: Logits of the student or of the teacher; both take it before the temperature.
        eps: Added to the standard deviation.

    Returns:
        Standardised logits, shape [B, C].

    References:
        Sun, Ren, Li, Wang, Cao. Logit Standardization in Knowledge Distillation. CVPR 2024, section 4.
    """
    logits_BC = raised(logits_BC).clamp(-LARGEST_SQUARED, LARGEST_SQUARED)
    centred_BC = logits_BC - logits_BC.mean(1, keepdim=True)
    variance_B1 = centred_BC.square().sum(1, keepdim=True) / (logits_BC.shape[1] - 1)
    return centred_BC / (eps + variance_B1.clamp(min=1e-30).sqrt())


def normalised_logit_distillation(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 2.0
) -> Tensor:
    """NormKD: each row has a temperature of its own, T times the standard deviation of its logits.

    (T d_z)^2 KL(softmax(z / (T d_z)) || softmax(s / (T d_s))), d_z and d_s the standard deviations over C - 1 of the
    row's teacher logits z and student logits s. It is KD on standardised logits (1e-7 is added to a deviation that
    divides), times the teacher's variance.

    Args:
        student_BC: Student logits; the gradient goes through their standard deviation too.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.

    Returns:
        Loss of each example, shape [B].

    References:
        Chi, Zheng, Li, Yang, Wu, Lin, Cai. NormKD: Normalized Logits for Knowledge Distillation. 2023, section 3, and
        the authors' code.
    """
    teacher_BC = raised(teacher_BC).clamp(-LARGEST_SQUARED, LARGEST_SQUARED)
    log_p_BC = log_probs(standardised(teacher_BC), temperature)
    log_q_BC = log_probs(standardised(student_BC), temperature)
    return kl(log_p_BC, log_q_BC) * teacher_BC.var(1) * temperature**2
