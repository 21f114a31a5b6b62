"""Losses of many rows, some at a time: what a chunk needs beside the student's logits never exists for all rows.

Shapes: P rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Ask = Callable[[Tensor, slice], Tensor]


def in_chunks(ask: Ask, student_PC: Tensor, num_rows: int) -> Tensor:
    """What ``ask`` says of the rows, float [P], and its gradient, where a row's loss depends on that row alone.

    Both are computed chunk by chunk in the forward pass: the gradient with respect to the student's logits is held
    until the backward pass, which there is one of.

    Args:
        ask: From the student's logits of some rows, and where they stand, to their losses.
        student_PC: All of the student's logits.
        num_rows: Of a chunk.
    """
    return _InChunks.apply(student_PC, ask, num_rows)  # type: ignore[no-any-return,no-untyped-call]


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student_PC: Tensor, ask: Ask, num_rows: int) -> Tensor:
        ctx.needed = student_PC.requires_grad
        # halves would lose small gradients before they are scaled
        kind = torch.float32 if student_PC.dtype == torch.float16 else student_PC.dtype
        gradient_PC = torch.empty(student_PC.shape if ctx.needed else (0,), dtype=kind, device=student_PC.device)
        losses = []
        for start in range(0, len(student_PC), num_rows):
            some = slice(start, start + num_rows)
            part = student_PC[some].detach()
            if not ctx.needed:
                losses.append(ask(part, some))
                continue
            with torch.enable_grad():
                part = part.to(kind).requires_grad_()
                loss = ask(part, some)
                (gradient_PC[some],) = torch.autograd.grad(loss.sum(), part)
            losses.append(loss.detach())
        ctx.save_for_backward(gradient_PC)
        ctx.kind = student_PC.dtype
        return torch.cat(losses)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_P: Tensor) -> tuple[Tensor, None, None]:
        (gradient_PC,) = ctx.saved_tensors
        return gradient_PC.mul_(grad_P[:, None]).to(ctx.kind), None, None
