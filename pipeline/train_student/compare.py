"""Compares runs: mean and spread over seeds, and paired differences, each against a baseline of the same student.

Differences are paired by seed: a run and the baseline run of the same seed start from the same student and see the
examples in the same order, which takes most of the seed's noise out of the difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from logitbank.pipeline.domains import BESIDE_TEACHER, METRICS, WHERE_TEACHER_ERRS

CONFIDENCE = 0.95
PERCENT = (
    "accuracy",
    "top5_accuracy",
    "balanced_accuracy",
    "agreement",
    *WHERE_TEACHER_ERRS,
)  # shares that people read in percent
_EQUAL = 1e-12  # differences that differ by less are the same number, rounded


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One method over its seeds.

    Attributes:
        name: The method.
        num_seeds: n.
        mean, std: Of the metric (sample standard deviation, n - 1).
        nll: Mean test NLL in nats.
        ece: Mean expected calibration error.
        seconds: Mean training time.
        baseline: The method that it is compared with, perhaps itself; None when there is none.
        num_pairs: Seeds that it shares with the baseline.
        difference: Mean difference of the metric to the baseline over shared seeds; None for the baseline.
        half_width: Half the 95 % confidence interval of the difference (paired t); 0 when all differences are equal,
            which says nothing of other seeds; None for fewer than two.
        nll_difference, nll_half_width: The same of the NLL.
        metric: What is compared: a measure on the test data, or agreement with the teacher, or KL to it.
    """

    name: str
    num_seeds: int
    mean: float
    std: float
    nll: float
    ece: float
    seconds: float
    baseline: str | None = None
    num_pairs: int = 0
    difference: float | None = None
    half_width: float | None = None
    nll_difference: float | None = None
    nll_half_width: float | None = None
    metric: str = "accuracy"

    @property
    def scale(self) -> int:
        """The metric is shown times this."""
        return 100 if self.metric in PERCENT else 1

    @property
    def digits(self) -> int:
        """The metric is shown with so many."""
        return 2 if self.metric in PERCENT else 4

    @property
    def heading(self) -> str:
        """The metric and its unit."""
        return f"{self.metric} %" if self.metric in PERCENT else self.metric

    @property
    def higher_is_better(self) -> bool:
        return {**METRICS, **BESIDE_TEACHER, **WHERE_TEACHER_ERRS}[self.metric]

    @property
    def within_noise(self) -> bool:
        """True unless there is an interval of the difference, and it leaves out zero."""
        return not _leaves_out_zero(self.difference, self.half_width)

    @property
    def nll_within_noise(self) -> bool:
        """The same of the NLL."""
        return not _leaves_out_zero(self.nll_difference, self.nll_half_width)

    def difference_text(self, *, nll: bool = False) -> str:
        """The difference with its interval, a star behind one beyond noise; or why there is none."""
        difference, half = (self.nll_difference, self.nll_half_width) if nll else (self.difference, self.half_width)
        scale, digits = (1, 4) if nll else (self.scale, self.digits)
        if difference is None:
            if self.baseline is None:
                return "no baseline"
            return "baseline" if self.baseline == self.name else "no shared seed"
        text = f"{scale * difference:+.{digits}f}"
        if half is None:
            return f"{text} (one pair)"
        if half == 0:
            return f"{text} (identical)"
        return f"{text} +- {scale * half:.{digits}f}{'*' if _leaves_out_zero(difference, half) else ' '}"


def _leaves_out_zero(difference: float | None, half: float | None) -> bool:
    return difference is not None and half is not None and 0 < half < abs(difference) < math.inf


