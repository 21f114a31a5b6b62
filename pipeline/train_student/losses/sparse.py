"""Losses of a teacher's sparse form: its logits of all classes never exist, and its tail exists some classes at a time.

The student's logits are gone through twice, some classes that fit into a cache after others: once for the sums, once
for the gradient. A tail of one level costs nothing there.

Shapes: B batch, C classes, J classes that the teacher says one by one, c some classes that follow each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .context import SparseTarget
from .numerics import dot, raised

_BLOCK = 1024  # classes of a block of a few hundred rows that a cache holds
_FINE = 2.0  # above it sums of both are so alike that their difference is summed as well


def sparse_kl_divergence(student_BC: Tensor, target: SparseTarget, *, temperature: float = 1.0) -> Tensor:
    """`kl_divergence` to a teacher in its sparse form: the same numbers and gradients.

    Args:
        student_BC: Student logits.
        target: The teacher's, on the same device.
        temperature: T > 0.

    Returns:
        Loss of each example in nats, shape [B].
    """
    return _rows(student_BC, target, temperature, with_entropy=False)


def sparse_soft_cross_entropy(student_BC: Tensor, target: SparseTarget, *, temperature: float = 1.0) -> Tensor:
    """`soft_cross_entropy` with a teacher in its sparse form: arguments and return as for the KL."""
    return _rows(student_BC, target, temperature, with_entropy=True)


def _rows(student_BC: Tensor, target: SparseTarget, temperature: float, *, with_entropy: bool) -> Tensor:
    rows_B = _SparseKL.apply(raised(student_BC), target, temperature, with_entropy)  # type: ignore[no-untyped-call]
    assert isinstance(rows_B, Tensor)
    return rows_B


class _SparseKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_BC: Tensor, target: SparseTarget, temperature: float, with_entropy: bool) -> Tensor:
        """KL, or KL plus the teacher's entropy, which has no gradient."""
        student = _Student(student_BC, temperature, target)
        if target.level_B1 is not None:
            loss_B1, prob = _one_level(student, target, target.level_B1, with_entropy)
        else:
            loss_B1, prob = _predicted(student, target, with_entropy, keep=ctx.needs_input_grad[0])
        ctx.temperature, ctx.index_BJ, ctx.all_alike = temperature, target.index_BJ, target.level_B1 is not None
        ctx.save_for_backward(student_BC, student.best_B1, student.sum_B1, student.said_BJ, *prob)
        return loss_B1[:, 0] * temperature**2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor, None, None, None]:
        """T (q - p) times what comes from above."""
        student_BC, best_B1, sum_B1, said_BJ, prob, last = ctx.saved_tensors
        grad_B1 = ctx.temperature * grad_B[:, None]
        student_B1, gradient_BC = grad_B1 / sum_B1, torch.empty_like(student_BC)
        for own, block_Bc in _blocks(student_BC, best_B1, ctx.temperature):
            if ctx.all_alike:
                torch.sub(block_Bc.exp_().mul_(student_B1), prob * grad_B1, out=gradient_BC[:, own])
            else:
                torch.mul(prob[:, own], -grad_B1 / last, out=gradient_BC[:, own])
                gradient_BC[:, own].addcmul_(block_Bc.exp_(), student_B1)
        if ctx.all_alike:
            gradient_BC.scatter_(1, ctx.index_BJ, (said_BJ.exp() / sum_B1 - last) * grad_B1)
        return gradient_BC, None, None, None


def _blocks(logits_BC: Tensor, less_B1: Tensor, temperature: float) -> Iterator[tuple[slice, Tensor]]:
    """Some classes after others, and their (logits - less) / T, float [B, c], which may be overwritten."""
    num_rows, num_classes = logits_BC.shape
    width = min(_BLOCK, num_classes) if logits_BC.device.type == "cpu" else num_classes
    room = logits_BC.new_empty(num_rows * width)
    for start in range(0, num_classes, width):
        own = slice(start, min(start + width, num_classes))
        block_Bc = room[: num_rows * (own.stop - start)].view(num_rows, -1)
        torch.sub(logits_BC[:, own], less_B1, out=block_Bc)
        yield own, block_Bc if temperature == 1.0 else block_Bc.mul_(1.0 / temperature)


class _Student:
    """Logits less the best of the row and over T, in blocks, and sums of their exponentials."""

    def __init__(self, logits_BC: Tensor, temperature: float, target: SparseTarget) -> None:
        self.logits_BC, self.temperature = logits_BC, temperature
        self.best_B1 = logits_BC.amax(1, keepdim=True)
        self.said_BJ = (logits_BC.gather(1, target.index_BJ) - self.best_B1) / temperature
        self.sum_B1, self._beyond_B1 = torch.zeros_like(self.best_B1), torch.zeros_like(self.best_B1)

    def blocks(self) -> Iterator[tuple[slice, Tensor]]:
        """Some classes after others, and what is said of them, float [B, c], which may be overwritten."""
        return _blocks(self.logits_BC, self.best_B1, self.temperature)

    def add(self, block_Bc: Tensor, teacher_Bc: Tensor | float) -> None:
        """Adds the exponentials of a block, which is overwritten, and what they are beyond those of the teacher."""
        self.sum_B1 += block_Bc.exp_().sum(1, keepdim=True)
        if self.temperature > _FINE:
            self._beyond_B1 += block_Bc.sub_(teacher_Bc).sum(1, keepdim=True)

    def log_ratio_B1(self, teacher_B1: Tensor, beyond_B1: Tensor) -> Tensor:
        """Log of their sum over the teacher's; ``beyond_B1``: what the teacher's are beyond those given to ``add``."""
        log_ratio_B1 = self.sum_B1.log() - teacher_B1.log()
        if self.temperature <= _FINE:
            return log_ratio_B1
        share_B1, own_B1 = beyond_B1 / teacher_B1, self._beyond_B1 / teacher_B1
        near_B1 = (share_B1.abs() < 0.4) & (own_B1.abs() < 0.4)
        return torch.where(near_B1, (own_B1 - share_B1).clamp(min=-0.9).log1p(), log_ratio_B1)


