"""Losses that part the label from the other classes: DKD, RLD, NKD, WSLD. Shapes: B batch, C classes."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .numerics import (
    EXCLUDED,
    Temperature,
    at,
    binary_kl,
    cross_entropy,
    dot,
    kl,
    log_probs,
    raised,
    scaled,
    without,
)


class _LogOdds(torch.autograd.Function):
    """Log-odds with one exponential for both directions; plain operations take three and five copies."""

    @staticmethod
    def forward(logits_BC: Tensor, class_B: Tensor) -> tuple[Tensor, Tensor]:
        others_BC = without(logits_BC, class_B)
        top_B1 = others_BC.amax(1, keepdim=True)
        others_BC.sub_(top_B1).exp_()
        total_B1 = others_BC.sum(1, keepdim=True)
        odds_B1 = logits_BC.gather(1, class_B[:, None]) - total_B1.log() - top_B1
        return odds_B1[:, 0], others_BC

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(inputs[1], output[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        class_B, others_BC = ctx.saved_tensors
        grad_B1 = grads[0][:, None]
        share_BC = others_BC * (-grad_B1 / others_BC.sum(1, keepdim=True))
        return share_BC.scatter_(1, class_B[:, None], grad_B1), None


def log_odds(logits_BC: Tensor, class_B: Tensor) -> Tensor:
    """log(q / (1 - q)) of one class in each row, without the cancellation of 1 - q."""
    odds_B, _ = _LogOdds.apply(logits_BC, class_B)  # type: ignore[no-untyped-call]
    assert isinstance(odds_B, Tensor)
    return odds_B


def top_log_odds(logits_BC: Tensor) -> Tensor:
    """log(p / (1 - p)) of the largest class, up to about 87; without gradient, for the teacher."""
    p_BC = F.softmax(logits_BC.detach(), dim=1)
    top_B1 = logits_BC.argmax(1, keepdim=True)
    top_p_B = p_BC.gather(1, top_B1)[:, 0]
    others_B = p_BC.scatter_(1, top_B1, 0.0).sum(1)
    return top_p_B.log() - others_B.clamp(min=torch.finfo(p_BC.dtype).tiny).log()


def kl_of_logits(teacher_BC: Tensor, student_BC: Tensor) -> Tensor:
    """KL of two softmaxes, quick where many logits are EXCLUDED: exp is slow where it underflows."""
    p_BC = F.softmax(teacher_BC, dim=1)
    return dot(p_BC, F.log_softmax(teacher_BC, dim=1) - F.log_softmax(student_BC, dim=1))


def decoupled_kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """Decoupled knowledge distillation: the label against the rest, and the rest among themselves.

    T^2 (alpha KL([p_y, 1-p_y] || [q_y, 1-q_y]) + beta KL(p_(i != y) || q_(i != y))), the second over the
    renormalised other classes, with p, q = softmax(logits / T).

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids.
        temperature: T > 0, one number or one per row.
        alpha: Weight of the label's part (TCKD).
        beta: Weight of the other classes' part (NCKD).

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Zhao, Cui, Song, Qiu, Liang. Decoupled Knowledge Distillation. CVPR 2022, section 3.
    """
    student_BC, teacher_BC = scaled(student_BC, temperature), scaled(teacher_BC, temperature)
    target_B = binary_kl(log_odds(teacher_BC, labels_B), log_odds(student_BC, labels_B))
    others_B = kl_of_logits(without(teacher_BC, labels_B), without(student_BC, labels_B))
    return (alpha * target_B + beta * others_B) * temperature**2


def refined_logit_distillation(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    alpha: float = 1.0,
    beta: float = 8.0,
    same_t: bool = True,
    alpha_temperature: float = 1.0,
    label_in_head_B: Tensor | None = None,
) -> Tensor:
    """Refined logit distillation: keep the teacher's confidence and class relations, drop its mistakes.

    alpha Ta^2 KL([p_max, 1-p_max] || [q_y, 1-q_y]) + beta T^2 KL(p_(i not in M) || q_(i not in M)), with
    M = {i : z_i >= z_y} of the teacher's logits z left out on both sides and the rest renormalised; p_max is the
    teacher's largest probability, at Ta. Where the teacher is right, alone at the top, and Ta = T, this is DKD.
    M = all classes gives 0 in the second term.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids.
        temperature: T > 0 of the second term, one number or one per row.
        alpha: Weight of the first term (sample confidence, SCD).
        beta: Weight of the second term (masked correlation, MCD).
        same_t: Use T in the first term too, as the paper has it (one temperature).
        alpha_temperature: Ta of the first term when same_t is false.
        label_in_head_B: False where the classes above the label are not known exactly (top-k stores): such a row
            abstains from the second term.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Sun et al. Knowledge Distillation with Refined Logits. ICCV 2025, section 3.
    """
    teacher_BC = raised(teacher_BC)
    student_T_BC, teacher_T_BC = scaled(student_BC, temperature), scaled(teacher_BC, temperature)
    left_out_BC = teacher_BC.clone().ge_(teacher_BC.gather(1, labels_B[:, None]))  # 1 on M, else 0
    correlation_B = kl_of_logits(
        torch.add(teacher_T_BC, left_out_BC, alpha=EXCLUDED),
        torch.add(student_T_BC, left_out_BC, alpha=EXCLUDED),
    )
    if label_in_head_B is not None:
        correlation_B = torch.where(label_in_head_B, correlation_B, torch.zeros_like(correlation_B))
    first: Temperature = temperature if same_t else alpha_temperature
    if not same_t:
        student_T_BC, teacher_T_BC = scaled(student_BC, first), scaled(teacher_BC, first)
    confidence_B = binary_kl(top_log_odds(teacher_T_BC), log_odds(student_T_BC, labels_B))
    return alpha * confidence_B * first**2 + beta * correlation_B * temperature**2


def normalized_kd(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    gamma: float = 1.5,
) -> Tensor:
    """Normalised knowledge distillation: soft label entry at T = 1, normalised other classes at T.

    -p_y log q_y - gamma T^2 sum_(i != y) p^_i log q^_i, with p^, q^ the other classes renormalised at T.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids.
        temperature: T > 0 of the second term, one number or one per row.
        gamma: Weight of the second term.

    Returns:
        Loss of each example in nats, shape [B]; it cannot fall below gamma T^2 times the entropy of p^.

    References:
        Yang et al. From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
        Normalized Loss and Customized Soft Labels. ICCV 2023, section 3.2.
    """
    label_p_B = at(log_probs(teacher_BC), labels_B).exp()
    label_B = -label_p_B * at(log_probs(student_BC), labels_B)
    others_B = cross_entropy(
        F.softmax(without(scaled(teacher_BC, temperature), labels_B), dim=1),
        F.log_softmax(without(scaled(student_BC, temperature), labels_B), dim=1),
    )
    return label_B + gamma * others_B * temperature**2


def weighted_soft_labels(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: Temperature = 1.0
) -> Tensor:
    """Weighted soft labels: less weight where the student already does better than the teacher.

    (1 - exp(-CE_student / CE_teacher)) T^2 KL(p || q), the weight at T = 1 and without gradient.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids.
        temperature: T > 0 of the KL, one number or one per row.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Zhou et al. Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective.
        ICLR 2021, section 4.
    """
    student_ce_B = -at(log_probs(student_BC.detach()), labels_B)
    teacher_ce_B = -at(log_probs(teacher_BC), labels_B)
    weight_B = -torch.expm1(-student_ce_B / teacher_ce_B.clamp(min=1e-7))
    return weight_B * kl(log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)) * temperature**2
