"""What a pass says while it runs: one bar for people, or one JSON object a line for machines."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.processes.bar import progress_bar


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


class ProgressDisplay:
    """A progress bar with rows/s, time left and running accuracy; a line a minute when stderr is no terminal.

    Args:
        total: Rows in all.
        as_json: Print JSON lines instead: ``{"event": "progress", ...}``.
        quiet: No bar (ranks other than 0).
        say: Prints a line.
    """

    def __init__(self, total: int, *, as_json: bool, quiet: bool, say: Callable[[str], None]) -> None:
        self.as_json, self.say = as_json, say
        self.bar = progress_bar(total, "row", silent=quiet or as_json, unit_scale=True)
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
