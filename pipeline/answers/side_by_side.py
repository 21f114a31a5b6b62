"""What several say of the same rows, where all of them answer.

Shapes: N examples, B batch, P common answers of a batch, C classes.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from logitbank.pipeline.answers.interface import Answers

_BATCH = 4096


def side_by_side(several: Sequence[Answers], rows: Tensor) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """The answers to the first view of some rows that all give, a batch at a time.

    Args:
        several: Of stores of one data set.
        rows: Row numbers, int64 [N].

    Yields:
        Which of all answers, int64 [P]: the row, or row times L plus position where examples are answered at L. And the
        logits [P, C] of each.
    """
    length = math.prod(several[0].parts[0].labels.shape[1:])
    for answers in several:
        rows = rows[torch.from_numpy(answers.served(0))[rows]]
    for rows_B in torch.split(rows, max(1, _BATCH // length)):
        place_P = (rows_B[:, None] * length + torch.arange(length)).reshape(-1)
        common_P = torch.ones(len(place_P), dtype=torch.bool)
        for answers in several:
            served_P = answers.of(rows_B, 0).served()
            common_P &= True if served_P is None else served_P
        logits = [answers.logits(rows_B, 0).flatten(0, -2) for answers in several]
        yield place_P[common_P], [logits_PC[common_P.to(logits_PC.device)] for logits_PC in logits]
