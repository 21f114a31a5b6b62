"""What it costs to move a student's probabilities to where the teacher has them, over classes that are near or far.

Shapes: B batch, C classes, K features of the teacher, F folds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from .features import stored_of
from .kinds import Material

_TINY = 1e-8  # as in the authors' code, of costs and of what is divided by


class ClassDistance(nn.Module):
    """How far classes are from each other: 1 - the cosine of their weights in the teacher's head.

    Of several fold teachers it is the mean. Without a head, classes are the means of their examples' features, less the
    mean of all.

    Args:
        material: Holds the store's features.
        options: Unused.
    """

    def __init__(self, material: Material, **options: Any) -> None:
        super().__init__()
        stored, folds = stored_of(material), []
        for fold in range(stored.num_folds):
            if stored.head_FCK is not None:
                vectors_CK = stored.head_FCK[fold]
            elif not len(stored.of_fold(fold)):
                continue  # it is left out
            else:
                vectors_CK = _means(stored.of_fold(fold), stored.class_N[stored.fold_N == fold], material.num_classes)
            unit_CK = normalize(vectors_CK.double(), dim=1)
            folds.append(1 - unit_CK @ unit_CK.T)
        self.register_buffer("cost_CC", torch.stack(folds).mean(dim=0).clamp(min=0).float())
        self.cost_CC: Tensor


def wasserstein_distance(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    module: ClassDistance,
    temperature: float = 2.0,
    transport: float = 30.0,
    sharpen: float = 1.0,
    blur: float = 0.05,
) -> Tensor:
    """-p_y log q_y at T = 1, and transport times the cost of moving q to p over the classes beside the label.

    These are softmax at T without the label. A unit of probability costs 1 - exp(-sharpen d) from class to class, d
    their distance; the plan is that of ten steps of Sinkhorn's algorithm at the given blur.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Class ids.
        module: Has the distances of classes.
        temperature: Of the classes beside the label.
        transport: Weight of the cost.
        sharpen: Brings out differences of near classes.
        blur: Entropic regularisation; a small one comes nearer to the exact distance, and converges later.

    Returns:
        Loss of each row, shape [B].

    References:
        Lv, Yang, Li. Wasserstein Distance Rivals Kullback-Leibler Divergence for Knowledge Distillation. NeurIPS 2024,
        WKD-L with separation.
    """
    of_label_B1 = labels_B[:, None]
    log_q_B = student_BC.log_softmax(dim=1).gather(1, of_label_B1)[:, 0]
    p_B = teacher_BC.softmax(dim=1).gather(1, of_label_B1)[:, 0]
    is_label_BC = torch.zeros_like(student_BC, dtype=torch.bool).scatter(1, of_label_B1, True)
    q_BC, p_BC = (
        (logits_BC / temperature).masked_fill(is_label_BC, -torch.inf).softmax(dim=1)
        for logits_BC in (student_BC, teacher_BC)
    )
    cost_CC = (1 - torch.exp(-sharpen * module.cost_CC.to(student_BC))) + _TINY
    kernel_CC = torch.exp(-cost_CC / blur)
    first_BC = (~is_label_BC).to(student_BC) / (student_BC.shape[1] - 1)
    left_BC = first_BC
    for _ in range(10):
        right_BC = p_BC / (left_BC @ kernel_CC + _TINY)
        left_BC = q_BC / (right_BC @ kernel_CC.T + _TINY)
    moved_B = (left_BC * (right_BC @ (kernel_CC * cost_CC).T)).sum(dim=1)
    return -p_B * log_q_B + transport * moved_B


def _means(values_NK: Tensor, class_N: Tensor, num_classes: int) -> Tensor:
    """Of each class; 0, which is as far from all, for one without examples."""
    sums_CK = values_NK.new_zeros(num_classes, values_NK.shape[1]).index_add(0, class_N, values_NK)
    counts_C1 = torch.bincount(class_N, minlength=num_classes).clamp(min=1)[:, None]
    seen_C1 = torch.bincount(class_N, minlength=num_classes)[:, None] > 0
    means_CK: Tensor = torch.where(seen_C1, sums_CK / counts_C1 - values_NK.mean(dim=0), 0.0)
    return means_CK
