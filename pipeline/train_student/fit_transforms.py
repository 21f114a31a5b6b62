"""Target transforms that are fitted on the store: to labelled rows, by what a teacher that never saw them says.

Shapes: B batch, C classes, N rows.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.train_student.losses import Objective, Transform

Rows = npt.NDArray[np.int64]

_NUMBERS = 2**23  # of logits that a fit looks at
_DECODE_ROWS = 4096
_LEAST_ROWS = 20


def fit_transforms(objective: Objective, answers: Answers, rows: Rows) -> tuple[Objective, list[str]]:
    """The objective with its transforms fitted, each on what those before it make of the answers to the first view.

    Args:
        objective: With transforms that are to be fitted, or none.
        answers: What the teachers say.
        rows: Those to train on; of many, some are taken that are spread evenly.

    Returns:
        The objective, and for each fit a line with the NLL before and after.

    Raises:
        ValueError: The answers are not out of fold, or too few rows have a label.
    """
    if not any(transform.rule.fit for transform in objective.transforms):
        return objective, []
    name = next(transform.name for transform in objective.transforms if transform.rule.fit)
    if "out_of_fold" not in answers.offers:
        raise ValueError(
            f"target transform {name} is fitted to labels of rows that the teacher has not seen; cache fold teachers"
        )
    logits_NC, labels_N, folds_N = _labelled(answers, rows, name)
    fitted: list[Transform] = []
    said = []
    for transform in objective.transforms:
        if transform.rule.fit is not None:
            tensors, found = transform.rule.fit(logits_NC, labels_N, folds_N, transform.options)
            transform = replace(transform, fitted=tensors, found=found)
            said.append(_told(transform))
        logits_NC = transform(logits_NC, labels_N)
        fitted.append(transform)
    return objective.with_transforms(fitted), said


def _labelled(answers: Answers, rows: Rows, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """Logits in float64, labels and folds of labelled rows that are served."""
    first = answers.parts[0]
    most = max(_NUMBERS // first.encoding.num_classes, _LEAST_ROWS)
    some = torch.from_numpy(rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)])
    found: Sequence[list[Tensor]] = ([], [], [])
    folds_N = first.decoder.folds_N
    assert folds_N is not None
    for rows_B in torch.split(some, _DECODE_ROWS):
        answer = answers.of(rows_B, 0)
        labels_B = first.labels[rows_B]
        folds_B = folds_N[rows_B].repeat_interleave(labels_B.shape[1:].numel())  # of each position
        labels_B = labels_B.flatten()
        served_B = answer.served()
        known_B = labels_B >= 0 if served_B is None else (labels_B >= 0) & served_B
        logits_BC = answer.logits(torch.zeros(len(labels_B), first.encoding.num_classes), 1.0).cpu()
        for part, values in zip(found, (logits_BC.double(), labels_B, folds_B), strict=True):
            part.append(values[known_B])
    logits_NC, labels_N, folds_N = (torch.cat(part) for part in found)
    if len(labels_N) < _LEAST_ROWS or len(torch.unique(folds_N)) < 2:
        raise ValueError(
            f"target transform {name} is fitted to labels, and {len(labels_N)} rows, of {len(torch.unique(folds_N))}"
            f" folds, have one; expected at least {_LEAST_ROWS}, of 2"
        )
    return logits_NC, labels_N, folds_N


def _told(transform: Transform) -> str:
    found = transform.found
    judged = (
        f"{transform.name}: NLL of the labels of {found['fitted_rows']} rows that the teacher had not seen"
        f" {found['nll_before']:.4g} before, {found['nll_after']:.4g} after, fitted to other folds"
    )
    told = [f"{key} = {value:.4g}" for key, value in found.items() if key in ("T", "kept")]
    line = f"{judged} ({', '.join(told)})" if told else judged
    return line + ("; it is no better, leave it out" if found["nll_after"] >= found["nll_before"] else "")
