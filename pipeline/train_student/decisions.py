"""Opened inputs -> a run's plan: everything that is decided, and refused or warned of, before its first step."""

from pathlib import Path

import torch

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.answers.against_labels import label_warnings
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.answers.label_map import CroppedAnswers
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.answers.pass_rates import pass_rates
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.split import check_same_classes
from logitbank.pipeline.domains import BESIDE_TEACHER
from logitbank.pipeline.fit.estimators import is_estimator
from logitbank.pipeline.fit.feed import in_batches
from logitbank.pipeline.fit.private import check_layers, steps_of_epoch
from logitbank.pipeline.models import Preprocessing, settle_fresh
from logitbank.pipeline.models.check import check_network
from logitbank.pipeline.models.weights import Taken
from logitbank.pipeline.processes import LEAST_ROWS
from logitbank.pipeline.processes.device import find_device
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.capturing import stored_features
from logitbank.pipeline.train_student.cautions import cautions, check_memory, seen_warnings
from logitbank.pipeline.train_student.class_counts import count_classes
from logitbank.pipeline.train_student.evaluate import (
    cut_validation,
)
from logitbank.pipeline.train_student.fit_transforms import fit_transforms
from logitbank.pipeline.train_student.fitted import check_student
from logitbank.pipeline.train_student.golden import open_golden
from logitbank.pipeline.train_student.inputs import Inputs
from logitbank.pipeline.train_student.label_share import is_open
from logitbank.pipeline.train_student.left_out import LeftOut, leave_out
from logitbank.pipeline.train_student.losses import Objective, StoredFeatures
from logitbank.pipeline.train_student.needs import check_needs
from logitbank.pipeline.train_student.order import decide_grouping, order_warnings
from logitbank.pipeline.train_student.over_positions import check_training
from logitbank.pipeline.train_student.plan import Plan, Rows, equipped, fresh_student
from logitbank.pipeline.train_student.privacy import check_private
from logitbank.pipeline.train_student.search import cut_folds
from logitbank.pipeline.train_student.seen import student_keys
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views


def plan_run(run: Run, out: Path, inputs: Inputs, processes: Processes) -> Plan:
    """Decides all that a run needs before its first step; nothing is written.

    Raises:
        ValueError: The store does not belong to the data, or lacks what the loss needs, or a setting makes no sense
            with them.
    """
    store, split, test = inputs.store, inputs.split, inputs.test
    objective, views = run.objective(split.num_classes), Views.from_attributes(store.views)
    if is_estimator(run.student):
        check_student(run, objective, split, views, processes)
    device = find_device("cpu" if is_estimator(run.student) else run.device, run.threads, processes.local)
    answers: Answers = open_answers(
        store,
        teacher=run.teacher or None,
        combine=run.combine,
        tail=run.tail,
        device=device,
        memory_budget=run.budget,
        features="embedding" in objective.needs,
    )
    if views.label_map:
        views = views.of_crops(run.transform or "none")
        answers = CroppedAnswers(answers, views, split)
    grouping = decide_grouping(out, answers, split, processes, device)
    warnings = [*order_warnings(grouping, answers), *check_needs(objective, store, answers)]
    warnings += cautions(objective, run.training, processes)
    check_memory(objective, run.training, split, processes)
    warnings += check_private(run, objective, split, views, processes)
    if grouping is not None and run.training.dp_sgd:
        raise ValueError("--dp-sgd draws rows from the whole store, which does not fit; raise --memory-budget")
    if objective.uses_teacher:
        warnings += [line for part in answers.parts for line in label_warnings(store, part.teacher)]
    check_data(store, split)
    if test is not None:
        check_same_classes(split, test)
    left_out = leave_out(run.leave_out, store, answers, views)
    rows, validation = _cut_rows(run, split, left_out)
    _refuse_idle(run, objective, processes)
    if not is_estimator(run.student):
        for term in objective.terms:
            term.schedule.refuse_none(term.name, run.num_epochs * _steps_of_epoch(run, len(rows), processes))
    warnings += _unserved(objective, answers, rows)
    if run.training.selected_by in BESIDE_TEACHER and not answers.served(0)[validation].any():
        raise ValueError(
            f"--select {run.training.select}: no teacher answers a validation row; select by another measure"
        )
    searches = bool(objective.search) or is_open(objective)
    if searches and processes.count > 1:
        raise ValueError("an option that is auto is searched by one process; find its value first, without torchrun")
    if is_open(objective):
        split.refuse_positions("alpha of label_mix, when it is auto,")
    scaling = settle_fresh(run.student, split, run.preprocessing(), rows)
    scaling.check(split)
    if objective.weighs_by_class:
        counts, said = count_classes(objective, split, rows, answers)
        objective, warnings = objective.with_class_counts(counts), [*warnings, *said]
    objective, said = fit_transforms(objective, answers, rows)
    warnings += said
    stored = stored_features(answers, split, rows) if "embedding" in objective.needs else None
    taken = None if is_estimator(run.student) else _check_network(run, objective, inputs, views, scaling, stored)
    keys, keys_complete = student_keys(run, split, None if views.mixes else rows)
    if test is not None:
        warnings += seen_warnings(test, keys)
    if taken is not None and taken.said:
        warnings.append(taken.said)
    return Plan(
        run=run,
        inputs=inputs,
        processes=processes,
        device=device,
        objective=objective,
        answers=answers,
        grouping=grouping,
        rows=rows,
        validation=validation,
        golden=open_golden(run, split, answers, views, validation),
        left_out=left_out,
        folds=cut_folds(split, rows) if searches else [],
        rates=pass_rates(answers) if objective.goes_by_views else None,
        views=views,
        scaling=scaling,
        taken=taken,
        stored=stored,
        keys=keys,
        keys_complete=keys_complete,
        warnings=warnings,
    )


