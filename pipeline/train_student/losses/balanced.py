"""Forward and reverse KL together, weighed row by row. Shapes: B batch, C classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import Temperature, kl, log_probs


def adaptive_kl(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    head: float = 0.5,
) -> Tensor:
    """Adaptive KL: forward KL as far as the teacher's head is missed, reverse KL as far as its tail is.

    T^2 [h KL(p || q) + t KL(q || p)] / (h + t), with p, q = softmax(logits / T). h and t are sum_c |p_c - q_c| over the
    head and the rest of the classes, without gradient. The head are the teacher's best classes while their
    probabilities add up to at most ``head``, and its best class always.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        head: Mass of the head.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Wu, Tao, Wang, Zhao, Wong. Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language
        Models. COLING 2025, section 4, and the authors' code.
    """
    log_p_BC, log_q_BC = log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)
    sorted_BC, order_BC = log_p_BC.exp().sort(dim=1, descending=True)
    missed_BC = (sorted_BC - log_q_BC.detach().exp().gather(1, order_BC)).abs()
    within_BC = sorted_BC.cumsum(1) <= head
    within_BC = torch.cat([torch.ones_like(within_BC[:, :1]), within_BC[:, 1:]], dim=1)
    missed_B, missed_head_B = missed_BC.sum(1), (missed_BC * within_BC).sum(1)
    forward_B = torch.where(missed_B > 0.0, missed_head_B / missed_B.clamp(min=1e-30), 0.5)
    rows_B = torch.lerp(kl(log_q_BC, log_p_BC), kl(log_p_BC, log_q_BC), forward_B)
    return rows_B * temperature**2
