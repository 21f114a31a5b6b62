"""Successive halving (Jamieson and Talwalkar 2016): every point begins, and at each rung the best third goes on.

The rule is our own. Optuna's SuccessiveHalvingPruner judges each trial when it reports, by those that reported before
it: which ones go on depends on which process was faster, and what it has stopped never goes on. Here a rung waits for
all of its runs, so the same command ends the same with any number of processes, and after a kill.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from logitbank.pipeline.described import changed
from logitbank.pipeline.domains import BESIDE_TEACHER, METRICS
from logitbank.pipeline.fit.estimators import is_estimator
from logitbank.pipeline.train_student.folder import read_history
from logitbank.pipeline.train_student.planned import Event, Planned

FACTOR = 3  # one point of so many goes on, to so many times the epochs
Train = Callable[[Sequence[Planned]], Iterable[Event]]
Point = list[Planned]  # its seeds


def find_rungs(planned: Sequence[Planned]) -> list[int]:
    """Epochs after which runs are compared: a ninth and a third of all, and all.

    Raises:
        ValueError: Runs that cannot be stopped and compared on the way.
    """
    runs = [each.run for each in planned]
    for run in runs:
        if is_estimator(run.student):
            raise ValueError(
                f"--search halving stops students on the way, and {run.student} is fitted in one go;"
                " search with random:N"
            )
    of_all: dict[str, set[Any]] = {
        "--epochs": {run.training.epochs for run in runs},
        "--select": {run.training.select for run in runs},
        "--val-share": {run.val_share for run in runs},
    }
    for flag, values in of_all.items():
        if len(values) > 1:
            raise ValueError(f"{flag} has several values, and --search halving compares runs of the same; give it one")
    if not runs[0].val_share:
        raise ValueError("--search halving chooses by validation rows; pass --val-share 0.1")
    epochs = runs[0].training.epochs
    if epochs < 2:
        raise ValueError(f"--epochs is {epochs}, and --search halving stops runs before the end; expected at least 2")
    return sorted({max(1, epochs // FACTOR**2), max(1, epochs // FACTOR), epochs})


def train_by_halving(planned: Sequence[Planned], rungs: Sequence[int], train: Train) -> Iterator[Event]:
    """Trains all runs to the first rung, and the best points of each loss and student to the next.

    Args:
        planned: The runs.
        rungs: Of ``find_rungs``.
        train: Trains some runs, each until its ``until``, and tells how.

    Yields:
        What ``train`` tells, and "ended" of each run that stays at a rung.

    Raises:
        ValueError: Another process trains a run of a rung, so that nobody can choose yet.
    """
    groups, complete, failed = _groups(planned), set[str](), set[str]()
    for rung in rungs:
        last = rung == rungs[-1]
        runs = [each for points in groups for point in points for each in point]
        elsewhere = ""
        waiting = [each for each in runs if each.folder.name not in complete]
        for event in train([replace(each, until=0 if last else rung) for each in waiting]):
            complete |= {event.run} if event.kind in ("done", "skipped") else set()
            failed |= {event.run} if event.kind == "failed" else set()
            elsewhere = event.run if event.kind == "elsewhere" else elsewhere
            yield event
        if last:
            return
        if elsewhere:
            raise ValueError(f"{elsewhere} is being trained by another process; the same command goes on after that")
        groups = [_best(points, rung, failed) for points in groups]
        going_on = {each.folder.name for points in groups for point in points for each in point}
        for name in (each.folder.name for each in runs):
            if name not in going_on | complete | failed:
                yield Event(kind="ended", run=name, epoch=rung)


def epochs_of_halving(planned: Sequence[Planned], rungs: Sequence[int]) -> int:
    """Epochs trained in total, when no run fails."""
    total = 0
    for points in _groups(planned):
        count, before = len(points), 0
        for rung in rungs:
            total += count * len(points[0]) * (rung - before)
            count, before = _going_on(count), rung
    return total


def _groups(planned: Iterable[Planned]) -> list[list[Point]]:
    """The points of each loss and student, in the order in which they were drawn."""
    groups: dict[tuple[str, str], dict[str, Point]] = {}
    for each in planned:
        points = groups.setdefault((each.run.loss, each.run.student), {})
        points.setdefault(repr(changed(each.run, {"seed": 0})), []).append(each)
    return [list(points.values()) for points in groups.values()]


def _going_on(count: int) -> int:
    return max(1, count // FACTOR)


def _best(points: Sequence[Point], rung: int, failed: set[str]) -> list[Point]:
    """The best third, by the mean over seeds; a point with a failed seed does not go on, of equals the first drawn."""
    whole = [point for point in points if not any(each.folder.name in failed for each in point)]
    value = {id(point): sum(_value(each, rung) for each in point) / len(point) for point in whole}
    return sorted(whole, key=lambda point: -value[id(point)])[: _going_on(len(points))]


def _value(planned: Planned, rung: int) -> float:
    """What the epoch that would be kept at a rung measured on the validation rows; larger is better."""
    training, history = planned.run.training, read_history(planned.folder)[:rung]
    best = training.best_epoch(history)
    kept = history[-1 if best is None else best]
    value = kept.val_selected if training.selected_by else kept.val_accuracy
    if value is None or math.isnan(value):
        return -math.inf
    return value if {**METRICS, **BESIDE_TEACHER}[training.selected_by or "accuracy"] else -value
