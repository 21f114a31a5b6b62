"""Stage two, top to bottom: store -> answers -> loss -> student. The teacher is never loaded.

Shapes: B batch, C classes, N examples.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
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
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.answers.tail_warnings import tail_warnings
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.split import check_same_classes
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.fit.weights import weight_bytes
from logitbank.pipeline.models import Given, build_model, settle_fresh
from logitbank.pipeline.models.check import check_network
from logitbank.pipeline.models.parts import split_selection
from logitbank.pipeline.models.weights import (
    KEY_SPACE,
    KEYS_COMPLETE,
    Taken,
    load_weights,
    read_metadata,
    read_training_keys,
    save_weights,
    weights_digest,
)
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.cautions import cautions, seen_warnings
from logitbank.pipeline.train_student.evaluate import (
    VALIDATION_SEED,
    Rows,
    cut_validation,
    evaluate_against_teacher,
    evaluate_test,
    rows_digest,
    validate,
)
from logitbank.pipeline.train_student.folder import (
    CHECKPOINT,
    HISTORY,
    RESULT,
    WEIGHTS,
    RunFolder,
    finished_result,
    refuse_file,
)
from logitbank.pipeline.train_student.losses import Objective, Step, refuse_missing
from logitbank.pipeline.train_student.order import decide_grouping, order_warnings
from logitbank.pipeline.train_student.search import cut_folds, search_options
from logitbank.pipeline.user_code import is_factory
from logitbank.pipeline.views import Views
from logitbank.stores import Store, Teacher
from logitbank.stores.share.cache import place_of

COMBINE, TAIL = "mean-prob", "predicted"
__all__ = ["HISTORY", "RESULT", "WEIGHTS", "DistillationLoss", "train_student"]


class DistillationLoss(BatchLoss):
    """An objective over the answers to the rows of a batch in the view of their epoch."""

    def __init__(
        self, objective: Objective, answers: Answers, split: Split, *, epochs: int, grouping: Grouping | None = None
    ) -> None:
        self.objective, self.answers, self.epochs, self.grouping = objective, answers, epochs, grouping
        self.labels = torch.from_numpy(split.labels)

    def order(self, rows: Tensor, generator: torch.Generator, *, view: int, next_view: int | None) -> Tensor:
        """The same for every objective, so that students of one seed see the same rows, whatever they listen to."""
        groups = [] if self.grouping is None else self.grouping.groups(rows, generator)
        if self.objective.uses_teacher:
            self.answers.read_ahead(view, groups)
            if next_view is not None and next_view != view:
                self.answers.read_ahead(next_view)
        return torch.cat(groups) if groups else super().order(rows, generator, view=view, next_view=next_view)

    def notes(self) -> dict[str, int]:
        return self.objective.notes()

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, *, view: int, step: int, steps_per_epoch: int) -> Tensor:
        return self.objective(
            logits_BC,
            self.answers.of(rows_B, view),
            self.labels[rows_B].to(logits_BC.device),
            Step(step=step, steps_per_epoch=steps_per_epoch, num_epochs=self.epochs),
        )


def train_student(
    store: Store,
    split: Split,
    test: Split | None,
    student: str,
    objective: Objective,
    training: Training,
    out: Path,
    *,
    teacher: str | None = None,
    combine: str = COMBINE,
    tail: str = TAIL,
    init: Path | None = None,
    val_share: float = 0.0,
    preprocessing: Given | None = None,
    device: torch.device | None = None,
    memory_budget: int | None = None,
    workers: int = 0,
    processes: Processes | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Trains one student from a store; a run that was stopped goes on from its last whole epoch.

    A run that is complete is not trained again.

    Args:
        store: A finished store; it is checked against ``split`` before the first step.
        split: The data that the store was written for.
        test: Evaluated once, at the end; None evaluates nothing.
        student: A name of the model table.
        objective: What is minimised.
        training: Epochs, optimiser and seed.
        out: The run's folder: new, empty, or of the same run.
        teacher: Which teacher of the store (default: the only one), or several: "a,b" or "a:2,b:1".
        combine: How several teachers become one: mean-prob or mean-logit.
        tail: Tail rule of encodings that do not store every class.
        init: Weights that the student starts from: a file, or ``FILE::PART``; see ``load_weights``.
        val_share: Share of the training rows that is held out for validation, stratified.
        preprocessing: The student's input scaling; the default is its own, or mean and deviation of its rows.
        device: Where to train.
        memory_budget: Bytes for slabs (default: half of the machine's memory); what does not fit is
            read block by block.
        workers: Threads that read and transform the next batches meanwhile.
        processes: Those that train the student together, each calling this with the same arguments; process 0
            writes.
        on_epoch: Called after every epoch, those of a resumed run first.
        on_warning: Told what the user should know, before the first step.

    Returns:
        What ``result.json`` holds; nothing in processes other than 0.

    Raises:
        ValueError: The store does not belong to the data, or lacks what the loss needs; ``out`` holds another run.
    """
    refuse_file(out)
    processes = processes or Processes()
    answers = open_answers(
        store, teacher=teacher, combine=combine, tail=tail, device=device, memory_budget=memory_budget
    )
    grouping = decide_grouping(out, answers, processes, device or torch.device("cpu"))
    warnings = [*order_warnings(grouping, answers), *check_needs(objective, store, answers)]
    warnings += cautions(objective, training, processes)
    if objective.uses_teacher:
        warnings += [line for part in answers.parts for line in label_warnings(store, part.teacher)]
    check_data(store, split)
    if test is not None:
        check_same_classes(split, test)
    rows, validation = cut_validation(split, val_share)
    if not len(rows):
        raise ValueError(f"--val-share {val_share} of {split.spec} leaves no training rows; take a smaller share")
    if training.channels_last and not split.is_image:
        raise ValueError(f"--channels-last does nothing here, because {split.spec} holds no images; leave it out")
    if training.selected_by and not len(validation):
        raise ValueError(f"--select {training.select} needs validation rows; pass --val-share 0.1")
    folds = cut_folds(split, rows) if objective.search else []
    if objective.search and processes.count > 1:
        raise ValueError("an option that is auto is searched by one process; find its value first, without torchrun")
    views = Views.from_attributes(store.views)
    scaling = settle_fresh(student, split, preprocessing, rows)
    scaling.check(split)
    # a mistake is answered before anything is made
    fresh, taken = _fresh_student(student, scaling.sized(split), init, training.seed)
    if test is not None:
        check_network(student, fresh, test, views=Views(), preprocessing=scaling)
    check_network(student, fresh, split, views=views, preprocessing=scaling, to_train=True)
    keys, complete = _training_keys(split, None if views.mixes else rows, init, student)
    if test is not None:
        warnings += seen_warnings(test, keys)
    if taken is not None and taken.said:
        warnings.append(taken.said)
    for warning in warnings if on_warning is not None and processes.first else ():
        on_warning(warning)  # type: ignore[misc]
    settings = {
        "student": student,
        "objective": objective.settings,
        "tail": tail,
        "combine": combine if isinstance(answers, Ensemble) else None,
        "init_sha256": None if taken is None else weights_digest(taken.state),
        **({"init_part": taken.part} if taken is not None and taken.part else {}),
        "training": training.attributes(),
        "validation": {
            "share": val_share,
            "seed": VALIDATION_SEED,
            "num_rows": len(validation),
            "keys_sha256": rows_digest(split, validation),
        },
        "preprocessing": scaling.attributes(),
        "store": store_identity(store, answers),
        "test": None if test is None else test.fingerprint,
        "grouping": None if grouping is None else asdict(grouping),
        "processes": processes.count,
    }

    def evaluate(model: nn.Module) -> dict[str, float]:
        return validate(model, split, validation, training.selected_by, preprocessing=scaling, device=device)

    def attempt(objective: Objective, short: Training, kept: Rows, left: Rows) -> float:
        model, _ = train(objective, short, kept)
        return validate(model, split, left, "", preprocessing=scaling, device=device)["val_nll"]

    def train(
        objective: Objective,
        training: Training,
        rows: Rows,
        checkpoint: Checkpoint | None = None,
        on_epoch: Callable[[EpochRecord], None] | None = None,
    ) -> tuple[nn.Module, list[EpochRecord]]:
        model, _ = _fresh_student(student, scaling.sized(split), init, training.seed)
        history = fit(
            model,
            split,
            DistillationLoss(objective, answers, split, epochs=training.epochs, grouping=grouping),
            training,
            views=views,
            preprocessing=scaling,
            rows=rows,
            device=device,
            evaluate=evaluate if len(validation) and checkpoint is not None else None,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
            workers=workers,
            processes=processes,
        )
        return model, history

    if not processes.first:
        if finished_result(out, settings) is not None:
            return {}
        with closing(answers):
            train(objective, training, rows, Checkpoint(out / CHECKPOINT))
        return {}

    with closing(answers), RunFolder(out, settings) as folder:
        if folder.result is not None:
            return folder.result
        objective, searched = search_options(
            objective,
            training,
            attempt,
            folds,
            folder.read_search(),
            folder.write_search,
        )
        history: list[EpochRecord] = []

        def record(epoch: EpochRecord) -> None:
            history.append(epoch)
            folder.write_history(history)
            if on_epoch is not None:
                on_epoch(epoch)

        model, _ = train(objective, training, rows, Checkpoint(folder.checkpoint), record)
        result: dict[str, Any] = {
            "loss": objective.name,
            "student": student,
            "data": split.spec,
            "settings": objective.settings,
            "training": training.attributes(),
            "tail": tail,
            "seconds": sum(epoch.seconds for epoch in history),
            "notes": _total_notes(history),
            "warnings": warnings,
            "search": searched,
            "validation": _validation(settings["validation"], history, training) if len(validation) else None,
            "against_teacher": evaluate_against_teacher(
                model,
                split,
                answers,
                validation,
                folds=store.folds if "out_of_fold" in answers.offers else None,
                views=views,
                preprocessing=scaling,
                device=device,
            ),
            "test": None,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "weight_bytes": weight_bytes(model, training.weight_bits),
            "weights_sha256": weights_digest(model.state_dict()),
            "store": {"path": place_of(store.path), **store_identity(store, answers)},
            "device": str(device or "cpu"),
            "num_threads": torch.get_num_threads(),
            "processes": processes.count,
            "grouping": settings["grouping"],
            "versions": library_versions(),
        }
        if test is not None:
            result["test"] = evaluate_test(model, test, preprocessing=scaling, device=device)
            result |= {name: result["test"][name] for name in ("accuracy", "nll", "ece")}
        metadata = {
            "architecture": student,
            "num_classes": split.num_classes,
            "input_shape": list(scaling.sized(split).input_shape),
            "dataset": f"{split.name} {split.split}",
            "data_fingerprint": split.fingerprint,
            KEY_SPACE: split.key_space,
            "preprocessing": scaling.attributes(),
            "loss": objective.name,
            "training": training.attributes(),
            "versions": library_versions(),
        }
        save_weights(out / WEIGHTS, model, metadata, keys, complete=complete)
        folder.finish(result)
    return result


