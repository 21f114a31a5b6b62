"""Many students: which runs a grid asks for, each in its own folder.

A run that is complete is not trained again, one that was stopped goes on, one that fails is recorded and shown and
does not stop the others.
"""

import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from logitbank.pipeline.described import changed, settings_of
from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.fit.estimators import is_estimator, read_estimator
from logitbank.pipeline.models import spell_model
from logitbank.pipeline.processes.ray_cluster import Resources
from logitbank.pipeline.train_student.folder import ERROR, RESULT, read_json, write_json
from logitbank.pipeline.train_student.halving import epochs_of_halving, train_by_halving
from logitbank.pipeline.train_student.losses import check_fitted, takes_setting
from logitbank.pipeline.train_student.on_ray import train_on_ray
from logitbank.pipeline.train_student.own_loss import load_losses, read_objective
from logitbank.pipeline.train_student.planned import Event, Planned
from logitbank.pipeline.train_student.points import Point
from logitbank.pipeline.train_student.pool import pool
from logitbank.pipeline.train_student.spec import OF_NETWORKS, Run
from logitbank.stores import local_store, open_store

SWEEP = "sweep.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.=+-]+")


def plan_runs(
    base: Run,
    out: Path,
    *,
    losses: Sequence[str],
    students: Sequence[str],
    grid: Mapping[str, Sequence[str]],
    seeds: int,
    points: Sequence[Point] = (Point(),),
) -> list[Planned]:
    """Every loss with every student, every combination of settings that the loss knows, every point, and every seed.

    Runs that are the same, such as temperature=4 and temperature=4.0, are planned once; no two share a folder.

    Args:
        base: What all runs have in common.
        out: Folder of the sweep.
        losses: As `Run.loss` takes them.
        students: As `Run.student` takes them.
        grid: Values, as text, of settings of the losses.
        seeds: Runs of each, with seeds 0, 1, ...
        points: Values of other options, which go together.

    Raises:
        ValueError: A setting that no loss of the sweep knows, or a value that a loss refuses.
    """
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}; expected at least 1")
    grid = {**{key: [str(value)] for key, value in base.settings.items()}, **grid}
    own = {name: loss for text in losses for name, loss in load_losses(text).items()}
    num_classes = open_store(local_store(Path(base.store))).num_classes if own else None
    texts = {**grid, **{key: [value] for key, value in points[0].settings.items()}}
    known = {loss: [key for key in texts if takes_setting(loss, key, texts[key][0], own)] for loss in losses}
    for key, values in texts.items():
        if not any(key in keys for keys in known.values()):
            read_objective(losses[0], {key: values[0]}, None)  # raises, with the known names
    named: dict[str, dict[str, Run]] = {}  # the folder's name -> what the run is -> the run
    for loss, student, point in itertools.product(losses, students, points):
        keys = [key for key in known[loss] if key not in point.settings]
        drawn = {key: point.settings[key] for key in known[loss] if key in point.settings}
        for values in itertools.product(*(grid[key] for key in keys)):
            settings = {**dict(zip(keys, values, strict=True)), **drawn}
            start, options = _for_student(base, point.options, student, students)
            run = replace(start, loss=loss, student=spell_model(student), settings=settings)
            run = changed(run, options)  # a wrong value is answered before the first run
            objective, told = run.objective(num_classes), {**settings, **options}
            if is_estimator(student):
                check_fitted(objective, read_estimator(student)[1].fits, student)
            for seed in range(seeds):
                same = named.setdefault(run_name(objective.name, run.student, told, seed), {})
                what = to_json([run.student, objective.settings, *([options] if options else [])])
                same.setdefault(what, changed(run, {"seed": seed}))
    return [
        Planned(folder=out / (name if len(same) == 1 else f"{name}-{_digest(what)}"), run=run)
        for name, same in named.items()
        for what, run in same.items()
    ]


