"""What decides the rounds. Imports nothing heavy: the command line's options are made of it."""

from collections.abc import Iterator
from dataclasses import dataclass

from logitbank.pipeline.described import Idle, check_settings, option
from logitbank.pipeline.domains import COUNT, SHARE, Number

AUTO = "auto"
_WEIGHT = Number(high=1.0)
_ROUNDS = Number(low=1, high=1000, whole=True)


@dataclass(frozen=True, kw_only=True)
class Generations:
    """Rounds of students that teach; each setting says what it is."""

    rounds: int = option(3, help="Generations of students", domain=_ROUNDS)
    anchor: float = option(
        0.0,
        help="Share of the first teacher in every later target, 0 to below 1: it keeps rounds from drifting",
        domain=SHARE,
    )
    label_weight: str = option(
        "", help="Share of the label in every target, 0 to 1, or auto: in closed form from out-of-fold answers"
    )
    stop_after: int = option(
        0, help="Stop after so many rounds whose out-of-fold NLL is no better; 0: never", domain=COUNT
    )

    def __post_init__(self) -> None:
        check_settings(self)
        if self.label_weight not in ("", AUTO):
            try:
                _WEIGHT.check("--label-weight", float(self.label_weight))
            except ValueError:
                raise ValueError(f"--label-weight is {self.label_weight!r}; expected 0 to 1, or auto") from None

    def idle(self) -> Iterator[Idle]:
        """Settings that do nothing beside the others."""
        if self.rounds == 1:
            yield ("anchor", "stop_after"), "--rounds is 1"