def _teacher_said(student: _Student, target: SparseTarget) -> tuple[Tensor, Tensor]:
    """Logits of the classes said one by one, less the best and over T, and the best; no class is above it."""
    said_BJ = target.logits_BJ.to(student.logits_BC.dtype)
    best_B1 = said_BJ.amax(1, keepdim=True)
    return (said_BJ - best_B1) / student.temperature, best_B1


def _one_level(
    student: _Student, target: SparseTarget, level_B1: Tensor, with_entropy: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The loss over T^2, and the probability of every other class [B, 1] and of those said one by one [B, J]."""
    said_BJ, best_B1 = _teacher_said(student, target)
    level_B1 = (level_B1.to(said_BJ) - best_B1) / student.temperature
    total_B1 = torch.zeros_like(best_B1)
    for _, block_Bc in student.blocks():
        total_B1 += block_Bc.sum(1, keepdim=True)
        student.add(block_Bc, 1.0)
    new_BJ = target.new_BJ.to(said_BJ)
    others_B1 = student.logits_BC.shape[1] - new_BJ.sum(1, keepdim=True)
    prob_BJ, prob_B1 = said_BJ.exp(), level_B1.exp()
    sum_B1 = dot(prob_BJ, new_BJ)[:, None] + others_B1 * prob_B1
    beyond_B1 = dot(said_BJ.expm1(), new_BJ)[:, None] + others_B1 * level_B1.expm1()
    prob_BJ, prob_B1 = prob_BJ / sum_B1, prob_B1 / sum_B1
    others_total_B1 = others_B1 * level_B1 - (total_B1 - dot(student.said_BJ, new_BJ)[:, None])
    loss_B1 = dot(prob_BJ * new_BJ, said_BJ - student.said_BJ)[:, None] + prob_B1 * others_total_B1
    loss_B1 = loss_B1 + student.log_ratio_B1(sum_B1, beyond_B1)
    if with_entropy:
        mean_B1 = dot(prob_BJ * new_BJ, said_BJ)[:, None] + others_B1 * prob_B1 * level_B1
        loss_B1 = loss_B1 + sum_B1.log() - mean_B1
    return loss_B1, (prob_B1, prob_BJ)


def _predicted(
    student: _Student, target: SparseTarget, with_entropy: bool, *, keep: bool
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """The loss over T^2, and numbers in proportion to probabilities, [B, C] if they are kept, with their sum [B, 1]."""
    said_BJ, best_B1 = _teacher_said(student, target)
    places = _Places(target.index_BJ, said_BJ)
    kept_BC = torch.empty_like(student.logits_BC) if keep else student.logits_BC[:, :0]
    sum_B1, loss_B1, mean_B1 = (torch.zeros_like(best_B1) for _ in range(3))
    for own, block_Bc in student.blocks():
        tail_Bc = target.tail(own, torch.empty(block_Bc.shape, device=block_Bc.device)).to(block_Bc.dtype)
        tail_Bc.sub_(best_B1).mul_(1.0 / student.temperature)
        places.write(tail_Bc, own)
        prob_Bc = torch.exp(tail_Bc, out=kept_BC[:, own]) if keep else tail_Bc.exp()
        sum_B1 += prob_Bc.sum(1, keepdim=True)
        if with_entropy:
            mean_B1 += dot(prob_Bc, tail_Bc)[:, None]
        loss_B1 += dot(prob_Bc, tail_Bc.sub_(block_Bc))[:, None]
        student.add(block_Bc, prob_Bc)
    loss_B1 = loss_B1 / sum_B1 + student.log_ratio_B1(sum_B1, torch.zeros_like(sum_B1))
    return loss_B1 + (sum_B1.log() - mean_B1 / sum_B1 if with_entropy else 0.0), (kept_BC, sum_B1)


class _Places:
    """What a row says one by one, in the order of the classes: of some that follow each other it is one piece."""

    def __init__(self, index_BJ: Tensor, values_BJ: Tensor) -> None:
        self._class_N, order_N = index_BJ.flatten().sort()
        self._row_N, self._values_N = order_N // index_BJ.shape[1], values_BJ.flatten()[order_N]

    def write(self, block_Bc: Tensor, own: slice) -> None:
        """Puts them where they are in a block."""
        ends = torch.tensor([own.start, own.stop], device=self._class_N.device)
        first, last = torch.searchsorted(self._class_N, ends).tolist()
        place = self._row_N[first:last], self._class_N[first:last] - own.start
        block_Bc[place] = self._values_N[first:last]
