"""How much of a target should be the label: the weight of least squares between two students' answers.

A target ``alpha y + (1 - alpha) p`` mixes the label with the teacher. A student of kernel ridge regression is linear
in its targets, so its answers are ``alpha f1 + (1 - alpha) f0``, where f1 was trained on labels alone and f0 on the
teacher alone. The squared error of that line on rows that neither has seen is least at

    alpha* = <y - f0, f1 - f0> / |f1 - f0|^2

Networks are not linear in their targets: there it is an estimate, at the cost of one more student for each fold.

Shapes: N examples, C classes, B batch.

References:
    Borup, Andersen. Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
    Self-Distillation. NeurIPS 2021. (The paper's own closed form was not read; this one was derived from its
    recursion and checked on kernel ridge regression.)
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.answers.side_by_side import side_by_side

Rows = tuple[Tensor, Tensor, Tensor]


def best_label_weight(rows: Iterable[Rows]) -> float:
    """alpha*, within 0 and 1.

    Args:
        rows: Batches of (f1 [B, C], f0 [B, C], labels [B]): probabilities of the student of labels alone and of the
            student of the teacher alone, on rows that neither was trained on.

    Raises:
        ValueError: The two answer alike, so that any weight is as good.
    """
    along = across = 0.0
    for labels_only_BC, teacher_only_BC, labels_B in rows:
        step_BC = labels_only_BC.double() - teacher_only_BC.double()
        truth_BC = F.one_hot(labels_B, step_BC.shape[1]).double()
        along += float(((truth_BC - teacher_only_BC.double()) * step_BC).sum())
        across += float((step_BC**2).sum())
    if not across > 0:
        raise ValueError(
            "the label's share is auto, and there is nothing to choose: students of labels alone and of the teacher"
            " alone answer alike; give a number"
        )
    return min(max(along / across, 0.0), 1.0)


def labelled_rows(labels_only: Answers, teacher_only: Answers, labels_N: Tensor) -> Iterable[Rows]:
    """Batches of two students' stored answers to the first view that have a label."""
    known = torch.nonzero((labels_N >= 0).reshape(len(labels_N), -1).any(dim=1))[:, 0]
    for place_P, logits in side_by_side([labels_only, teacher_only], known):
        labels_P = labels_N.reshape(-1)[place_P]
        labels_only_PC, teacher_only_PC = (logits_PC[labels_P >= 0].softmax(1) for logits_PC in logits)
        yield labels_only_PC, teacher_only_PC, labels_P[labels_P >= 0]