def _fresh_student(student: str, split: Split, init: Path | None, seed: int) -> tuple[nn.Module, Taken | None]:
    """The student before its first step, and what it took from ``init``."""
    torch.manual_seed(seed)
    model = build_model(student, split)
    if init is None:
        return model, None
    file, part = split_selection(str(init))
    return model, load_weights(model, Path(file), architecture=student, part=part, new_head=split.num_classes)


def _training_keys(
    split: Split, rows: npt.NDArray[np.integer] | None, init: Path | None, student: str
) -> tuple[npt.NDArray[np.uint64], bool]:
    """Content keys of what the student was trained on (rows None: all), as far as is known, and whether that is all."""
    keys, complete = split.keys if rows is None else split.keys[rows], not is_factory(student)
    if init is not None:
        file = Path(split_selection(str(init))[0])
        before = read_training_keys(file)
        keys = keys if before is None else np.union1d(keys, before)
        said = read_metadata(file)
        known = before is not None and said.get(KEYS_COMPLETE) is True and said.get(KEY_SPACE) == split.key_space
        complete = complete and known
    return keys, complete


def _validation(settings: Any, history: list[EpochRecord], training: Training) -> dict[str, Any]:
    """The validation rows and what the kept epoch measured on them."""
    best = training.best_epoch(history)
    kept = history[-1 if best is None else best]
    selected = {training.selected_by: kept.val_selected} if training.selected_by else {}
    return {**settings, "epoch": kept.epoch, "accuracy": kept.val_accuracy, "nll": kept.val_nll, **selected}


