"""A run whose inputs are opened: everything that is decided, and refused or warned of, before its first step.

Shapes: N examples.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.answers.against_labels import label_warnings
from logitbank.pipeline.answers.ensemble import Ensemble
from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.answers.label_map import CroppedAnswers
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.answers.pass_rates import pass_rates
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.split import check_same_classes
from logitbank.pipeline.domains import BESIDE_TEACHER, METRICS
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.estimators import is_estimator
from logitbank.pipeline.fit.loop import fit
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.fit.private import check_layers
from logitbank.pipeline.models import Preprocessing, build_model, settle_fresh, spell_model
from logitbank.pipeline.models.check import check_network
from logitbank.pipeline.models.parts import split_selection
from logitbank.pipeline.models.subclasses import SubclassNetwork
from logitbank.pipeline.models.weights import Taken, load_weights, weights_digest
from logitbank.pipeline.processes import LEAST_ROWS
from logitbank.pipeline.processes.device import find_device
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.capturing import Captured, equip, stored_features
from logitbank.pipeline.train_student.cautions import cautions, check_memory, seen_warnings
from logitbank.pipeline.train_student.class_counts import count_classes
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.evaluate import (
    VALIDATION_SEED,
    cut_validation,
    evaluate_against_teacher,
    measure_rows,
    rows_digest,
    validate,
)
from logitbank.pipeline.train_student.fit_transforms import fit_transforms
from logitbank.pipeline.train_student.fitted import check_student, fit_student
from logitbank.pipeline.train_student.golden import Golden, open_golden
from logitbank.pipeline.train_student.inputs import Inputs
from logitbank.pipeline.train_student.label_share import is_open
from logitbank.pipeline.train_student.left_out import LeftOut, leave_out
from logitbank.pipeline.train_student.losses import Objective, StoredFeatures
from logitbank.pipeline.train_student.needs import check_needs
from logitbank.pipeline.train_student.order import decide_grouping, order_warnings
from logitbank.pipeline.train_student.over_positions import Ask, check_training
from logitbank.pipeline.train_student.privacy import check_private
from logitbank.pipeline.train_student.search import cut_folds
from logitbank.pipeline.train_student.seen import student_keys
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.train_student.store_identity import store_identity
from logitbank.pipeline.views import Views

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run does, decided: data, answers, loss, rows, scaling, and what the user should know.

    Attributes:
        run, inputs, processes, device: What was asked for, of what, by whom, and where.
        objective: With options that are still to be searched, or none.
        answers: What the teachers say.
        grouping: How rows are shuffled where a slab does not fit into memory.
        rows, validation: Row numbers of the split: trained on, and held out.
        golden: What the student is measured by after every epoch, beside its teacher.
        left_out: The fold that neither has rows of.
        folds: Rows to train on and rows left out, of a search or of the choice of the label's share.
        rates: How often the teachers are right about each row, where a row weight goes by it.
        views: What each epoch shows.
        scaling: The student's input scaling.
        taken: What the student starts from, of ``run.init``.
        stored: The store's features, where the loss needs them.
        keys: Content keys of all that the student will have been trained on, as far as is known.
        keys_complete: Whether that is all.
        warnings: What the user should know before the first step.
    """

    run: Run
    inputs: Inputs
    processes: Processes
    device: torch.device
    objective: Objective
    answers: Answers
    grouping: Grouping | None
    rows: Rows
    validation: Rows
    golden: Golden | None
    left_out: LeftOut | None
    folds: list[tuple[Rows, Rows]]
    rates: Tensor | None
    views: Views
    scaling: Preprocessing
    taken: Taken | None
    stored: StoredFeatures | None
    keys: npt.NDArray[np.uint64]
    keys_complete: bool
    warnings: list[str]

    def identity(self) -> dict[str, Any]:
        """All that decides the result, as run.json has it: settings, and what their texts name, resolved."""
        run, split, test = self.run, self.inputs.split, self.inputs.test
        return {
            "student": spell_model(run.student),
            "objective": self.objective.settings,
            "tail": run.tail_rule,
            "combine": run.combine if isinstance(self.answers, Ensemble) else None,
            "init_sha256": None if self.taken is None else weights_digest(self.taken.state),
            **({"init_part": self.taken.part} if self.taken is not None and self.taken.part else {}),
            "training": run.trained,
            "validation": {
                "share": run.val_share,
                "seed": VALIDATION_SEED,
                "num_rows": len(self.validation),
                "keys_sha256": rows_digest(split, self.validation),
            },
            **({} if self.golden is None else {"golden": self.golden.identity}),
            **({"transform": self.views.transform} if self.views.label_map else {}),
            **({} if self.left_out is None else {"left_out": self.left_out.attributes()}),
            "preprocessing": self.scaling.attributes(),
            "store": store_identity(self.inputs.store, self.answers),
            "test": None if test is None else test.fingerprint,
            "grouping": None if self.grouping is None else asdict(self.grouping),
        }

    def train(
        self,
        objective: Objective,
        training: Training,
        rows: Rows,
        checkpoint: Checkpoint | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
        until: int = 0,
    ) -> tuple[nn.Module, list[EpochRecord], dict[str, float]]:
        """A student trained on some rows, to the end or until an epoch, and what its objective learned; one with a
        checkpoint is measured on the validation rows."""
        split = self.inputs.split
        if is_estimator(self.run.student):
            measured = checkpoint is not None and len(self.validation) > 0
            return *fit_student(self, objective, training.seed, rows, measured=measured, on_epoch=on_epoch), {}
        model, _ = fresh_student(self.run, self.scaling.sized(split), training.seed)
        captured = _equipped(
            self.run, objective, model, self.inputs, self.views, self.scaling, self.stored, training.seed
        )
        loss = DistillationLoss(
            captured.objective,
            self.answers,
            split,
            epochs=training.epochs,
            grouping=self.grouping,
            places=captured.places,
            rates=self.rates,
        )
        history = fit(
            model,
            split,
            loss,
            training,
            views=self.views,
            preprocessing=self.scaling,
            rows=rows,
            device=self.device,
            evaluate=self.validate if len(self.validation) and checkpoint is not None else None,
            checkpoint=None if training.dp_sgd else checkpoint,
            on_epoch=on_epoch,
            workers=self.run.workers,
            processes=self.processes,
            until=until,
        )
        return model, history, captured.objective.learned

    def attempt(self, objective: Objective, short: Training, kept: Rows, left: Rows) -> float:
        """The NLL on the rows left out of a short run on those kept, for a search."""
        model, *_ = self.train(objective, short, kept)
        return validate(self.ask, model, self.inputs.split, left)["val_nll"]

    def answer_left(
        self, objective: Objective, short: Training, kept: Rows, left: Rows
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels of the labelled rows left out, of a short run on those kept."""
        model, *_ = self.train(objective, short, kept)
        return measure_rows(self.ask, model, self.inputs.split, left)

    @property
    def ask(self) -> Ask:
        """A student's answers, in evaluation mode."""
        return partial(
            predict,
            preprocessing=self.scaling,
            device=self.device,
            batch_size=self.run.eval_batch_size,
            workers=self.run.workers,
        )

    def validate(self, model: nn.Module) -> dict[str, float]:
        """What an epoch measures on the validation rows, and the measure by which the best one is selected."""
        selected_by = self.run.training.selected_by
        of_labels = selected_by if selected_by in METRICS else ""
        found = validate(self.ask, model, self.inputs.split, self.validation, of_labels)
        if selected_by in BESIDE_TEACHER:
            beside = evaluate_against_teacher(
                self.ask, model, self.inputs.split, self.answers, self.validation, folds=None, views=self.views
            )
            found["val_selected"] = beside[selected_by]
        if self.golden is not None:
            found |= self.golden.measure(self.ask, model, self.inputs.split, self.answers, self.views)
        return found

    def close(self) -> None:
        """Gives back the memory that answers hold."""
        self.answers.close()
        if self.golden is not None:
            self.golden.close()


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
    """As ``fit`` will count them: a last batch that is too small for the processes joins the one before it."""
    whole, left = divmod(num_rows, run.training.batch_size)
    least = 1 if run.training.dp_sgd else LEAST_ROWS * processes.count
    return max(1, whole + (left >= least))


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
    _equipped(run, objective, student, inputs, views, scaling, stored, run.training.seed)
    return taken


def _equipped(
    run: Run,
    objective: Objective,
    student: nn.Module,
    inputs: Inputs,
    views: Views,
    scaling: Preprocessing,
    stored: StoredFeatures | None,
    seed: int,
) -> Captured:
    return equip(objective, run.student, student, inputs.split, views=views, scaling=scaling, stored=stored, seed=seed)


def fresh_student(run: Run, split: Split, seed: int) -> tuple[nn.Module, Taken | None]:
    """The student before its first step, and what it took from ``run.init``."""
    torch.manual_seed(seed)
    model = build_model(run.student, split, drop_path=run.training.drop_path)
    if not run.init:
        return model, None
    file, chosen = split_selection(run.init)
    inner, num_outputs = model, split.num_classes
    if isinstance(model, SubclassNetwork):  # starts from a network of plain classes
        inner, num_outputs = model.model, split.num_classes * model.subclasses
    return model, load_weights(inner, Path(file), architecture=run.student, part=chosen, new_head=num_outputs)
