"""What is left of a student: the document of its result, and its weights with what they are."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.fit.weights import weight_bytes
from logitbank.pipeline.models.signature import SIGNATURE, Signature
from logitbank.pipeline.models.trees import TreeEnsemble
from logitbank.pipeline.models.weights import KEY_SPACE, save_weights, weights_digest
from logitbank.pipeline.train_student.evaluate import evaluate_against_teacher, evaluate_test
from logitbank.pipeline.train_student.folder import CLASSES, CONFUSION, WEIGHTS, write_json
from logitbank.pipeline.train_student.golden import alarm
from logitbank.pipeline.train_student.losses import Objective
from logitbank.pipeline.train_student.plan import Plan
from logitbank.pipeline.train_student.privacy import spent
from logitbank.stores.share.cache import place_of


def measure_student(
    plan: Plan,
    model: nn.Module,
    history: Sequence[EpochRecord],
    objective: Objective,
    searched: Sequence[dict[str, Any]],
    counts: Sequence[int],
    learned: Mapping[str, float],
) -> dict[str, Any]:
    """What ``result.json`` holds: what was trained, how it went, and what the student does.

    Args:
        plan: Of the run.
        model: The trained student.
        history: Of every epoch.
        objective: What was minimised, with every option bound.
        searched: Outcomes of the candidates of options that were searched.
        counts: How many processes trained it; several numbers when it went on with others.
        learned: Numbers that the objective has learned beside the student.
    """
    run, identity, training = plan.run, plan.identity(), plan.run.training
    golden = None if plan.golden is None else plan.golden.result(history)
    result: dict[str, Any] = {
        "loss": objective.name,
        "student": identity["student"],
        "data": plan.inputs.split.spec,
        "settings": objective.settings,
        "training": identity["training"],
        "tail": run.tail_rule,
        "seconds": sum(epoch.seconds for epoch in history),
        "notes": _total_notes(history),
        "warnings": [*plan.warnings, *_of_counts(counts), *alarm(golden)],
        "search": list(searched),
        **({"learned": dict(learned)} if learned else {}),
        "validation": _validation(identity["validation"], history, training) if len(plan.validation) else None,
        "against_teacher": _against_teacher(plan, model),
        "golden": golden,
        "privacy": spent(training, len(plan.rows), len(history)),
        "test": None,
        **_size(model, training),
        "weights_sha256": weights_digest(model.state_dict()),
        "answer_bytes": _answer_bytes(plan) if objective.uses_teacher else 0,
        "store": {"path": place_of(plan.inputs.store.path), **identity["store"]},
        "device": str(plan.device),
        "num_threads": torch.get_num_threads(),
        "processes": plan.processes.count,
        "grouping": identity["grouping"],
        "versions": library_versions(),
    }
    if plan.inputs.test is not None:
        result["test"] = evaluate_test(plan.ask, model, plan.inputs.test)
        result |= {name: result["test"][name] for name in ("accuracy", "nll", "ece")}
    return result


def take_tables(result: dict[str, Any]) -> dict[str, Sequence[Mapping[str, Any]]]:
    """Tables of the test data that stand in files of their own, by the file's name; the large one leaves the result."""
    test = result["test"]
    if test is None or "per_class" not in test:
        return {}
    return {CLASSES: test["per_class"], CONFUSION: test.pop("confusion")}


def save_student(out: Path, plan: Plan, model: nn.Module, objective: Objective) -> None:
    """Writes the weights, with what they are and what they were trained on, and what the student reads and answers."""
    split, identity = plan.inputs.split, plan.identity()
    metadata = {
        "architecture": identity["student"],
        "num_classes": split.num_classes,
        "input_shape": list(plan.scaling.sized(split).input_shape),
        "dataset": f"{split.name} {split.split}",
        "data_fingerprint": split.fingerprint,
        KEY_SPACE: split.key_space,
        "preprocessing": identity["preprocessing"],
        "loss": objective.name,
        "training": identity["training"],
        **({} if plan.left_out is None else {"folds": plan.left_out.attributes()}),
        "versions": library_versions(),
    }
    keys = None if plan.run.training.dp_sgd else plan.keys  # which would tell who took part
    save_weights(out / WEIGHTS, model, metadata, keys, complete=plan.keys_complete)
    signature = Signature.of(identity["student"], split, plan.scaling)
    write_json(out / SIGNATURE, signature.attributes())


def _size(model: nn.Module, training: Training) -> dict[str, int]:
    if isinstance(model, TreeEnsemble):
        return {"num_parameters": model.num_numbers, "weight_bytes": model.num_bytes}
    return {
        "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "weight_bytes": weight_bytes(model, training.weight_bits),
    }


def _against_teacher(plan: Plan, model: nn.Module) -> dict[str, Any]:
    return evaluate_against_teacher(
        plan.ask,
        model,
        plan.inputs.split,
        plan.answers,
        plan.validation,
        folds=plan.inputs.store.folds if "out_of_fold" in plan.answers.offers else None,
        views=plan.views,
    )


def _answer_bytes(plan: Plan) -> float:
    """What the answers that the student learned from take on disk for each example: all views, all teachers."""
    store = plan.inputs.store
    answers = store.num_views * (store.positions or 1)
    return round(answers * sum(part.teacher.bytes_per_row() for part in plan.answers.parts), 2)


def _validation(settings: Any, history: Sequence[EpochRecord], training: Training) -> dict[str, Any]:
    """The validation rows and what the kept epoch measured on them."""
    best = training.best_epoch(history)
    kept = history[-1 if best is None else best]
    selected = {training.selected_by: kept.val_selected} if training.selected_by else {}
    return {**settings, "epoch": kept.epoch, "accuracy": kept.val_accuracy, "nll": kept.val_nll, **selected}


def _of_counts(counts: Sequence[int]) -> list[str]:
    """Said of a run that went on in another number of processes."""
    if len(counts) < 2:
        return []
    said = ", then ".join(map(str, counts))
    return [
        f"the run was trained by {said} processes: the same steps, but rounded otherwise than by one number of them"
    ]


def _total_notes(history: Sequence[EpochRecord]) -> dict[str, int]:
    """What the loss counted, over all epochs."""
    total: Counter[str] = Counter()
    for record in history:
        total.update(record.notes)
    return dict(total)
