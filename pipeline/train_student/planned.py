"""One run of a sweep, for whoever trains it: a local process, another machine, Ray, or an engine of one's own."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from logitbank.pipeline.train_student.folder import ERROR, RESULT, InUse, write_json
from logitbank.pipeline.train_student.inputs import Inputs, open_inputs
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of a sweep: text and numbers, fit for another process.

    Attributes:
        folder: Where it is, or will be.
        run: Its settings.
        until: The epoch after which it stops, to go on later; 0: it is trained to its end.
    """

    folder: Path
    run: Run
    until: int = 0


@dataclass(frozen=True, kw_only=True)
class Event:
    """What happens in a sweep.

    Attributes:
        kind: "warning" or "epoch"; then how the run ended: "done", "skipped" (it was there), "failed", "elsewhere"
            (another process trains it), or "paused" (it stopped where it was to), of which "ended" says that it stays
            so.
        run: Name of the run's folder.
        epoch: That has ended, or after which the run stopped.
        accuracy: On the test data, of a run that is there.
        text: The warning, or why.
    """

    kind: str
    run: str
    epoch: int = 0
    accuracy: float | None = None
    text: str = ""


class OpenedOnce:
    """Opens what runs read once for all runs of the same store and data, in one process."""

    def __init__(self) -> None:
        self._opened: dict[tuple[str, ...], Inputs] = {}

    def __call__(self, run: Run) -> Inputs:
        """The run's inputs; raises as ``open_inputs``."""
        key = (run.store, run.data, run.eval_data, run.transform)
        if key not in self._opened:
            self._opened[key] = open_inputs(run)
        return self._opened[key]


def run_planned(
    planned: Planned,
    *,
    inputs: Callable[[Run], Inputs] = open_inputs,
    on_event: Callable[[Event], None] | None = None,
) -> Event:
    """Trains one planned run, or finds it: what any engine needs, in any process that sees the folders.

    It may be called again, anywhere and at the same time: a run that is complete is not trained again, one that was
    stopped goes on from its last whole epoch, one that another process trains is left to it.

    Args:
        planned: The run, of `plan_runs`.
        inputs: Opens what a run reads; a process that trains several gives one that opens things once.
        on_event: Called with warnings and epochs meanwhile.

    Returns:
        How it ended. A run that fails says why there, and in its folder; nothing is raised.
    """
    name, out = planned.folder.name, planned.folder
    say = on_event or (lambda _: None)
    there = (out / RESULT).exists()
    try:
        result = train_student(
            planned.run,
            out,
            inputs=inputs(planned.run),
            wait=False,
            until=planned.until,
            on_epoch=lambda record: say(Event(kind="epoch", run=name, epoch=record.epoch)),
            on_warning=lambda text: say(Event(kind="warning", run=name, text=text)),
        )
    except InUse as error:
        return Event(kind="elsewhere", run=name, text=str(error))
    except Exception as error:  # whatever it is, other runs go on
        line = " ".join(str(error).split())
        return record_failure(planned, line if isinstance(error, ValueError) else f"{type(error).__name__}: {line}")
    if not result:
        return Event(kind="paused", run=name, epoch=planned.until)
    return Event(kind="skipped" if there else "done", run=name, accuracy=result.get("accuracy"))


def record_failure(planned: Planned, text: str) -> Event:
    """Writes why a run failed into its folder, where it can be, unless the run is complete all the same."""
    if not (planned.folder / RESULT).exists():
        with contextlib.suppress(OSError, ValueError):  # such as a full disk, or a file in the folder's place
            planned.folder.mkdir(parents=True, exist_ok=True)
            write_json(planned.folder / ERROR, {"error": text})
    return Event(kind="failed", run=planned.folder.name, text=text)
