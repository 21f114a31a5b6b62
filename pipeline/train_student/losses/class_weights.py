"""Class weights: rows of rare classes count more. Counts are those of all training rows, not of a batch.

A row is of the class of its label, or, without one, of the class that its teacher says. Shapes: B batch, C classes.
"""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_frequency(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, class_counts_C: Tensor, class_power: float = 1.0
) -> Tensor:
    """Each class counts as much as any other.

    w_c = n_c^-power, scaled to mean 1 over the training rows; at power 1 N / (C n_c), C the classes that occur.

    Args:
        student_BC: Unused.
        teacher_BC: Teacher logits, of which the best class stands for a label that is not there.
        labels_B: Class ids, -1 unlabelled.
        class_counts_C: Training rows of each class.
        class_power: 1 balances the classes, 0.5 goes half of the way on a logarithmic scale.

    Returns:
        Weight of each row, shape [B].

    References:
        King, Zeng. Logistic Regression in Rare Events Data. Political Analysis 9, 2001, section 4.2 (power 1;
        scikit-learn's class_weight="balanced").
    """
    return _of_rows(class_counts_C.clamp(min=1).pow(-class_power), class_counts_C, teacher_BC, labels_B)


def effective_number(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, class_counts_C: Tensor, class_beta: float = 0.999
) -> Tensor:
    """Inverse frequency that levels off: the more rows a class has, the less a further one adds.

    w_c = (1 - beta) / (1 - beta^n_c), scaled to mean 1 over the training rows.

    Args:
        student_BC: Unused.
        teacher_BC: Teacher logits, of which the best class stands for a label that is not there.
        labels_B: Class ids, -1 unlabelled.
        class_counts_C: Training rows of each class.
        class_beta: beta -> 1 is inverse frequency, beta -> 0 no weight; classes beyond 1 / (1 - beta) rows are alike.

    Returns:
        Weight of each row, shape [B].

    References:
        Cui, Jia, Lin, Song, Belongie. Class-Balanced Loss Based on Effective Number of Samples. CVPR 2019, section 4.
    """
    beta_C = torch.full_like(class_counts_C, class_beta)
    return _of_rows(
        (1.0 - class_beta) / (1.0 - beta_C.pow(class_counts_C.clamp(min=1))), class_counts_C, teacher_BC, labels_B
    )


def _of_rows(weight_C: Tensor, class_counts_C: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
    mean = (weight_C * class_counts_C).sum() / class_counts_C.sum().clamp(min=1)
    class_B = torch.where(labels_B >= 0, labels_B, teacher_BC.argmax(1))
    return (weight_C / mean)[class_B].to(teacher_BC.dtype)
