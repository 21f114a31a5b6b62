"""What a user should know of the classes that a store only predicts, before training at a temperature.

Shapes: B rows, C classes.
"""

import math

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.answers.guessed_labels import heads_alone
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.answers.stored import StoredAnswers

_BLOCKS, _SAMPLE, _SHARE = 4, 2000, 0.01


def tail_warnings(answers: Answers, temperature: float) -> list[str]:
    """A line for each teacher of which, at this temperature, some rows have most of their mass in predicted classes."""
    lines = []
    for part in answers.parts:
        share = _mostly_predicted(part, temperature)
        if share >= _SHARE:
            who = f"teacher {part.teacher.name!r}: " if len(answers.parts) > 1 else ""
            what = "rows" if part.teacher.positions is None else "positions"
            lines.append(
                f"{who}at temperature {temperature:g}, {share:.0%} of the {what} have most of their mass outside the"
                f" stored top {part.encoding.top_k}; {_loss(part, temperature)}; {_remedy(part, temperature)} would be"
                " closer to the teacher"
            )
    return lines


def _mostly_predicted(part: StoredAnswers, temperature: float) -> float:
    """Share of some rows of the first view that have most of their mass outside what is stored."""
    if part.encoding.every_class:
        return 0.0
    rows_B = _some_rows(part)
    rows_B = rows_B[torch.from_numpy(part.served(0))[rows_B]]
    if not len(rows_B):
        return 0.0
    answer = part.of(rows_B, 0)
    flat_BC = torch.zeros((math.prod(answer.shape), part.encoding.num_classes), device=part.device)
    prob_BC = torch.softmax(answer.decoded(flat_BC, temperature) / temperature, dim=-1)
    head_B = prob_BC[answer.stored_BC()].reshape(len(flat_BC), -1).sum(dim=-1)
    served_B = answer.served()
    return float((head_B if served_B is None else head_B[served_B.to(head_B.device)]).lt(0.5).float().mean())


def _some_rows(part: StoredAnswers) -> Tensor:
    """Rows from a few blocks all over the view, the same however much memory there is, int64 [B]."""
    teacher = part.teacher
    blocks = np.unique(np.linspace(0, teacher.num_blocks - 1, _BLOCKS).round().astype(int)).tolist()
    rows_B = torch.cat([torch.arange(teacher.rows(block).start, teacher.rows(block).stop) for block in blocks])
    return rows_B[:: max(1, len(rows_B) * (teacher.positions or 1) // _SAMPLE)]


def _loss(part: StoredAnswers, temperature: float) -> str:
    """What the tail rule in use loses at a temperature, as far as it was measured."""
    if part.tail == "renormalise":
        return "its tail rule 'renormalise' calls them impossible (KL infinite)"
    if part.tail == "bucket":
        return "its tail rule 'bucket' takes the student's word for them, and has no KL of its own"
    if heads_alone(part.teacher.identity):
        return "its teacher's word on them was never saved, and they share that mass evenly"
    uniform = part.tail == "uniform" and "tail_matrix" in part.teacher.constant_names
    found = part.teacher.fidelity.get(f"uniform_{temperature:g}" if uniform else f"{temperature:g}")
    if not isinstance(found, int | float):
        return f"KL T^2 of the tail rule {part.tail!r} was not measured at this temperature"
    return f"measured KL T^2 of the tail rule {part.tail!r} is {found:.2g}"


def _remedy(part: StoredAnswers, temperature: float) -> str:
    """What helps; an encoding does not, where only the best classes were ever saved."""
    if not heads_alone(part.teacher.identity):
        return "a lower temperature, topk+tail or dense"
    return ("--set temperature=1, " if temperature > 1 else "") + "more classes a row or the teacher's own logits"
