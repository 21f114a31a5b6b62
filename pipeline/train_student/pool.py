"""Processes that train the runs of a sweep, each one run at a time, and tell their parent what happens.

Our own, since an executor of concurrent.futures or of joblib's loky fails every run that is waiting or under way when
one of its processes is killed; here that costs the run of the killed process, and says by which signal.
"""

import multiprocessing
import os
import signal as signals
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from logitbank.pipeline.train_student.folder import ERROR, RESULT, InUse, write_json
from logitbank.pipeline.train_student.inputs import Inputs, open_inputs
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of a sweep."""

    folder: Path
    run: Run


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happens in a sweep; text says why.

    Its kind is "warning" or "epoch", then "skipped", "done", "failed", or "elsewhere": another process trains the run.
    """

    kind: str
    run: str
    epoch: int = 0
    accuracy: float | None = None
    text: str = ""


@dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    planned: Planned | None = None


def train_all(waiting: Sequence[Planned], jobs: int, threads: int) -> Iterator[Event]:
    """Hands runs to worker processes and passes on what they say; a dead worker is replaced."""
    queue = list(waiting)
    workers = [_start(threads) for _ in range(jobs)]
    try:
        for worker in workers:
            _give(worker, queue)
        while any(worker.planned for worker in workers):
            busy = {worker.connection: worker for worker in workers if worker.planned}
            for connection in wait(list(busy)):
                assert isinstance(connection, Connection)
                yield _heard(busy[connection], workers, queue, threads)
    finally:
        for worker in workers:
            worker.connection.close()  # an idle worker ends by itself
            if worker.planned is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _heard(worker: _Worker, workers: list[_Worker], queue: list[Planned], threads: int) -> Event:
    """What a worker says, or that it died; one that is ready is given its next run."""
    planned = worker.planned
    assert planned is not None
    try:
        event = Event(**worker.connection.recv())
    except (EOFError, OSError):
        worker.process.join()
        event = Event(kind="failed", run=planned.folder.name, text=_ended(worker.process.exitcode))
        workers[workers.index(worker)] = worker = _start(threads)
    if event.kind not in ("warning", "epoch"):
        if event.kind == "failed" and not (planned.folder / RESULT).exists():
            planned.folder.mkdir(parents=True, exist_ok=True)
            write_json(planned.folder / ERROR, {"error": event.text})
        _give(worker, queue)
    return event


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
    worker.planned = queue.pop(0) if queue else None
    if worker.planned is not None:
        worker.connection.send(worker.planned)


def _work(connection: Connection, threads: int) -> None:
    """A worker: reads data and store once, and trains what it is given until nobody is there to give more."""
    import torch

    signals.signal(signals.SIGINT, signals.SIG_IGN)  # the parent ends us; the last whole epoch is kept
    signals.signal(signals.SIGTERM, lambda *_: sys.exit(1))
    torch.set_num_threads(threads)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    read: dict[tuple[str, str, str], Inputs] = {}
    while True:
        try:
            planned: Planned = connection.recv()
        except (EOFError, OSError):
            return
        connection.send({"run": planned.folder.name, **_trained(planned, read, connection)})


def _trained(planned: Planned, read: dict[tuple[str, str, str], Inputs], connection: Connection) -> dict[str, Any]:
    """Trains one run; how it ended."""
    out, run, name = planned.folder, planned.run, planned.folder.name
    try:
        there = (out / RESULT).exists()
        key = (run.store, run.data, run.eval_data)
        if key not in read:
            read[key] = open_inputs(run)
        result = train_student(
            run,
            out,
            inputs=read[key],
            wait=False,
            on_epoch=lambda record: connection.send({"kind": "epoch", "run": name, "epoch": record.epoch}),
            on_warning=lambda text: connection.send({"kind": "warning", "run": name, "text": text}),
        )
    except InUse as error:
        return {"kind": "elsewhere", "text": str(error)}
    except Exception as error:  # whatever it is, the other runs go on
        line = " ".join(str(error).split())
        return {"kind": "failed", "text": line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}"}
    return {"kind": "skipped" if there else "done", "accuracy": result.get("accuracy")}


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
