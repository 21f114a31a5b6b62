"""What was trained, from what, and how: what a reader of a comparison asks first."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.pipeline.train_student.runs import FinishedRun


def facts_of(methods: Mapping[str, Mapping[int, FinishedRun]]) -> tuple[dict[str, str], list[list[str]]]:
    """What all methods share, by name; and where they differ: a line of names, then a line for each method."""
    found = {method: _facts(next(iter(runs.values()))) for method, runs in methods.items()}
    lines = list(found.values())
    differ = [name for name in lines[0] if len({line[name] for line in lines}) > 1]
    shared = {name: value for name, value in lines[0].items() if name not in differ and value}
    if not differ:
        return shared, []
    table = [[method, *(line[name] for name in differ)] for method, line in found.items()]
    return shared, [["method", *differ], *table]


def _facts(run: FinishedRun) -> dict[str, str]:
    """One run in words; "" where it does not say."""
    result, training = run.result, run.result["training"]
    test, store, validation = result["test"], result.get("store", {}), result.get("validation") or {}
    encoding, views, folds = store.get("encoding", {}), store.get("views", {}), store.get("num_folds")
    architecture = store.get("identity", {}).get("architecture")
    kept = f", top {encoding['top_k']} of {encoding['num_classes']} classes" if encoding.get("top_k") else ""
    return {
        "data": str(result.get("data", "")),
        "tested on": f"{test['data']}: {test['num_rows']} rows",
        "held out for validation": f"{validation['num_rows']} rows" if validation else "",
        "store": Path(store["path"]).name if "path" in store else "",
        "teacher": f"{store['teacher']} ({architecture})" if architecture else str(store.get("teacher", "")),
        "cross-fitting": f"{folds} folds" if folds else "",
        "encoding": f"{encoding['kind']}, {encoding['bits']} bits{kept}" if encoding else "",
        "views": f"{views['num_views']} of {views['transform']!r}, seed {views['seed']}" if views else "",
        "student": str(result["student"]),
        "loss": str(result["loss"]),
        "temperature": _temperature(result.get("settings", {}).get("terms", [])),
        "options of the loss": _options(result.get("settings", {}).get("terms", [])),
        "epochs": str(training.get("epochs", "")),
        "learning rate": f"{training['lr']:g}, {training['optimizer']}, {training['schedule']}"
        if "lr" in training
        else "",
        "batch size": str(training.get("batch_size", "")),
        "precision": str(training.get("precision", "")),
        "device": str(result.get("device", "")),
        "versions": ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items()),
    }


def _temperature(terms: Sequence[Mapping[str, Any]]) -> str:
    """Of each term that has one."""
    return ", ".join(dict.fromkeys(f"{term['temperature']:g}" for term in terms if "temperature" in term))


def _options(terms: Sequence[Mapping[str, Any]]) -> str:
    """All else that each term was trained with: weights, options, row weights."""
    of_terms = (
        (
            str(term.get("loss", "")),
            {name: value for name, value in term.items() if name not in ("loss", "temperature")},
        )
        for term in terms
    )
    return "; ".join(
        f"{loss}: " + " ".join(f"{name}={_plain(value)}" for name, value in options.items())
        for loss, options in of_terms
    )


def _plain(value: object) -> str:
    """Short: 0.5 for 0.5000, the first digits of a digest."""
    return f"{value:g}" if isinstance(value, float) else str(value)[:24]
