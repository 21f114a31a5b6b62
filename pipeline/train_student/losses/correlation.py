"""DIST: match the relations inside rows and columns instead of the values. Shapes: B batch, C classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import Temperature, probs


def _pearson_distance(student: Tensor, teacher: Tensor, dim: int, eps: float) -> Tensor:
    student = student - student.mean(dim, keepdim=True)
    teacher = teacher - teacher.mean(dim, keepdim=True)
    norms: Tensor = torch.linalg.vector_norm(student, dim=dim) * torch.linalg.vector_norm(teacher, dim=dim)
    return 1.0 - (student * teacher).sum(dim) / (norms + eps)


def correlation_distance(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    beta: float = 1.0,
    gamma: float = 1.0,
    eps: float = 1e-8,
) -> Tensor:
    """DIST: Pearson correlation of probabilities within each example and within each class.

    T^2 [beta (1 - rho(p_b, q_b)) + gamma (1 - mean_c rho(p_.c, q_.c))], with p, q = softmax(logits / T) and rho
    Pearson's correlation. The second term is one number of the whole batch, added to every row; at batch size 1
    it is the constant gamma.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row.
        beta: Weight of the correlation within examples.
        gamma: Weight of the correlation within classes.
        eps: Added to the product of the norms, as in the authors' code: it mutes classes that nobody predicts.

    Returns:
        Loss of each example, shape [B].

    References:
        Huang, You, Wang, Qian, Xu. Knowledge Distillation from A Stronger Teacher. NeurIPS 2022, section 4.
    """
    p_BC, q_BC = probs(teacher_BC, temperature), probs(student_BC, temperature)
    within_B = beta * _pearson_distance(q_BC, p_BC, 1, eps)
    return (within_B + gamma * _pearson_distance(q_BC, p_BC, 0, eps).mean()) * temperature**2
