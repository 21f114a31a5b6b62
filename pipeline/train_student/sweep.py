"""Many students: which runs a grid asks for, and processes that train them, each in its own folder.

A run that is complete is not trained again, one that was stopped goes on, one that fails is recorded and shown and
does not stop the others.
"""

import hashlib
import itertools
import multiprocessing
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from logitbank.pipeline.described import changed
from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.models import spell_model
from logitbank.pipeline.train_student.folder import ERROR, RESULT, read_json, write_json
from logitbank.pipeline.train_student.inputs import Inputs, open_inputs
from logitbank.pipeline.train_student.losses import takes_setting
from logitbank.pipeline.train_student.own_loss import load_losses, read_objective
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.stores import open_store

SWEEP = "sweep.json"
_UNSAFE = re.compile(r"[^A-Za-z0-9_.=+-]+")


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of a sweep."""

    folder: Path
    run: Run


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happens in a sweep: kind is "warning" or "epoch", then "skipped", "done" or "failed"; text says why."""

    kind: str
    run: str
    epoch: int = 0
    accuracy: float | None = None
    text: str = ""


def plan_runs(
    base: Run,
    out: Path,
    *,
    losses: Sequence[str],
    students: Sequence[str],
    grid: Mapping[str, Sequence[str]],
    seeds: int,
) -> list[Planned]:
    """Every loss with every student, every combination of settings that the loss knows, and every seed.

    Runs that are the same, such as temperature=4 and temperature=4.0, are planned once; no two share a folder.

    Raises:
        ValueError: A setting that no loss of the sweep knows, or a value that a loss refuses.
    """
    if seeds < 1:
        raise ValueError(f"--seeds is {seeds}; expected at least 1")
    grid = {**{key: [str(value)] for key, value in base.settings.items()}, **grid}
    own = {name: loss for text in losses for name, loss in load_losses(text).items()}
    num_classes = open_store(Path(base.store)).num_classes if own else None
    known = {loss: [key for key in grid if takes_setting(loss, key, grid[key][0], own)] for loss in losses}
    for key, values in grid.items():
        if not any(key in keys for keys in known.values()):
            read_objective(losses[0], {key: values[0]}, None)  # raises, with the known names
    named: dict[str, dict[str, Run]] = {}  # the folder's name -> what the run is -> the run
    for loss, student in itertools.product(losses, students):
        keys = known[loss]
        for values in itertools.product(*(grid[key] for key in keys)):
            settings = dict(zip(keys, values, strict=True))
            run = replace(base, loss=loss, student=spell_model(student), settings=settings)
            objective = run.objective(num_classes)  # a wrong value is answered before the first run
            for seed in range(seeds):
                same = named.setdefault(run_name(objective.name, run.student, settings, seed), {})
                same.setdefault(to_json([run.student, objective.settings]), changed(run, {"seed": seed}))
    return [
        Planned(folder=out / (name if len(same) == 1 else f"{name}-{_digest(what)}"), run=run)
        for name, same in named.items()
        for what, run in same.items()
    ]


