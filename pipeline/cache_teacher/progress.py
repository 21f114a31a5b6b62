"""What a pass says while it runs: one bar for people, or one JSON object a line for machines."""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.processes.bar import progress_bar
from logitbank.stores import Cell


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a pass is: rows answered so far and in all, over every view and every process.

    Attributes:
        done: Rows that the store holds.
        total: Rows that it will hold.
        rows: Rows of the block that was just written; 0 between two blocks.
        under_way: Rows that this process has answered and not yet written.
        accuracy: Over the labelled rows that this process has answered; None before the first.
    """

    done: int
    total: int
    rows: int
    under_way: int = 0
    accuracy: float | None = None


class Tally:
    """How far a pass is, as who runs it knows it.

    Args:
        left: Rows of each cell that is not written yet.
        total: Rows in all.
        on_progress: Told after each batch and each block.
    """

    def __init__(self, left: Mapping[Cell, int], total: int, on_progress: Callable[[Progress], None] | None) -> None:
        self._left, self._total, self._on_progress = dict(left), total, on_progress
        self._under_way: Counter[Cell] = Counter()
        self._correct, self._labelled = 0, 0

    def answered(self, cell: Cell, rows: int) -> None:
        """The teacher has answered some more rows of a cell, which are not written yet."""
        self._under_way[cell] += rows
        self._say(0)

    def add(self, cell: Cell, correct: int, labelled: int) -> None:
        """A cell was written."""
        self._correct, self._labelled = self._correct + correct, self._labelled + labelled
        del self._under_way[cell]
        self._say(self._left.pop(cell, 0))

    def found(self, cell: Cell) -> None:
        """A cell is there; another process has written it."""
        self._left.pop(cell, None)

    def lost(self, cell: Cell) -> None:
        """A cell has to be begun anew."""
        del self._under_way[cell]

    def _say(self, rows: int) -> None:
        if self._on_progress is not None:
            done = self._total - sum(self._left.values())
            accuracy = self._correct / self._labelled if self._labelled else None
            ahead = min(self._under_way.total(), self._total - done)
            self._on_progress(Progress(done=done, total=self._total, rows=rows, under_way=ahead, accuracy=accuracy))


class ProgressDisplay:
    """A progress bar with rows/s, time left and running accuracy; a line a minute when stderr is no terminal.

    Args:
        as_json: Print JSON lines instead: ``{"event": "progress", ...}``.
        quiet: No bar (ranks other than 0).
        say: Prints a line.
    """

    def __init__(self, *, as_json: bool, quiet: bool, say: Callable[[str], None]) -> None:
        self.as_json, self.say = as_json, say
        self.bar = progress_bar(None, "row", silent=quiet or as_json, unit_scale=True)
        self.started, self.answered = time.perf_counter(), 0

    def __enter__(self) -> "ProgressDisplay":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.close()

    def __call__(self, progress: Progress) -> None:
        """Called after each batch and each block."""
        self.answered += progress.rows
        self.bar.total = progress.total
        if progress.accuracy is not None:
            self.bar.set_postfix(accuracy=f"{progress.accuracy:.4f}", refresh=False)
        self.bar.update(max(progress.done + progress.under_way - self.bar.n, 0))
        if self.as_json and progress.rows:
            speed = self.answered / max(time.perf_counter() - self.started, 1e-9)
            self.event(
                "progress",
                done=progress.done,
                total=progress.total,
                rows_per_second=round(speed, 1),
                seconds_left=round((progress.total - progress.done) / speed, 1),
                accuracy=progress.accuracy,
            )

    def event(self, name: str, **facts: Any) -> None:
        """One JSON line, when JSON is wanted."""
        if self.as_json:
            self.say(to_json({"event": name, **facts}))
