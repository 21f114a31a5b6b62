"""Compares runs: mean and spread over seeds, and paired differences against a baseline.

Differences are paired by seed: a run and the baseline run of the same seed start from the same student and see the
examples in the same order, which takes most of the seed's noise out of the difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method over its seeds.

    Attributes:
        name: The method.
        num_seeds: n.
        mean, std: Of the test accuracy (sample standard deviation, n - 1).
        nll: Mean test NLL in nats.
        ece: Mean expected calibration error.
        seconds: Mean training time.
        difference: Mean accuracy difference to the baseline over shared seeds; None for the baseline.
        half_width: Half the 95 % confidence interval of the difference (paired t).
        nll_difference, nll_half_width: The same of the NLL.
    """

    name: str
    num_seeds: int
    mean: float
    std: float
    nll: float
    ece: float
    seconds: float
    difference: float | None = None
    half_width: float | None = None
    nll_difference: float | None = None
    nll_half_width: float | None = None

    @property
    def within_noise(self) -> bool:
        """True when the interval of the difference holds zero (or there is no interval)."""
        return _holds_zero(self.difference, self.half_width)

    @property
    def nll_within_noise(self) -> bool:
        """The same of the NLL."""
        return _holds_zero(self.nll_difference, self.nll_half_width)


def _holds_zero(difference: float | None, half: float | None) -> bool:
    return difference is None or half is None or abs(difference) <= half


def compare(runs: Mapping[str, Mapping[int, Mapping[str, Any]]], baseline: str) -> list[Comparison]:
    """Summaries in the order given.

    Args:
        runs: method -> seed -> result (with accuracy, nll, ece and seconds).
        baseline: The method that the others are compared with.
    """
    reference = runs[baseline]
    rows = []
    for name, by_seed in runs.items():
        accuracies = [float(result["accuracy"]) for result in by_seed.values()]
        shared = [seed for seed in by_seed if seed in reference]
        differences, nll_differences = (
            [float(by_seed[seed][key]) - float(reference[seed][key]) for seed in shared] for key in ("accuracy", "nll")
        )
        is_baseline = name == baseline or not differences
        rows.append(
            Comparison(
                name=name,
                num_seeds=len(by_seed),
                mean=_mean(accuracies),
                std=_std(accuracies),
                nll=_mean([float(result["nll"]) for result in by_seed.values()]),
                ece=_mean([float(result["ece"]) for result in by_seed.values()]),
                seconds=_mean([float(result["seconds"]) for result in by_seed.values()]),
                difference=None if is_baseline else _mean(differences),
                half_width=None if is_baseline else half_width(differences),
                nll_difference=None if is_baseline else _mean(nll_differences),
                nll_half_width=None if is_baseline else half_width(nll_differences),
            )
        )
    return rows


def half_width(differences: Sequence[float]) -> float | None:
    """Half the 95 % confidence interval of a mean (Student's t); None for fewer than two values."""
    freedom = len(differences) - 1
    if freedom < 1:
        return None
    from scipy.stats import t as student_t

    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, freedom))
    return quantile * _std(differences) / math.sqrt(len(differences))


def format_table(rows: Sequence[Comparison], *, baseline: str) -> str:
    """The comparison as text: one line a method, accuracies in percent, NLL in nats.

    Differences are paired by seed and come with their 95 % interval; a star marks those beyond noise.
    """
    width = max(len("method"), *(len(row.name) for row in rows))
    difference = f"against {baseline!r}"
    lines = [f"{'method':{width}}   n  accuracy % (std)  {difference:>24}  NLL     {difference:>24}  ECE     seconds"]
    for row in rows:
        accuracy = _difference(row.difference, row.half_width, scale=100, digits=2)
        nll = _difference(row.nll_difference, row.nll_half_width, scale=1, digits=4)
        lines.append(
            f"{row.name:{width}}  {row.num_seeds:2}  {100 * row.mean:6.2f} ({100 * row.std:4.2f})   {accuracy:>24}"
            f"  {row.nll:.4f}  {nll:>24}  {row.ece:.4f}  {row.seconds:7.2f}"
        )
    return "\n".join(lines)


def _difference(difference: float | None, half: float | None, *, scale: float, digits: int) -> str:
    if difference is None:
        return "baseline"
    if half is None:
        return f"{scale * difference:+.{digits}f} (one seed)"
    star = " " if _holds_zero(difference, half) else "*"
    return f"{scale * difference:+.{digits}f} +- {scale * half:.{digits}f}{star}"


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
