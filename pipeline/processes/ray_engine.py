"""Processes that Ray starts, on one machine or many: each holds one object, made there, and is sent tasks.

Only descriptions are sent: what cannot be pickled, or is large, is made of them in the process, once. A process that
dies is replaced, and its task is begun anew by another one, until it has cost so many that it is given up.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, Literal

from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.processes.ray_cluster import Resources, connected, room_for
from logitbank.stores.waiting import Waiting

TRIES = 5  # processes that one task may cost


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What is heard of a task.

    Attributes:
        kind: "said", any number of times, then "returned"; "lost" when its process died and another one will begin it
            anew, or "given up" when it has cost too many.
        task: Which one.
        value: What was said or returned, or why the process died.
    """

    kind: Literal["said", "returned", "lost", "given up"]
    task: Any
    value: Any = None


class _Holder:
    """Lives in a process of Ray."""

    def __init__(self, folder: str, make: Callable[..., Any], rank: Rank, arguments: tuple[Any, ...]) -> None:
        self._folder, self._make, self._rank, self._arguments = folder, make, rank, arguments
        self._held: Any = None

    def ready(self) -> None:
        """Answers as soon as the process is there."""

    def call(self, method: str, task: Any) -> Iterator[tuple[str, Any]]:
        """What a method says and returns; it runs in another thread, so that what it says is heard at once."""
        heard: SimpleQueue[tuple[str, Any]] = SimpleQueue()

        def work() -> None:
            try:
                if self._held is None:
                    os.chdir(self._folder)  # relative paths are the caller's
                    self._held = self._make(self._rank, *self._arguments)
                said = getattr(self._held, method)(task, lambda value: heard.put(("said", value)))
                heard.put(("returned", said))
            except BaseException as error:
                heard.put(("raised", error))

        Thread(target=work, daemon=True).start()
        kind = "said"
        while kind == "said":
            kind, value = heard.get()
            if kind == "raised":
                raise value
            yield kind, value


@dataclass(kw_only=True)
class _Task:
    given: Any
    lost: int = 0


@dataclass(kw_only=True)
class _Process:
    rank: Rank
    actor: Any
    coming: Any  # until it is there
    stream: Any = None  # while it works
    task: _Task | None = None

    @property
    def awaited(self) -> Any:
        """What is to be heard of it next."""
        return self.coming if self.coming is not None else self.stream


class Crew(AbstractContextManager["Crew"]):
    """Processes of a Ray cluster; leaving it ends them.

    Args:
        address: "local" starts Ray on this machine; else HOST:PORT of a cluster that this machine belongs to, or auto.
        resources: What each process takes; there are as many as find room.
        make: Makes what a process holds: ``make(rank, *arguments)``, with its number of how many. Its methods are
            called as ``method(task, say)``.
        arguments: Descriptions.
        most: Processes at most.

    Raises:
        ValueError: Ray is not installed, does not answer, or has not the resources.
    """

    def __init__(
        self,
        address: str,
        resources: Resources,
        make: Callable[..., Any],
        arguments: tuple[Any, ...] = (),
        *,
        most: int | None = None,
    ) -> None:
        self._ray = connected(address)
        try:
            machines = [machine["Resources"] for machine in self._ray.nodes() if machine["Alive"]]
            room, gpus = room_for(machines, resources, address)
            count = min(room, most or room)
            self._actors = self._ray.remote(num_cpus=resources.cpus, num_gpus=gpus)(_Holder)
            self._sent = str(Path.cwd()), make, arguments
            self._failed_starts = 0
            self._processes = [self._start(Rank(number=number, count=count)) for number in range(count)]
        except BaseException:
            self._ray.shutdown()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()

    def one(self, method: str) -> Any:
        """What a method returns, in any process."""
        for heard in self.each(method, [None]):
            if heard.kind == "given up":
                raise ValueError(gave_up(heard))
            if heard.kind == "returned":
                found = heard.value
        return found

    def each(self, method: str, tasks: Iterable[Any]) -> Iterator[Heard]:
        """Gives every task to some process, and passes on what is heard of them.

        Raises:
            Exception: That of a task; the others are left alone.
        """
        waiting = deque(_Task(given=each) for each in tasks)
        idle = Waiting("room on the Ray cluster", "others use it, or machines are gone: see `ray status`", soon=60.0)
        while waiting or any(process.task for process in self._processes):
            for process in self._processes:
                if waiting and process.awaited is None:
                    process.task = waiting.popleft()
                    sent = process.actor.call.options(num_returns="streaming")
                    process.stream = sent.remote(method, process.task.given)
            busy = [process for process in self._processes if process.awaited is not None]
            found, _ = self._ray.wait([process.awaited for process in busy], timeout=1.0)
            if not found:
                if not any(process.task for process in busy):
                    idle.say()
                continue
            process = next(process for process in busy if process.awaited == found[0])
            self._processes.remove(process)  # to the end: the others are heard as well
            self._processes.append(process)
            task = process.task
            heard = self._hear(process)
            if heard is not None and heard.kind == "lost" and task is not None:
                waiting.appendleft(task)
            if heard is not None:
                yield heard

    def _hear(self, process: _Process) -> Heard | None:
        """The next of a process; None when it was only about to begin."""
        errors, task = self._ray.exceptions, process.task
        try:
            if process.coming is not None:
                self._ray.get(process.coming)
                process.coming, self._failed_starts = None, 0
                return None
            kind, value = self._ray.get(next(process.stream))
        except errors.RayTaskError as error:
            raise error.cause from None
        except (errors.RayActorError, errors.OutOfMemoryError) as error:
            return self._replace(process, " ".join(str(error).split("Worker exit detail:")[-1].split())[:200])
        assert task is not None
        if kind == "returned":
            process.stream = process.task = None
        return Heard(kind=kind, task=task.given, value=value)

    def _replace(self, process: _Process, reason: str) -> Heard | None:
        """Another process for one that died; what is heard of its task."""
        self._ray.kill(process.actor)  # one that only cannot be reached
        if process.task is None:
            self._failed_starts += 1
            if self._failed_starts >= TRIES:
                raise ValueError(f"processes of Ray do not start: {reason}; is logitbank installed on every machine?")
        self._processes[self._processes.index(process)] = self._start(process.rank)
        if process.task is None:
            return None
        process.task.lost += 1
        kind: Literal["lost", "given up"] = "lost" if process.task.lost < TRIES else "given up"
        return Heard(kind=kind, task=process.task.given, value=reason)

    def _start(self, rank: Rank) -> _Process:
        folder, make, arguments = self._sent
        actor = self._actors.remote(folder, make, rank, arguments)
        return _Process(rank=rank, actor=actor, coming=actor.ready.remote())


def gave_up(heard: Heard) -> str:
    """Why a task was given up, in words."""
    return f"{TRIES} processes of Ray died of it, one after the other: {heard.value}"
