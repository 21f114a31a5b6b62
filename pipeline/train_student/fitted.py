"""A student without gradients: one that scikit-learn fits, in one go, to what the loss makes of the answers.

Shapes: N rows, of all views, D features, C classes.
"""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.limits import check_fits
from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.fit.estimators import read_estimator
from logitbank.pipeline.fit.trees import check_estimator, fit_trees
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.models.trees import TreeEnsemble
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.losses import Objective, Step, check_fitted, fitted_targets
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views

if TYPE_CHECKING:
    from logitbank.pipeline.train_student.plan import Plan

Rows = npt.NDArray[np.int64]
_SHOWN_ROWS = 4096
_FIRST = Step(step=0, steps_per_epoch=1, num_epochs=1)


def check_student(run: Run, objective: Objective, split: Split, views: Views, processes: Processes) -> None:
    """Refuses, before anything is made, what cannot be fitted so.

    Raises:
        ValueError: Options that scikit-learn does not take, a loss that has no target, a tail that follows the student,
            several processes, or more inputs than fit into memory.
    """
    check_estimator(run.student)
    split.refuse_positions(run.student)
    check_fitted(objective, read_estimator(run.student)[1].fits, run.student)
    if run.tail == "bucket":
        raise ValueError(
            f"--tail bucket follows a student while it learns, and {run.student} has no steps; leave it out"
        )
    if views.label_map:
        raise ValueError(f"{run.student} is fitted once, and a label map serves new crops each epoch; take a network")
    if processes.count > 1:
        raise ValueError(f"{run.student} is fitted by one process; run it without torchrun, with --threads")
    numbers = int(np.prod(split.input_shape)) + 2 * split.num_classes
    check_fits(f"{run.student} on {split.spec}", 4 * len(split) * views.num_views * numbers)


def fit_student(
    plan: "Plan",
    objective: Objective,
    seed: int,
    rows: Rows,
    *,
    measured: bool,
    on_epoch: Callable[[EpochRecord], None] | None,
) -> tuple[TreeEnsemble, list[EpochRecord]]:
    """Fits the student to the answers to some rows, every view of them, and tells of it as of one epoch.

    Args:
        plan: Of the run.
        objective: With every option bound.
        seed: Of what the estimator draws.
        rows: Those that it is fitted to.
        measured: Measure it on the validation rows.
        on_epoch: Told the record.
    """
    started, run, split = time.perf_counter(), plan.run, plan.inputs.split
    fits = read_estimator(run.student)[1].fits
    labels_N, rows_N = torch.from_numpy(split.labels[rows]), torch.from_numpy(rows)
    of_views = [
        fitted_targets(objective, plan.answers.of(rows_N, view), labels_N, split.num_classes, fits)
        for view in range(plan.views.num_views)
    ]
    features_ND = [show(split, rows, plan.views, view, plan.scaling) for view in range(plan.views.num_views)]
    model = fit_trees(
        run.student,
        np.concatenate(features_ND),
        torch.cat([each.target_NC for each in of_views]).numpy(),
        torch.cat([each.weight_N for each in of_views]).numpy(),
        scale=of_views[0].scale,
        temperature=of_views[0].temperature,
        seed=seed,
        threads=run.threads,
    )
    measures = _measure_fit(plan, objective, model, features_ND[0], rows_N, labels_N)
    measures |= plan.validate(model) if measured else {}
    seconds = time.perf_counter() - started
    record = EpochRecord(epoch=1, lr=0.0, seconds=seconds, notes={}, **measures)
    if on_epoch is not None:
        on_epoch(record)
    return model, [record]


def show(split: Split, rows: Rows, views: Views, view: int, scaling: Preprocessing) -> npt.NDArray[np.float32]:
    """What the student sees of rows, float32 [N, D]: pictures become one line of numbers."""
    scaling = scaling.on(split)
    parts = [rows[start : start + _SHOWN_ROWS] for start in range(0, len(rows), _SHOWN_ROWS)]
    shown = (torch.from_numpy(views.samples(split, part, view, scaling.fit)) for part in parts)
    return np.concatenate([scaling(samples).flatten(1).numpy() for samples in shown])


@torch.inference_mode()
def _measure_fit(
    plan: "Plan",
    objective: Objective,
    model: TreeEnsemble,
    features_ND: npt.NDArray[np.float32],
    rows_N: Tensor,
    labels_N: Tensor,
) -> dict[str, float]:
    """The mean loss and the accuracy on the rows of the first view, as the loop of networks has them."""
    sums = np.zeros(3)
    for at in torch.split(torch.arange(len(rows_N)), _SHOWN_ROWS):
        logits_BC = model(torch.from_numpy(features_ND)[at])
        loss_B = objective(logits_BC, plan.answers.of(rows_N[at], 0), labels_N[at], _FIRST)
        right_B = logits_BC.argmax(1) == labels_N[at]
        sums += [float(loss_B.sum()), int(right_B.sum()), int((labels_N[at] >= 0).sum())]
    return {"loss": float(sums[0] / len(rows_N)), "train_accuracy": float(sums[1] / max(sums[2], 1.0))}