def _total_notes(history: list[EpochRecord]) -> dict[str, int]:
    """What the loss counted, over all epochs."""
    total: Counter[str] = Counter()
    for record in history:
        total.update(record.notes)
    return dict(total)


def check_needs(objective: Objective, store: Store, answers: Answers) -> list[str]:
    """Warnings about what the loss would rather have; read before the first step.

    Raises:
        ValueError: The loss cannot do without something that the store does not have.
    """
    for part in answers.parts:
        if "dense" in objective.needs and not part.encoding.every_class:
            raise ValueError(
                f"loss {objective.name!r} needs every class's logit, but {store.path} keeps the top"
                f" {part.encoding.top_k} of {part.encoding.num_classes}; cache with --encoding dense or topk+tail, or"
                " choose another loss"
            )
        if "logits" in objective.needs and has_masked_classes(part.teacher):
            raise ValueError(
                f"loss {objective.name!r} compares logits, but some of those of teacher {part.teacher.name!r} of"
                f" {store.path} are -inf (classes of probability zero); cache it again, which gives them a floor, or"
                " choose a loss of probabilities"
            )
    cross_fitted = "out_of_fold" in answers.offers
    names = ", ".join(part.teacher.name for part in answers.parts)
    if "out_of_fold" in objective.needs and not cross_fitted:
        raise ValueError(
            f"loss {objective.name!r} needs out-of-fold answers, but not those of teacher {names} of {store.path}: it"
            " is not cross-fitted; train fold teachers (train-teacher --folds 5) and cache them"
        )
    refuse_missing(objective, answers.offers)
    if "labels" in objective.needs and (store.labels < 0).all():
        raise ValueError(f"loss {objective.name!r} needs labels, but {store.path} has none; choose a loss without")
    views = Views.from_attributes(store.views)
    if "labels" in objective.needs and views.mixes:
        raise ValueError(
            f"loss {objective.name!r} uses labels, but a view of {store.path} ({views.transform}) shows two examples;"
            " take the teacher's answers alone, such as --loss kd --set ce_weight=0"
        )
    warnings = []
    if "out_of_fold" in objective.prefers and not cross_fitted:
        warnings.append(
            f"loss {objective.name!r} was made for out-of-fold answers; teacher {names} of {store.path} is not"
            " cross-fitted"
        )
    return warnings + (tail_warnings(answers, objective.temperature) if objective.uses_teacher else [])


