"""A run that is decided: what it does, and the student that it trains. `decisions` makes it.

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

from logitbank.pipeline.answers.ensemble import Ensemble
from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.domains import BESIDE_TEACHER, METRICS
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.estimators import is_estimator
from logitbank.pipeline.fit.loop import fit
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.models import Preprocessing, build_model, spell_model
from logitbank.pipeline.models.parts import split_selection
from logitbank.pipeline.models.subclasses import SubclassNetwork
from logitbank.pipeline.models.weights import Taken, load_weights, weights_digest
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.capturing import Captured, equip
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.evaluate import (
    VALIDATION_SEED,
    evaluate_against_teacher,
    measure_rows,
    rows_digest,
    validate,
)
from logitbank.pipeline.train_student.fitted import fit_student
from logitbank.pipeline.train_student.golden import Golden
from logitbank.pipeline.train_student.inputs import Inputs
from logitbank.pipeline.train_student.left_out import LeftOut
from logitbank.pipeline.train_student.losses import Objective, StoredFeatures
from logitbank.pipeline.train_student.over_positions import Ask
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
        captured = equipped(
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


def equipped(
    run: Run,
    objective: Objective,
    student: nn.Module,
    inputs: Inputs,
    views: Views,
    scaling: Preprocessing,
    stored: StoredFeatures | None,
    seed: int,
) -> Captured:
    """A student, and the objective that takes of it what the run's loss needs."""
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