def _refuse_idle(run: Run, objective: Objective, processes: Processes) -> None:
    """Raises ValueError for transforms, and rules, that have nothing to go by."""
    if processes.count > 1 and any(term.feeds_back for term in objective.terms):
        raise ValueError("row_weight=hardest goes by the losses of whole steps; train with one process")
    if objective.mixes_answers and not run.training.mixup:
        raise ValueError(
            "mix_targets mixes the answers to samples that --mixup mixes; pass --mixup 0.8, or leave it out"
        )
    if objective.search and is_open(objective):
        raise ValueError(
            f"{', '.join(objective.search)} and alpha of label_mix are both auto; give one of them a number"
        )


def _steps_of_epoch(run: Run, num_rows: int, processes: Processes) -> int:
    """As ``fit`` counts them."""
    if run.training.dp_sgd:
        return steps_of_epoch(run.training, num_rows)
    return len(in_batches(torch.arange(num_rows), run.training.batch_size, LEAST_ROWS * processes.count))


def _unserved(objective: Objective, answers: Answers, rows: Rows) -> list[str]:
    """A line where training rows have no answer; ValueError where none has one."""
    number = int((~answers.served(0)[rows]).sum()) if objective.uses_teacher else 0
    if number and number == len(rows):
        raise ValueError("no teacher answers a training row, so there is nothing to learn of it; --loss ce needs none")
    gets = "only what the loss makes of its label" if "labels" in objective.needs else "no gradient"
    return [f"{number} of the {len(rows)} training rows have no answer: such a row gets {gets}"] if number else []


def _cut_rows(run: Run, split: Split, left_out: LeftOut | None) -> tuple[Rows, Rows]:
    """Rows to train on and validation rows; refuses what would do nothing with them."""
    rows, validation = cut_validation(split, run.val_share)
    if left_out is not None:
        rows, validation = rows[left_out.kept_N[rows]], validation[left_out.kept_N[validation]]
    if not len(rows):
        raise ValueError(f"--val-share {run.val_share} of {split.spec} leaves no training rows; take a smaller share")
    if run.training.channels_last and not split.is_image:
        raise ValueError(f"--channels-last does nothing here, because {split.spec} holds no images; leave it out")
    if run.training.random_erasing and not split.is_image:
        raise ValueError(f"--random-erasing does nothing here, because {split.spec} holds no images; leave it out")
    check_training(run.training, split)
    if run.training.selected_by and not len(validation):
        raise ValueError(f"--select {run.training.select} needs validation rows; pass --val-share 0.1")
    return rows, validation


def _check_network(
    run: Run,
    objective: Objective,
    inputs: Inputs,
    views: Views,
    scaling: Preprocessing,
    stored: StoredFeatures | None,
) -> Taken | None:
    """Runs a fresh network once, so that a mistake is answered before anything is made; what it starts from."""
    student, taken = fresh_student(run, scaling.sized(inputs.split), run.training.seed)
    if run.training.dp_sgd:
        check_layers(student)
    if inputs.test is not None:
        check_network(run.student, student, inputs.test, views=Views(), preprocessing=scaling)
    check_network(run.student, student, inputs.split, views=views, preprocessing=scaling, to_train=True)
    equipped(run, objective, student, inputs, views, scaling, stored, run.training.seed)
    return taken
