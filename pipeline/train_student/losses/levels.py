"""Relations inside a batch: between its rows, and between the classes. Shapes: B batch, C classes."""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import Temperature, kl, log_probs


def multi_level_alignment(
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    *,
    temperature: Temperature = 1.0,
    instance: float = 1.0,
    batch: float = 1.0,
    classes: float = 1.0,
) -> Tensor:
    """Alignment of each row, of the rows to one another, and of the classes to one another.

    instance T^2 KL(p || q) + batch sum_j (p . p_j - q . q_j)^2 + classes 1/C |P'P - Q'Q|^2, with p, q = softmax(logits
    / T) of the row, P, Q [B, C] those of the batch, j its rows and |.| the Frobenius norm. The last is of the whole
    batch and stands in every row, so that the mean over the rows is that of the paper. Neither Gram matrix of the
    classes is made: with D = P - Q and S = P + Q both terms follow from DD', SS' and SD', which are [B, B] and, unlike
    the difference of two norms, exactly 0 at D = 0.

    Args:
        student_BC: Student logits.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        temperature: T > 0, one number or one per row. The paper sums over several: name the loss once for each.
        instance: Weight of the row's own KL.
        batch: Weight of the relations between rows.
        classes: Weight of the relations between classes.

    Returns:
        Loss of each example, shape [B]; with batch or classes it depends on the other rows.

    References:
        Jin, Wang, Lin. Multi-Level Logit Distillation. CVPR 2023, section 3, and the authors' code.
    """
    log_p_BC, log_q_BC = log_probs(teacher_BC, temperature), log_probs(student_BC, temperature)
    difference_BC, sum_BC = log_p_BC.exp() - log_q_BC.exp(), log_p_BC.exp() + log_q_BC.exp()
    cross_BB = sum_BC @ difference_BC.T
    rows_B = instance * kl(log_p_BC, log_q_BC) * temperature**2
    rows_B = rows_B + batch * 0.25 * (cross_BB + cross_BB.T).square().sum(1)
    if classes == 0.0:
        return rows_B
    products_BB = (difference_BC @ difference_BC.T) * (sum_BC @ sum_BC.T) + cross_BB * cross_BB.T
    return rows_B + classes * 0.5 * torch.sum(products_BB) / student_BC.shape[1]
