"""DIST: match the relations inside rows and columns instead of the values. Shapes: B batch, C classes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .numerics import Temperature, probs


class _Correlation(torch.autograd.Function):
    """Pearson correlation along one dimension; its gradient is a combination of the two centred tensors."""

    @staticmethod
    def forward(
        student: Tensor, teacher: Tensor, dim: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        student = student - student.mean(dim, keepdim=True)
        teacher = teacher - teacher.mean(dim, keepdim=True)
        covariance = (student * teacher).sum(dim, keepdim=True)
        student_norm = student.square().sum(dim, keepdim=True).sqrt()
        teacher_norm = teacher.square().sum(dim, keepdim=True).sqrt()
        inverse = 1.0 / (student_norm * teacher_norm + eps)
        rho = covariance * inverse
        # d rho / d student = inverse * teacher - along * student, both centred.
        tiny = torch.finfo(student.dtype).tiny
        along = rho * inverse * teacher_norm / student_norm.clamp(min=tiny)
        return rho.squeeze(dim), student, teacher, inverse, torch.where(student_norm > 0, along, 0.0)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.dim = inputs[2]
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        student, teacher, inverse, along = ctx.saved_tensors
        grad = grads[0].unsqueeze(ctx.dim)
        return torch.addcmul(teacher * (grad * inverse), student, -grad * along), None, None, None


def _correlation(student: Tensor, teacher: Tensor, dim: int, eps: float) -> Tensor:
    rho = _Correlation.apply(student, teacher, dim, eps)[0]  # type: ignore[no-untyped-call]
    assert isinstance(rho, Tensor)
    return rho


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
    it is the constant gamma T^2.

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
    within_B = beta * (1.0 - _correlation(q_BC, p_BC, 1, eps))
    within_classes = gamma * (1.0 - _correlation(q_BC, p_BC, 0, eps).mean())
    return (within_B + within_classes) * temperature**2