def has_masked_classes(teacher: Teacher) -> bool:
    """Whether a logit of the first view is -inf; what stage one writes has none."""
    code = Encoding.from_attributes(teacher.encoding).code
    mask = {"mask"} & set(teacher.arrays)
    for block in range(teacher.num_blocks):
        arrays = teacher.answers(0, block, [code.array, *mask])
        values = arrays[code.array][arrays["mask"]] if mask else arrays[code.array]
        if (values == code.zero).any():
            return True
    return False


def store_identity(store: Store, answers: Answers) -> dict[str, Any]:
    """Which answers a student heard: enough to find the same store again, wherever it lies."""
    parts = answers.parts
    first = parts[0].teacher
    identity: dict[str, Any] = {
        "dataset_fingerprint": store.dataset["fingerprint"],
        "teacher": first.name,
        "digest": first.digest,
        "identity": dict(first.identity),
        "encoding": dict(first.encoding),
        "views": {name: store.views[name] for name in ("num_views", "transform", "seed")},
        "num_folds": None if first.folds is None else first.folds["num_folds"],
    }
    if isinstance(answers, Ensemble):
        identity["teachers"] = {
            part.teacher.name: {
                "weight": weight,
                "digest": part.teacher.digest,
                "identity": dict(part.teacher.identity),
                "encoding": dict(part.teacher.encoding),
            }
            for part, weight in zip(parts, answers.weights_M.tolist(), strict=True)
        }
        identity["teacher"] = ",".join(part.teacher.name for part in parts)
    return identity
