"""Runs that are there already: read from their folders, and named by what they differ in."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.spelling import unknown
from pipeline.train_student.folder import HISTORY, RESULT, SETTINGS, flat, read_json

_NUMBERS = {"epoch", "loss", "train_accuracy", "lr", "seconds", "val_accuracy", "val_nll"}


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """One student: its folder, what result.json holds, and its settings as dotted names."""

    folder: Path
    result: Mapping[str, Any]
    settings: Mapping[str, Any]

    @property
    def seed(self) -> int:
        return int(self.result["training"]["seed"])

    def history(self) -> list[dict[str, float]]:
        """The lines of history.csv; empty cells are left out."""
        with (self.folder / HISTORY).open(newline="") as file:
            return [
                {name: float(value) for name, value in row.items() if name in _NUMBERS and value}
                for row in csv.DictReader(file)
            ]


def load_runs(folder: Path) -> dict[str, dict[int, FinishedRun]]:
    """Finished runs below a folder: method -> seed -> run. Runs that differ in the seed alone are one method.

    Raises:
        ValueError: No finished run, runs on different test data, or the same run twice.
    """
    found = [_load(path.parent) for path in sorted(folder.rglob(RESULT))] if folder.is_dir() else []
    if not found:
        raise ValueError(f"{folder} holds no finished run; give the folder of a sweep, or one with runs in it")
    for run in found:
        if run.result.get("accuracy") is None:
            raise ValueError(f"{run.folder} was not evaluated on test data; leave it out of {folder}")
        if run.settings.get("test") != found[0].settings.get("test"):
            raise ValueError(f"{found[0].folder} and {run.folder} were evaluated on different test data")
    methods: dict[str, dict[int, FinishedRun]] = {}
    for name, run in zip(_names(found), found, strict=True):
        by_seed = methods.setdefault(name, {})
        if run.seed in by_seed:
            raise ValueError(f"{by_seed[run.seed].folder} and {run.folder} are the same run; leave one out")
        by_seed[run.seed] = run
    return methods


def _load(folder: Path) -> FinishedRun:
    result = read_json(folder / RESULT)
    settings = flat(read_json(folder / SETTINGS)) if (folder / SETTINGS).exists() else {}
    settings = {name: value for name, value in settings.items() if not name.startswith("validation.")}
    settings["store"] = Path(result["store"]["path"]).stem
    return FinishedRun(folder=folder, result=result, settings=settings)


def _names(runs: list[FinishedRun]) -> list[str]:
    """The loss and the student where it varies, then the fewest settings that tell the methods apart."""
    varying = {
        name
        for name in {name for run in runs for name in run.settings}
        if len({str(run.settings.get(name)) for run in runs}) > 1
    } - {"training.seed"}
    several = "student" in varying
    names = [
        " ".join([str(run.settings.get("objective.objective"))] + ([str(run.settings["student"])] if several else []))
        for run in runs
    ]
    for setting in sorted(varying - {"objective.objective", "student"}, key=_rank):
        told = [f"{name} {_short(setting)}={run.settings.get(setting)}" for name, run in zip(names, runs, strict=True)]
        if len(set(told)) > len(set(names)):  # it tells runs apart that have the same name so far
            split = {name for name in names if len({t for n, t in zip(names, told, strict=True) if n == name}) > 1}
            names = [t if n in split else n for n, t in zip(names, told, strict=True)]
    return names


def _rank(setting: str) -> tuple[int, str]:
    """Settings of the loss first, then of training, then the store's name, then whatever else differs."""
    order = ("objective.", "training.", "store")
    return next((place for place, prefix in enumerate(order) if setting.startswith(prefix)), len(order)), setting


def _short(setting: str) -> str:
    return setting.rpartition(".")[2]


def choose_baseline(methods: Mapping[str, object], name: str) -> str:
    """The method of that name; without one, hard labels, or else the first.

    Raises:
        ValueError: No such method.
    """
    if not name:
        return next((method for method in methods if method.split(" ")[0] == "ce"), next(iter(methods)))
    if name not in methods:
        raise ValueError(unknown("method", name, methods))
    return name
