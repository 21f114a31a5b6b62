"""How many training rows each class has, for row weights that go by it. Shapes: N rows, C classes."""

import math

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.train_student.losses import Objective

Rows = npt.NDArray[np.int64]
_DECODE_ROWS = 4096


def count_classes(objective: Objective, split: Split, rows: Rows, answers: Answers) -> tuple[list[int], list[str]]:
    """Rows of each class, by their labels; without a label, by the best class of the teacher's answer to view 0.

    Args:
        objective: Where it does not follow the teacher, rows without a label have no part in it.
        split: The examples.
        rows: Those that are trained on.
        answers: What the teachers say.

    Returns:
        C counts, and warnings.
    """
    labels_N = split.labels[rows]
    counts_C = np.bincount(labels_N[labels_N >= 0], minlength=split.num_classes)
    unlabelled = rows[(labels_N < 0).reshape(len(rows), -1).any(axis=1)]
    if not objective.uses_teacher or not len(unlabelled):
        return counts_C.tolist(), []
    answered = unlabelled[answers.served(0)[unlabelled]]
    for part in torch.split(torch.from_numpy(answered), max(1, _DECODE_ROWS // (split.positions or 1))):
        answer = answers.of(part, 0)
        best_B = answer.logits(torch.zeros(math.prod(answer.shape), split.num_classes), 1.0).argmax(1).cpu().numpy()
        served_B = answer.served()
        counted_B = split.labels[part.numpy()].reshape(-1) < 0
        counted_B &= True if served_B is None else served_B.numpy()
        counts_C = counts_C + np.bincount(best_B[counted_B], minlength=split.num_classes)
    where = "" if split.positions is None else " at some positions"
    said = f"{len(answered)} of {len(rows)} training rows have no label{where}, and weigh as their teacher's best class"
    return counts_C.tolist(), [said] if len(answered) else []
