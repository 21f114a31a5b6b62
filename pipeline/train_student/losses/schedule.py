"""When a term of an objective counts, and how much: a window of the run's steps, and a linear ramp within it.

Windows that meet share a bound, so that every step belongs to one of them: forward KL for the first half and reverse KL
for the rest is ``kd?ends_at=0.5:1 + reverse_kl?starts_at=0.5:1``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from .context import Step
from .domains import Option, Value, number

SCHEDULE: Mapping[str, Option] = {
    "starts_at": number(0.0, "[0, 1)"),
    "ends_at": number(1.0, "(0, 1]"),
    "ramp_from": number(1.0, "[0, 1e6]"),
    "ramp_to": number(1.0, "[0, 1e6]"),
}
"""Settings of every term."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """A factor for each step.

    Attributes:
        starts_at, ends_at: Shares of the run's steps between which the term counts; outside, its factor is 0.
        ramp_from, ramp_to: Factor at the first and at the last of these steps; linear in between.
    """

    starts_at: float = 0.0
    ends_at: float = 1.0
    ramp_from: float = 1.0
    ramp_to: float = 1.0

    def window(self, num_steps: int) -> tuple[int, int]:
        """The first of a run's steps in which the term counts, and the first behind them."""
        return round(self.starts_at * num_steps), round(self.ends_at * num_steps)

    def refuse_none(self, name: str, num_steps: int) -> None:
        """Raises ValueError when the term counts in none of a run's steps."""
        first, behind = self.window(num_steps)
        if first >= behind or (behind - first == 1 and not self.ramp_from):
            raise ValueError(
                f"{name} counts in none of this run's {num_steps} steps, by its "
                + ", ".join(f"{key}={value:g}" for key, value in self.settings().items())
                + "; let it count for a larger share of them, or train for more --epochs"
            )

    def factor(self, step: Step) -> float:
        """What the term's weight is multiplied by in a step."""
        first, behind = self.window(step.num_steps)
        if not first <= step.step < behind:
            return 0.0
        along = (step.step - first) / max(behind - 1 - first, 1)
        return self.ramp_from + (self.ramp_to - self.ramp_from) * along

    def check(self, name: str) -> None:
        """Raises ValueError when the term never counts, or its ramp is level."""
        if self.starts_at >= self.ends_at:
            raise ValueError(
                f"{name} starts at {self.starts_at:g} of the steps and ends at {self.ends_at:g}; expected starts_at"
                " below ends_at"
            )
        if self.ramp_from == self.ramp_to != 1.0:
            raise ValueError(
                f"ramp_from and ramp_to of {name} are both {self.ramp_to:g}, which is no ramp; change its weight"
            )

    def settings(self) -> dict[str, Value]:
        """What is not as by default."""
        return {key: value for key, value in asdict(self).items() if value != SCHEDULE[key].default}


def refuse_gaps(schedules: Iterable[Schedule]) -> None:
    """Raises ValueError when no term counts in a part of the run, which would then teach nothing."""
    reached = 0.0
    for schedule in sorted(schedules, key=lambda each: each.starts_at):
        if schedule.starts_at > reached:
            break
        reached = max(reached, schedule.ends_at)
    if reached < 1.0:
        raise ValueError(
            f"no term counts from {reached:g} of the steps on; let one start there, as NAME?starts_at={reached:g}:1"
        )
