"""Runs that are there already: read from their folders, and named by what they differ in."""

import csv
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from logitbank.pipeline.fit import COLUMNS
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.train_student.folder import CONFUSION, HISTORY, RESULT, SETTINGS, flat, read_json

_DIGEST = re.compile(r"store\.(teachers\..+\.)?digest")


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
                {name: float(value) for name, value in row.items() if name in COLUMNS and value}
                for row in csv.DictReader(file)
            ]

    def confusion(self) -> dict[tuple[str, str], int]:
        """Test rows by their class and the one predicted; empty where the run did not write them."""
        if not (self.folder / CONFUSION).exists():
            return {}
        with (self.folder / CONFUSION).open(newline="") as file:
            return {(row["class"], row["predicted"]): int(row["num_rows"]) for row in csv.DictReader(file)}


def load_runs(folder: Path) -> dict[str, dict[int, FinishedRun]]:
    """Finished runs below a folder: method -> seed -> run. Runs of one method differ in nothing but the seed.

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
    found = _with_stores(found)
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
    return FinishedRun(folder=folder, result=result, settings=settings)


def _with_stores(runs: list[FinishedRun]) -> list[FinishedRun]:
    """The runs with a name of the store they learned from: its own, with the answers' digest where names are shared."""
    answers = [str([value for name, value in run.settings.items() if _DIGEST.fullmatch(name)]) for run in runs]
    stems: dict[str, tuple[str, str]] = {}  # the first path and the teacher of the same answers
    for digest, run in zip(answers, runs, strict=True):
        stems.setdefault(digest, (Path(run.result["store"]["path"]).stem, str(run.settings.get("store.teacher"))))
    shared = Counter(stems.values())
    named = []
    for digest, run in zip(answers, runs, strict=True):
        stem = stems[digest][0]
        short = str(run.settings.get("store.digest"))[:6]
        store = stem if shared[stems[digest]] == 1 else f"{stem}@{short}"
        named.append(replace(run, settings={**run.settings, "store": store}))
    return named


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
    """Settings of the loss first, then of training, the share held out, the teacher, the store, the rest."""
    first = ("objective", "training", "validation.share", "store.teacher", "store")
    found = (place for place, name in enumerate(first) if setting == name or (place < 2 and setting.startswith(name)))
    return next(found, len(first)), setting


def _short(setting: str) -> str:
    return "val_share" if setting == "validation.share" else setting.rpartition(".")[2]


def choose_baselines(methods: Mapping[str, Mapping[int, FinishedRun]], name: str) -> dict[str, str | None]:
    """What each method is compared with: the same loss as that of the method ``name``, with its own student.

    Without a name that loss is hard labels, or else the first method's. Of several such methods it is the one that
    shares the most settings; None where the student has none. A method that is named is the baseline of all of its
    own student.

    Raises:
        ValueError: No such method.
    """
    if name and name not in methods:
        raise ValueError(unknown("method", name, methods))
    settings = {method: next(iter(runs.values())).settings for method, runs in methods.items()}
    hard = (method for method in methods if method.split(" ")[0] == "ce")
    chosen = name or next(hard, next(iter(methods)))
    loss = _of_loss(settings[chosen])
    candidates = [method for method in methods if _of_loss(settings[method]) == loss]
    found: dict[str, str | None] = {}
    for method, own in settings.items():
        same = [candidate for candidate in candidates if settings[candidate].get("student") == own.get("student")]
        if name in same:
            same = [name]
        found[method] = min(same, key=lambda candidate: _distance(own, settings[candidate]), default=None)
    return found


def _of_loss(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key.startswith("objective.")}


def _distance(a: Mapping[str, Any], b: Mapping[str, Any]) -> int:
    """In how many settings two methods differ, but for the loss and the seed."""
    keys = {key for key in {*a, *b} if not key.startswith("objective.")} - {"training.seed"}
    return sum(str(a.get(key)) != str(b.get(key)) for key in keys)
