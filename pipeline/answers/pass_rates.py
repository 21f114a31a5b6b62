"""How often teachers are right about a row, over all their views: what PACED calls a pass rate.

Shapes: N examples, L positions.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.answers.teacher_rows import encoding_of
from logitbank.stores import Teacher


def pass_rates(answers: Answers) -> Tensor:
    """Share of the views of all teachers whose best class is the label.

    Only the array that says the best class is read, of every view.

    Returns:
        float32 [N], or [N, L]; nan where there is no label, or no view has an answer.
    """
    labels_N = answers.parts[0].labels.numpy()
    right_N, count_N = np.zeros(labels_N.shape, np.float32), np.zeros(labels_N.shape, np.float32)
    for part in answers.parts:
        for view in range(answers.num_views):
            best_N = _best_classes(part.teacher, view)
            right_N += best_N == labels_N
            count_N += best_N >= 0
    known_N = (labels_N >= 0) & (count_N > 0)
    return torch.from_numpy(np.where(known_N, right_N / np.maximum(count_N, 1), np.nan).astype(np.float32))


def _best_classes(teacher: Teacher, view: int) -> npt.NDArray[np.int64]:
    """Of each answer of a view; -1 where there is none."""
    encoding = encoding_of(teacher)
    names = [encoding.best_array, *({"mask"} & set(teacher.arrays))]
    found = []
    for block in range(teacher.num_blocks):
        arrays = teacher.answers(view, block, names)
        values = arrays[encoding.best_array]
        best_B = encoding.best_class(values.reshape(-1, values.shape[-1])).reshape(values.shape[:-1])
        found.append(np.where(arrays["mask"], best_B, -1) if "mask" in arrays else best_B)
    return np.concatenate(found)
