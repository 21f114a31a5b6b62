"""The points of a sweep: which values its options have together; every one with every other, or drawn at random.

``0.1,0.01`` lists values, ``1e-4..1e-1`` is a range. A search draws each point by Optuna's random sampler, ranges of
a factor of ten or more in their logarithm: the same for one seed, and the first of more points are the same.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from logitbank.pipeline.described import Setting, read_value, settings_of
from logitbank.pipeline.train_student.spec import Run

RANGE = ".."
_DECADE = 10.0
_LEAST = {"random": 1, "halving": 3}  # points
_DIGITS = 4  # of a drawn number: enough to search, and short in the names of folders
_SETTINGS = {setting.name: setting for setting in settings_of(Run)}


@dataclass(frozen=True, kw_only=True)
class Point:
    """Values by name.

    Attributes:
        options: Of settings of the run.
        settings: Of settings of the loss, as text.
    """

    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Search:
    """How many points are drawn, and with which seed; whether all of them are trained to the end."""

    count: int
    seed: int = 0
    halving: bool = False


def read_search(text: str) -> Search:
    """From ``random:20``, ``halving:27``, or either as ``random:20:1``, where the second number is the seed.

    Raises:
        ValueError: Anything else.
    """
    kind, *numbers = text.split(":")
    whole = 1 <= len(numbers) <= 2 and all(number.isdecimal() and len(number) < 7 for number in numbers)
    if kind not in _LEAST or not whole:
        raise ValueError(f"--search is {text!r}; expected random:N or halving:N, such as random:20; :SEED may follow")
    count, *seed = map(int, numbers)
    if count < _LEAST[kind]:
        raise ValueError(f"--search is {text!r}; expected at least {_LEAST[kind]} of {kind}:N")
    return Search(count=count, seed=seed[0] if seed else 0, halving=kind == "halving")


def every_point(several: Mapping[str, str]) -> list[Point]:
    """Every value of the options with every other.

    Args:
        several: Texts of options of a run, by name.

    Raises:
        ValueError: A range, or a value outside its option's domain.
    """
    values = {name: _values(_SETTINGS[name], text) for name, text in several.items()}
    return [Point(options=dict(zip(values, point, strict=True))) for point in itertools.product(*values.values())]


def drawn_points(search: Search, several: Mapping[str, str], grid: Mapping[str, str]) -> list[Point]:
    """Points drawn from lists and ranges.

    Args:
        search: How many.
        several: Texts of options of a run, by name.
        grid: The same of settings of losses.

    Raises:
        ValueError: Nothing to draw from, a value outside its option's domain, or Optuna is not installed.
    """
    if not several and not grid:
        raise ValueError("--search has nothing to draw from; give an option a list or a range, such as --lr 1e-4..1e-1")
    try:
        import optuna
    except ImportError as error:
        raise ValueError("--search needs another package: pip install 'logitbank[optuna]'") from error
    from_ = {name: _distribution(_SETTINGS[name], text) for name, text in several.items()}
    from_ |= {f"set {name}": _of_loss(name, text) for name, text in grid.items()}
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=search.seed))
    points = []
    for _ in range(search.count):
        drawn = {name: _short(value) for name, value in study.ask(from_).params.items()}
        points.append(
            Point(
                options={name: drawn[name] for name in several},
                settings={name: str(drawn[f"set {name}"]) for name in grid},
            )
        )
    return points


def _values(setting: Setting, text: str) -> list[Any]:
    if RANGE in text:
        raise ValueError(f"{setting.flag} is the range {text}; say how many points to draw of it: --search random:20")
    return list(dict.fromkeys(read_value(setting, part.strip()) for part in text.split(",")))


def _distribution(setting: Setting, text: str) -> Any:
    if RANGE not in text:
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(_values(setting, text))
    ends = [read_value(setting, part.strip()) for part in _ends(setting.flag, text)]
    if isinstance(ends[0], str):
        raise ValueError(f"{setting.flag} is the range {text}; expected words with commas between")
    return _between(setting.flag, text, *ends)


def _of_loss(name: str, text: str) -> Any:
    from optuna.distributions import CategoricalDistribution

    if RANGE not in text:
        return CategoricalDistribution(text.split(","))
    try:
        low, high = map(float, _ends(f"--set {name}", text))
    except ValueError:
        raise ValueError(f"--set {name} is {text!r}; expected a range of numbers, such as 1..8") from None
    return _between(f"--set {name}", text, low, high)


def _ends(option: str, text: str) -> Sequence[str]:
    ends = text.split(RANGE)
    if len(ends) != 2 or "," in text:
        raise ValueError(f"{option} is {text!r}; expected a range LOW..HIGH, or values with commas between")
    return ends


def _between(option: str, text: str, low: float, high: float) -> Any:
    from optuna.distributions import FloatDistribution, IntDistribution

    if not low < high:
        raise ValueError(f"{option} is the range {text}; expected LOW below HIGH")
    kind: Any = IntDistribution if isinstance(low, int) else FloatDistribution
    return kind(low, high, log=low > 0 and high / low >= _DECADE)


def _short(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
