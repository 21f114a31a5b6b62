"""How far something is, for people: a bar on a terminal, and in a log file a line a minute."""

import sys
import time
from typing import Any

from tqdm import tqdm

EVERY = 60.0  # seconds between the lines of a log file


class _Lines(tqdm):  # type: ignore[misc]
    """A bar that is written as whole lines; nothing of what ends before the first."""

    def __init__(self, every: float, **options: Any) -> None:
        self._every, self._next = every, time.monotonic() + every
        super().__init__(ascii=True, ncols=100, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if time.monotonic() >= self._next and msg != "":
            self._next = time.monotonic() + self._every
            self.fp.write(f"{msg or self}\n")
            self.fp.flush()
        return True

    def clear(self, nolock: bool = False) -> None:
        """There is no bar to take away."""

    def close(self) -> None:
        self._next = float("inf")
        self.disable = True


def progress_bar(total: int | None, unit: str, *, silent: bool = False, every: float = EVERY, **options: Any) -> Any:
    """A bar of tqdm on stderr.

    Args:
        total: Units in all.
        unit: What is counted.
        silent: Show nothing.
        every: Seconds between lines where stderr is no terminal.
        options: Of tqdm.
    """
    if silent or sys.stderr.isatty():
        return tqdm(total=total, unit=unit, disable=silent, **options)
    return _Lines(every, total=total, unit=unit, **options)
