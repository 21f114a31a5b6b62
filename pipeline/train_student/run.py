"""Stage two, top to bottom: store -> signal -> loss -> student. The teacher is never loaded.

Shapes: B batch, C classes, N examples.
"""

import csv
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.datasets import Split
from pipeline.fit import BatchLoss, EpochRecord, Training, fit, predict
from pipeline.metrics import measure
from pipeline.models import Preprocessing, build_model, own_preprocessing
from pipeline.models.preprocessing import fit_preprocessing
from pipeline.models.weights import save_weights, weights_digest
from pipeline.train_student.losses import Objective, StepContext
from pipeline.train_student.signal import TeacherSignal, check_data
from pipeline.versions import library_versions
from pipeline.views import Views
from stores import Store

RESULT, HISTORY, WEIGHTS = "result.json", "history.csv", "student.safetensors"


class DistillationLoss(BatchLoss):
    """An objective over a teacher's signal; epoch e hears view e modulo V."""

    def __init__(
        self, objective: Objective, signal: TeacherSignal, split: Split, *, num_views: int, epochs: int
    ) -> None:
        self.objective, self.signal = objective, signal
        self.labels = torch.from_numpy(split.labels)
        self.num_views, self.epochs, self.epoch = num_views, epochs, 0

    def begin_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        if self.objective.uses_teacher:
            self.signal.load(epoch % self.num_views)

    def __call__(self, logits_BC: Tensor, rows_B: Tensor) -> Tensor:
        labels_B = self.labels[rows_B].to(logits_BC.device)
        context = StepContext(epoch=self.epoch + 1, num_epochs=self.epochs)
        if not self.objective.uses_teacher:
            return self.objective(logits_BC, logits_BC.detach(), labels_B, context)
        context = replace(context, label_in_head_B=self.signal.label_in_head(rows_B))
        if self.signal.tail == "bucket":  # the tail takes the student's shape, at each term's temperature
            return self.objective(
                logits_BC,
                lambda temperature: self.signal.logits(rows_B, logits_BC.detach(), temperature),
                labels_B,
                context,
            )
        return self.objective(logits_BC, self.signal.logits(rows_B), labels_B, context)


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
    tail: str = "predicted",
    preprocessing: Preprocessing | None = None,
    device: torch.device | None = None,
    on_epoch: Callable[[EpochRecord], None] | None = None,
) -> dict[str, Any]:
    """Trains one student from a store and writes ``result.json``, ``student.safetensors`` and ``history.csv``.

    Args:
        store: A finished store; it is checked against ``split`` before the first step.
        split: The data that the store was written for.
        test: Evaluated once, at the end; None evaluates nothing.
        student: A name of the model table.
        objective: What is minimised.
        training: Epochs, optimiser and seed.
        out: A new folder; it appears when the run is complete, whole or not at all.
        teacher: Which teacher of the store (default: the only one).
        tail: Tail rule of encodings that do not store every class.
        preprocessing: The student's input scaling; the default is its own, or mean and deviation of the split.
        device: Where to train.
        on_epoch: Called after every epoch.

    Returns:
        What ``result.json`` holds.

    Raises:
        ValueError: The store does not belong to the data, or lacks what the loss needs.
    """
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it")
    signal = TeacherSignal(store, name=teacher, tail=tail, device=device)
    warnings = check_needs(objective, store, signal)
    check_data(store, split)
    if test is not None and test.num_classes != split.num_classes:
        raise ValueError(f"{test.spec} has {test.num_classes} classes, {split.spec} has {split.num_classes}")
    views = Views.from_attributes(store.views)
    scaling = preprocessing or own_preprocessing(student) or fit_preprocessing(split)
    scaling.check(split)
    torch.manual_seed(training.seed)
    model = build_model(student, split)
    loss = DistillationLoss(objective, signal, split, num_views=views.num_views, epochs=training.epochs)
    started = time.perf_counter()
    history = fit(model, split, loss, training, views=views, preprocessing=scaling, device=device, on_epoch=on_epoch)
    seconds = time.perf_counter() - started
    result: dict[str, Any] = {
        "loss": objective.name,
        "student": student,
        "settings": objective.settings,
        "training": training.attributes(),
        "tail": tail,
        "seconds": seconds,
        "notes": objective.notes(),
        "warnings": warnings,
        "test": None,
        "weights_sha256": weights_digest(model.state_dict()),
        "store": store_identity(store, signal.teacher.name),
        "versions": library_versions(),
    }
    if test is not None:
        metrics = measure(predict(model, test, preprocessing=scaling, device=device), torch.from_numpy(test.labels))
        result["test"] = {"data": test.spec, **metrics.to_dict()}
        result |= {"accuracy": metrics.accuracy, "nll": metrics.nll, "ece": metrics.ece}
    metadata = {
        "architecture": student,
        "num_classes": split.num_classes,
        "input_shape": list(split.input_shape),
        "dataset": f"{split.name} {split.split}",
        "data_fingerprint": split.fingerprint,
        "preprocessing": scaling.attributes(),
        "loss": objective.name,
        "training": training.attributes(),
        "versions": library_versions(),
    }
    with NewFolder(out) as folder:
        save_weights(folder / WEIGHTS, model, metadata)
        _write_history(folder / HISTORY, history)
        (folder / RESULT).write_text(json.dumps(result, indent=2) + "\n")
    return result


def check_needs(objective: Objective, store: Store, signal: TeacherSignal) -> list[str]:
    """Warnings about what the loss would rather have; read before the first step.

    Raises:
        ValueError: The loss cannot do without something that the store does not have.
    """
    encoding = signal.encoding
    if "dense" in objective.needs and encoding.kind == "topk":
        raise ValueError(
            f"loss {objective.name!r} needs every class's logit, but {store.path} keeps the top {encoding.top_k} of"
            f" {encoding.num_classes}; cache with --encoding dense or topk+tail, or choose another loss"
        )
    if "out_of_fold" in objective.needs and store.folds is None:
        raise ValueError(
            f"loss {objective.name!r} needs out-of-fold answers, but {store.path} was written without folds;"
            " train fold teachers (train-teacher --folds 5) and cache them"
        )
    if "labels" in objective.needs and (store.labels < 0).all():
        raise ValueError(f"loss {objective.name!r} needs labels, but {store.path} has none; choose a loss without")
    warnings = []
    if "out_of_fold" in objective.prefers and store.folds is None:
        warnings.append(f"loss {objective.name!r} was made for out-of-fold answers; {store.path} has no folds")
    if objective.uses_teacher and (warning := signal.tail_warning(objective.temperature)):
        warnings.append(warning)
    return warnings


def store_identity(store: Store, teacher: str) -> dict[str, Any]:
    """Which answers a student heard: enough to find the same store again."""
    answers = store.teacher(teacher)
    return {
        "dataset_fingerprint": store.dataset["fingerprint"],
        "teacher": teacher,
        "identity": dict(answers.identity),
        "encoding": dict(answers.encoding),
        "views": {name: store.views[name] for name in ("num_views", "transform", "seed")},
        "num_folds": None if answers.folds is None else answers.folds["num_folds"],
    }


class NewFolder:
    """A folder that appears under its name when the block ends without an error, and not at all otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(f".{path.name}.{os.getpid()}.partial")

    def __enter__(self) -> Path:
        self.partial.mkdir(parents=True)
        return self.partial

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is None:
            self.partial.rename(self.path)
        else:
            shutil.rmtree(self.partial, ignore_errors=True)


def _write_history(path: Path, history: list[EpochRecord]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(EpochRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)
