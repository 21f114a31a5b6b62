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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from logitbank.pipeline.train_student.planned import Event, OpenedOnce, Planned, record_failure, run_planned


@dataclass(kw_only=True)
class _Worker:
    process: BaseProcess
    connection: Connection
    planned: Planned | None = None


@contextmanager
def pool(jobs: int, threads: int) -> Iterator[Callable[[Sequence[Planned]], Iterator[Event]]]:
    """Worker processes, and what hands runs to them and passes on what they say; a dead worker is replaced."""
    workers = [_start(threads) for _ in range(jobs)]
    try:
        yield partial(_train_all, workers=workers, threads=threads)
    finally:
        for worker in workers:
            worker.connection.close()  # an idle worker ends by itself
            if worker.planned is not None:
                worker.process.terminate()
        for worker in workers:
            worker.process.join()


def _train_all(waiting: Sequence[Planned], *, workers: list[_Worker], threads: int) -> Iterator[Event]:
    queue = list(waiting)
    workers[:] = [worker if worker.process.is_alive() else _start(threads) for worker in workers]
    for worker in workers:
        _give(worker, queue)
    while any(worker.planned for worker in workers):
        busy = {worker.connection: worker for worker in workers if worker.planned}
        for connection in wait(list(busy)):
            assert isinstance(connection, Connection)
            yield _heard(busy[connection], workers, queue, threads)


def _heard(worker: _Worker, workers: list[_Worker], queue: list[Planned], threads: int) -> Event:
    """What a worker says, or that it died; one that is ready is given its next run."""
    planned = worker.planned
    assert planned is not None
    try:
        event: Event = worker.connection.recv()
    except (EOFError, OSError):
        worker.process.join()
        event = record_failure(planned, _ended(worker.process.exitcode))
        workers[workers.index(worker)] = worker = _start(threads)
    if event.kind not in ("warning", "epoch"):
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
    inputs = OpenedOnce()
    while True:
        try:
            planned: Planned = connection.recv()
        except (EOFError, OSError):
            return
        connection.send(run_planned(planned, inputs=inputs, on_event=connection.send))


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent, however that ended."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
