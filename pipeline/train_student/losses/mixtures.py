"""Divergences to a mixture of teacher and student, and symmetric ones. Shapes: B batch, C classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import Temperature, dot, kl, log_probs, probs


def log_mixture(p_BC: Tensor, q_BC: Tensor, weight: float) -> Tensor:
    """log((1 - weight) p + weight q), finite where both underflow (their own factor is 0 there)."""
    return torch.lerp(p_BC, q_BC, weight).clamp(min=torch.finfo(p_BC.dtype).tiny).log()


def generalized_jensen_shannon(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    beta: float = 0.5,
) -> Tensor:
    """Generalised Jensen-Shannon divergence between teacher and student; bounded for beta between 0 and 1.

    T^2 [beta KL(p || m) + (1 - beta) KL(q || m)] with m = beta p + (1 - beta) q and p, q = softmax(logits / T);
    by convention beta = 0 is KL(p || q) and beta = 1 is KL(q || p).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        beta: Share of the teacher in the mixture, in [0, 1].

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Agarwal et al. On-Policy Distillation of Language Models (GKD). ICLR 2024, section 2.
        Englesson, Azizpour. Generalized Jensen-Shannon Divergence Loss for Learning with Noisy Labels. NeurIPS
        2021, for its robustness to noisy labels (there between label and predictions).
    """
    log_p_BC, log_q_BC = log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)
    if beta <= 0.0:
        return kl(log_p_BC, log_q_BC) * temperature**2
    if beta >= 1.0:
        return kl(log_q_BC, log_p_BC) * temperature**2
    p_BC, q_BC = log_p_BC.exp(), log_q_BC.exp()
    log_m_BC = log_mixture(p_BC, q_BC, 1.0 - beta)
    rows_B = beta * dot(p_BC, log_p_BC - log_m_BC) + (1.0 - beta) * dot(q_BC, log_q_BC - log_m_BC)
    return rows_B * temperature**2


def skewed_kl_divergence(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    skew: float = 0.1,
) -> Tensor:
    """Skewed forward KL: the student is mixed with a little teacher, which bounds the loss.

    T^2 KL(p || skew p + (1 - skew) q), with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        skew: Share of the teacher, in [0, 1); 0 is KL.

    Returns:
        Loss of each example in nats, shape [B], at most -T^2 log skew.

    References:
        Ko, Kim, Chen, Yun. DistiLLM: Towards Streamlined Distillation for Large Language Models. ICML 2024,
        section 3.
    """
    log_p_BC, log_q_BC = log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)
    p_BC = log_p_BC.exp()
    return dot(p_BC, log_p_BC - log_mixture(p_BC, log_q_BC.exp(), 1.0 - skew)) * temperature**2


def skewed_reverse_kl_divergence(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    skew: float = 0.1,
) -> Tensor:
    """Skewed reverse KL: the teacher is mixed with a little student, which bounds the loss.

    T^2 KL(q || (1 - skew) p + skew q), with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        skew: Share of the student, in [0, 1); 0 is reverse KL.

    Returns:
        Loss of each example in nats, shape [B], at most -T^2 log skew.

    References:
        Ko, Kim, Chen, Yun. DistiLLM: Towards Streamlined Distillation for Large Language Models. ICML 2024,
        section 3.
    """
    log_p_BC, log_q_BC = log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)
    q_BC = log_q_BC.exp()
    return dot(q_BC, log_q_BC - log_mixture(log_p_BC.exp(), q_BC, skew)) * temperature**2


def symmetric_kl_divergence(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Symmetric KL (Jeffreys): half forward, half reverse; SSLD's loss as released.

    T^2 / 2 sum_c (p_c - q_c) (log p_c - log q_c), with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Cui et al. Beyond Self-Supervision: A Simple Yet Effective Network Distillation Alternative to Improve
        Backbones. 2021, section 3 (there called JS divergence).
    """
    log_p_BC, log_q_BC = log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)
    rows_B = dot(log_p_BC.exp() - log_q_BC.exp(), log_p_BC - log_q_BC)
    return 0.5 * rows_B * temperature**2


def total_variation(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Total variation distance; every class pulls with the same strength, however wrong it is.

    T^2 / 2 sum_c |p_c - q_c|, with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.

    Returns:
        Loss of each example, shape [B], at most T^2.

    References:
        Wen, Li, Du, Mou. f-Divergence Minimization for Sequence-Level Knowledge Distillation. ACL 2023, section 3.
    """
    distance_BC = (probs(teacher_BC, temperature) - probs(student_BC, temperature)).abs()
    return 0.5 * distance_BC.sum(1) * temperature**2


def interpolated_kl_divergence(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    start: float = 0.4,
    end: float = 1.0,
    progress: float = 1.0,
) -> Tensor:
    """TAID: the target moves from the student's own answer to the teacher's in the course of training.

    T^2 KL(softmax(((1 - t) sg(s) + t z) / T) || q), t = start + (end - start) * progress, sg without gradient.
    The paper raises t faster where the loss falls fast; this is its linear schedule, which needs no state.

    Args:
        student_BC: Student logits s.
        teacher_BC: Teacher logits z, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        start: t at the first step.
        end: t at the last step.
        progress: Share of the training that is done, in [0, 1].

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Shing et al. TAID: Temporally Adaptive Interpolated Distillation for Efficient Knowledge Transfer in
        Language Models. ICLR 2025, section 3.
    """
    mix = start + (end - start) * min(max(progress, 0.0), 1.0)
    target_BC = torch.lerp(student_BC.detach().to(teacher_BC.dtype), teacher_BC, mix)
    return kl(log_probs(target_BC, temperature), log_probs(student_BC, temperature)) * temperature**2
