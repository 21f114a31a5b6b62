"""Losses of an order: the teacher says which classes come first, not by how much.

Shapes: B batch, C classes, K ranked classes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .numerics import EXCLUDED, raised

RANKED = 10


def list_mle(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
    """ListMLE: how likely the student draws its own ten best classes in the order that the teacher has them in.

    -sum_i log(e^s_i / sum_(j >= i) e^s_j), over the student's K = min(10, C) largest logits, i in the teacher's order
    of these classes from the best down; ties of the teacher stay in the student's order. The least value is where the
    student has them in the same order, far apart.

    Args:
        student_BC: Student logits; which classes are ranked has no gradient.
        teacher_BC: Teacher logits, dense and finite.
        labels_B: Unused.

    Returns:
        Loss of each example in nats, shape [B].

    References:
        Xia, Liu, Wang, Zhang, Li. Listwise Approach to Learning to Rank: Theory and Algorithm. ICML 2008, section 4.3.
        As the rank term of TSD-KD, whose code (kmswin1/TSD-KD) adds over j <= i and so rewards the opposite order; the
        sum here is ListMLE's own.
    """
    student_BC = raised(student_BC)
    best_BK = student_BC.detach().topk(min(RANKED, student_BC.shape[1]), dim=1).indices
    order_BK = raised(teacher_BC).gather(1, best_BK).argsort(dim=1, descending=True, stable=True)
    ranked_BK = student_BC.gather(1, best_BK.gather(1, order_BK))
    num_ranked = ranked_BK.shape[1]
    behind_KK = torch.ones(num_ranked, num_ranked, dtype=torch.bool, device=ranked_BK.device).tril(-1)
    left_BKK = ranked_BK[:, None, :].masked_fill(behind_KK, EXCLUDED)
    return (left_BKK.logsumexp(2) - ranked_BK).sum(1)