def compare(
    runs: Mapping[str, Mapping[int, Mapping[str, Any]]],
    baselines: str | Mapping[str, str | None],
    metric: str = "accuracy",
) -> list[Comparison]:
    """Summaries in the order given.

    Args:
        runs: method -> seed -> result (with nll, ece, seconds and the metric).
        baselines: The method that each is compared with, or one for all.
        metric: What is compared beside the NLL.

    Raises:
        ValueError: A result without the metric.
    """
    rows = []
    for name, by_seed in runs.items():
        baseline = baselines if isinstance(baselines, str) else baselines[name]
        reference = {} if baseline in (None, name) else runs[str(baseline)]
        shared = [seed for seed in by_seed if seed in reference]
        differences, nll_differences = (
            [_value(by_seed[seed], key, name) - _value(reference[seed], key, str(baseline)) for seed in shared]
            for key in (metric, "nll")
        )
        values = [_value(result, metric, name) for result in by_seed.values()]
        rows.append(
            Comparison(
                name=name,
                num_seeds=len(by_seed),
                mean=_mean(values),
                std=_std(values),
                nll=_mean([float(result["nll"]) for result in by_seed.values()]),
                ece=_mean([float(result["ece"]) for result in by_seed.values()]),
                seconds=_mean([float(result["seconds"]) for result in by_seed.values()]),
                baseline=baseline,
                num_pairs=len(shared),
                difference=_mean(differences) if shared else None,
                half_width=half_width(differences),
                nll_difference=_mean(nll_differences) if shared else None,
                nll_half_width=half_width(nll_differences),
                metric=metric,
            )
        )
    return rows


def unlike(rows: Sequence[Comparison], runs: Mapping[str, Mapping[int, Mapping[str, Any]]]) -> list[str]:
    """A line for each comparison with a baseline of other epochs, training data or test data."""
    lines = []
    for row in rows:
        if row.baseline in (None, row.name):
            continue
        both = [_trained_on(next(iter(runs[str(name)].values()))) for name in (row.name, row.baseline)]
        found = [
            f"{name} {own} (baseline: {other})"
            for (name, own), other in zip(both[0].items(), both[1].values(), strict=True)
            if own != other
        ]
        if found:
            lines.append(
                f"{row.name!r} differs from its baseline {row.baseline!r} in more than the method: {', '.join(found)}"
            )
    return lines


def _trained_on(result: Mapping[str, Any]) -> dict[str, object]:
    return {
        "epochs": result["training"].get("epochs"),
        "data": result.get("data"),
        "tested on": (result.get("test") or {}).get("data"),
    }


def _value(result: Mapping[str, Any], metric: str, name: str) -> float:
    """A measure on the test data, or against the teacher."""
    for part in (result, result.get("test") or {}, result.get("against_teacher") or {}):
        if part.get(metric) is not None:
            return float(part[metric])
    raise ValueError(
        f"--metric {metric}: a run of {name} did not measure it; compare by another, or train it again in a new folder"
    )


def half_width(differences: Sequence[float]) -> float | None:
    """Half the 95 % confidence interval of a mean (Student's t); None for fewer than two values, 0 for equal ones."""
    freedom = len(differences) - 1
    if freedom < 1:
        return None
    if max(differences) - min(differences) < _EQUAL:
        return 0.0
    from scipy.stats import t as student_t

    quantile = float(student_t.ppf((1 + CONFIDENCE) / 2, freedom))
    return quantile * _std(differences) / math.sqrt(len(differences))


def against(rows: Sequence[Comparison]) -> str:
    """What the differences are against, in words."""
    found = sorted({row.baseline for row in rows if row.baseline is not None})
    return repr(found[0]) if len(found) == 1 else "its baseline"


def format_table(rows: Sequence[Comparison]) -> str:
    """The comparison as text: one line a method, accuracies and agreement in percent, NLL in nats.

    Differences are paired by seed and come with their 95 % interval; a star marks those beyond noise.
    """
    width = max(len("method"), *(len(row.name) for row in rows))
    several = against(rows) == "its baseline"
    difference = f"against {against(rows)}"
    wide = max(24, len(difference))
    shown = f"{rows[0].heading} (std)" if rows else ""
    lines = [
        f"{'method':{width}}   n  {shown}  pairs  {difference:>{wide}}  NLL     {difference:>{wide}}  ECE   "
        f"  seconds{'  baseline' if several else ''}"
    ]
    for row in rows:
        found, nll = row.difference_text(), row.difference_text(nll=True)
        mean, std = (f"{row.scale * value:.{row.digits}f}" for value in (row.mean, row.std))
        std = std if row.num_seeds > 1 else "-"  # one run has no spread
        pairs = row.num_pairs if row.baseline not in (None, row.name) else ""
        lines.append(
            f"{row.name:{width}}  {row.num_seeds:2}  {f'{mean:>6} ({std})':{len(shown) - 1}}  {pairs:>5}"
            f"  {found:>{wide}}  {row.nll:.4f}  {nll:>{wide}}  {row.ece:.4f}  {row.seconds:7.2f}"
            + (f"  {row.baseline or 'none'}" if several else "")
        )
    return "\n".join(lines)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _std(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