def _for_student(
    base: Run, options: Mapping[str, Any], student: str, students: Sequence[str]
) -> tuple[Run, Mapping[str, Any]]:
    """The run and a point without the settings of networks, where the student is none and others of the sweep are."""
    if not is_estimator(student) or all(map(is_estimator, students)):
        return base, options
    plain = {each.name: each.default for each in settings_of(Run) if each.name in OF_NETWORKS}
    return changed(base, plain), {name: value for name, value in options.items() if name not in OF_NETWORKS}


def run_name(loss: str, student: str, settings: Mapping[str, Any], seed: int) -> str:
    """``kd-resnet20-temperature=4-seed0``, where a number has one spelling; other runs may have the same name."""
    parts = [loss, student, *(f"{key}={_spelled(str(value))}" for key, value in settings.items()), f"seed{seed}"]
    return "-".join(_UNSAFE.sub("_", part) for part in parts)


def _spelled(value: str) -> str:
    try:
        return repr(float(value)).removesuffix(".0")
    except ValueError:
        return {"true": "1", "yes": "1", "false": "0", "no": "0"}.get(value.lower(), value)


def _digest(what: str) -> str:
    return hashlib.sha256(what.encode()).hexdigest()[:8]


def run_sweep(
    planned: Sequence[Planned],
    out: Path,
    *,
    jobs: int,
    threads: int,
    ray: str = "",
    gpus_per_run: float | None = None,
    rungs: Sequence[int] = (),
    on_event: Callable[[Event], None],
) -> None:
    """Trains what is not there yet, ``jobs`` students at a time.

    Args:
        planned: The runs.
        out: Folder of the sweep; ``sweep.json`` in it lists the runs, and after which epoch some ended at a rung.
        jobs: Processes of this machine.
        threads: CPU threads of each; 0 shares the cores out, and is 1 on a Ray cluster.
        ray: Instead of ``jobs``: the address of a Ray cluster, or local.
        gpus_per_run: Of the cluster, which may be a part of one; None is one where there are any.
        rungs: Epochs after which the best go on, as ``find_rungs`` has them; without, all runs are trained to the end.
        on_event: Told what happens, in this process.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; expected at least 1")
    out.mkdir(parents=True, exist_ok=True)
    listed = {"runs": [run.folder.name for run in planned], **({"rungs": list(rungs)} if rungs else {})}
    write_json(out / SWEEP, listed)
    share = threads or max(1, (os.cpu_count() or 1) // jobs)
    on_cluster = partial(train_on_ray, address=ray, resources=Resources(cpus=max(1, threads), gpus=gpus_per_run))
    ended: dict[str, int] = {}
    with nullcontext(on_cluster) if ray else pool(min(jobs, len(planned)), share) as train:
        for event in train_by_halving(planned, rungs, train) if rungs else train(planned):
            if event.kind == "ended":
                ended[event.run] = event.epoch
                write_json(out / SWEEP, {**listed, "ended": ended})
            on_event(event)


def total_epochs(planned: Sequence[Planned], rungs: Sequence[int] = ()) -> int:
    return epochs_of_halving(planned, rungs) if rungs else sum(each.run.num_epochs for each in planned)


def ended_early(out: Path) -> dict[int, int]:
    """Runs of sweeps that ended at a rung: how many, by the epoch after which they did."""
    found: Counter[int] = Counter()
    for path in sorted(out.rglob(SWEEP)):
        ended = read_json(path).get("ended", {})
        found.update(epoch for name, epoch in ended.items() if not (path.parent / name / RESULT).exists())
    return dict(sorted(found.items()))


def errors_of(out: Path) -> dict[str, Any]:
    """Runs of a sweep that failed, with their errors."""
    found = {}
    for path in sorted(out.rglob(ERROR)):
        if not (path.parent / RESULT).exists():
            found[str(path.parent.relative_to(out))] = read_json(path).get("error")
    return found