def run_name(loss: str, student: str, settings: Mapping[str, str], seed: int) -> str:
    """``kd-resnet20-temperature=4-seed0``, where a number has one spelling; other runs may have the same name."""
    parts = [loss, student, *(f"{key}={_spelled(value)}" for key, value in settings.items()), f"seed{seed}"]
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
    on_event: Callable[[Event], None],
) -> None:
    """Trains what is not there yet, ``jobs`` students at a time.

    Args:
        planned: The runs.
        out: Folder of the sweep; ``sweep.json`` in it lists the runs.
        jobs: Processes.
        threads: CPU threads of each; 0 shares the cores out.
        on_event: Told what happens, in this process.
    """
    if jobs < 1:
        raise ValueError(f"--jobs is {jobs}; expected at least 1")
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / SWEEP, {"runs": [run.folder.name for run in planned]})
    threads = threads or max(1, (os.cpu_count() or 1) // jobs)
    for event in _events(planned, min(jobs, len(planned)), threads):
        on_event(event)


@dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    run: Planned | None = None


def _events(waiting: Sequence[Planned], jobs: int, threads: int) -> Iterator[Event]:
    """Hands runs to worker processes and passes on what they say; a dead worker is replaced."""
    queue = list(waiting)
    workers = [_start(threads) for _ in range(jobs)]
    try:
        for worker in workers:
            _give(worker, queue)
        while any(worker.run for worker in workers):
            busy = {worker.connection: worker for worker in workers if worker.run}
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                worker = busy[connection]
                assert worker.run is not None
                try:
                    event = Event(**connection.recv())
                except (EOFError, OSError):
                    worker.process.join()
                    error = _ended(worker.process.exitcode)
                    event = Event(kind="failed", run=worker.run.folder.name, text=error)
                    workers.remove(worker)
                    run, worker = worker.run, _start(threads)
                    worker.run = run
                    workers.append(worker)
                if event.kind not in ("warning", "epoch"):
                    assert worker.run is not None
                    if event.kind == "failed" and not (worker.run.folder / RESULT).exists():
                        worker.run.folder.mkdir(parents=True, exist_ok=True)
                        write_json(worker.run.folder / ERROR, {"error": event.text})
                    _give(worker, queue)
                yield event
    finally:
        for worker in workers:
            worker.connection.close()  # an idle worker ends by itself
            if worker.run is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _start(threads: int) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_work, args=(theirs, threads), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process=process, connection=ours)


def _ended(code: int | None) -> str:
    """What is known of a process that ended without a word: only a killed one may have lacked memory."""
    if code is not None and code < 0:
        return f"its process was killed by signal {-code}; perhaps out of memory"
    return f"its process ended with exit code {code}"


def _give(worker: _Worker, queue: list[Planned]) -> None:
    worker.run = queue.pop(0) if queue else None
    if worker.run is not None:
        worker.connection.send(worker.run)


def _work(connection: Connection, threads: int) -> None:
    """A worker: reads data and store once, and trains what it is given until nobody is there to give more."""
    import signal as signals

    import torch

    signals.signal(signals.SIGINT, signals.SIG_IGN)  # the parent ends us; the last whole epoch is kept
    signals.signal(signals.SIGTERM, lambda *_: sys.exit(1))
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    read: dict[tuple[str, str, str], Inputs] = {}
    while True:
        try:
            run: Planned = connection.recv()
        except (EOFError, OSError):
            return
        out = run.folder
        try:
            there = (out / RESULT).exists()
            key = (run.run.store, run.run.data, run.run.eval_data)
            if key not in read:
                read[key] = open_inputs(run.run)
            result = train_student(
                run.run,
                out,
                inputs=read[key],
                on_epoch=lambda record, name=out.name: connection.send(  # type: ignore[misc]
                    {"kind": "epoch", "run": name, "epoch": record.epoch}
                ),
                on_warning=lambda text, name=out.name: connection.send(  # type: ignore[misc]
                    {"kind": "warning", "run": name, "text": text}
                ),
            )
        except Exception as error:  # whatever it is, the other runs go on
            line = " ".join(str(error).split())
            kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
            connection.send({"kind": "failed", "run": out.name, "text": kind + line})
        else:
            kind = "skipped" if there else "done"
            connection.send({"kind": kind, "run": out.name, "accuracy": result.get("accuracy")})


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def total_epochs(planned: Iterable[Planned]) -> int:
    return sum(run.run.training.epochs for run in planned)


def errors_of(out: Path) -> dict[str, Any]:
    """Runs of a sweep that failed, with their errors."""
    found = {}
    for path in sorted(out.rglob(ERROR)):
        if not (path.parent / RESULT).exists():
            found[str(path.parent.relative_to(out))] = read_json(path).get("error")
    return found
