"""What somebody who waits is told: soon, so that nobody wonders, and then every minute."""

import logging
import time

SOON_SECONDS = 1.0
EVERY_SECONDS = 60.0
_log = logging.getLogger("logitbank")


class Waiting:
    """Says that a process waits, now and then, for how long already, and what to do about it.

    Args:
        what: What it waits for.
        advice: What to do when it lasts.
        soon: Seconds before it is said for the first time.
    """

    def __init__(self, what: str, advice: str, *, soon: float = SOON_SECONDS) -> None:
        self._what, self._advice = what, advice
        self._since = time.monotonic()
        self._next = self._soon = soon

    @property
    def quiet_seconds(self) -> float:
        """How long until there is something to say."""
        return max(0.0, self._next - (time.monotonic() - self._since))

    def say(self) -> None:
        """Says it, when it is time."""
        if self.quiet_seconds:
            return
        passed = time.monotonic() - self._since
        lasting = "" if self._next == self._soon else f", for {passed / 60:.0f} min so far; {self._advice}"
        _log.warning("waiting for %s%s", self._what, lasting)
        self._next = passed + EVERY_SECONDS
