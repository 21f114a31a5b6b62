"""How many training rows each class has, for row weights that go by it. Shapes: N rows, C classes."""

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
    unlabelled = rows[labels_N < 0]
    if not objective.uses_teacher or not len(unlabelled):
        return counts_C.tolist(), []
    heard = unlabelled[answers.served(0)[unlabelled]]
    for part in torch.split(torch.from_numpy(heard), _DECODE_ROWS):
        flat_BC = torch.zeros(len(part), split.num_classes)
        best_B = answers.logits(part, 0, student_BC=flat_BC).argmax(1).cpu()
        counts_C = counts_C + np.bincount(best_B.numpy(), minlength=split.num_classes)
    said = f"{len(heard)} of {len(rows)} training rows have no label, and weigh as the class that the teacher says"
    return counts_C.tolist(), [said] if len(heard) else []
