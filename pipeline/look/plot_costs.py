"""What a student costs, and what its accuracy buys."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from logitbank.pipeline.look.panels import Panel, folded
from logitbank.pipeline.look.plots import QUIET, colour
from logitbank.pipeline.train_student.compare import Comparison
from logitbank.pipeline.train_student.runs import FinishedRun

COSTS = {
    "seconds": "training, seconds",
    "num_parameters": "parameters",
    "answer_bytes": "answers on disk, bytes an example",
}
_MARKERS = "osD^vPX*<>"
_LETTERS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def costs_of(runs: Mapping[int, FinishedRun]) -> dict[str, float | None]:
    """Means over seeds by name of ``COSTS``; None where a run does not say."""
    means: dict[str, float | None] = {}
    for cost in COSTS:
        found = [float(value) for run in runs.values() if (value := run.result.get(cost)) is not None]
        means[cost] = sum(found) / len(found) if len(found) == len(runs) else None
    return means


def cost_panels(methods: Mapping[str, Mapping[int, FinishedRun]], rows: Sequence[Comparison]) -> list[Panel]:
    """Of every cost in which the methods differ."""
    costs = {row.name: costs_of(methods[row.name]) for row in rows}
    panels = []
    for cost, heading in COSTS.items():
        known = [(row, value) for row in rows if (value := costs[row.name][cost]) is not None]
        if cost == "seconds" or len({value for _, value in known}) > 1:
            students = {row.name: str(next(iter(methods[row.name].values())).result["student"]) for row in rows}
            draw = partial(_draw_cost, points=known, students=students, heading=heading)
            panels.append(Panel(f"against {heading}", draw, (4.6, 3.9 + 0.2 * len(set(students.values())))))
    return panels


def _draw_cost(
    axis: Any, points: Sequence[tuple[Comparison, float]], students: Mapping[str, str], heading: str
) -> None:
    """A point a method, a colour a student; a line along those that no cheaper one beats, which are named."""
    names = list(dict.fromkeys(students.values()))
    for row, cost in points:
        number = names.index(students[row.name])
        axis.errorbar(
            cost,
            row.scale * row.mean,
            yerr=row.scale * row.std,
            fmt=_MARKERS[number % len(_MARKERS)],
            color=colour(number),
            alpha=0.8,
            linewidth=1,
        )
    values = [cost for _, cost in points]
    _scale_costs(axis, values)
    best = _undominated(points)
    axis.step(
        [*(cost for _, cost in best), max(values)],
        [*(row.scale * row.mean for row, _ in best), best[-1][0].scale * best[-1][0].mean],
        where="post",
        color=QUIET,
        linewidth=1,
        zorder=0,
    )
    _name_points(axis, best)
    marks = [
        axis.plot([], [], _MARKERS[number % len(_MARKERS)], color=colour(number), label=name)[0]
        for number, name in enumerate(names)
    ]
    axis.legend(handles=marks, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, fontsize=7, frameon=False)
    axis.set_xlabel(heading)
    axis.set_ylabel(points[0][0].heading)


def _name_points(axis: Any, best: Sequence[tuple[Comparison, float]]) -> None:
    """From the best one down, as far as the names do not run into each other."""
    axis.get_xlim(), axis.get_ylim()  # settles the limits
    taken: list[tuple[float, float]] = []
    for row, cost in reversed(best):
        point = cost, row.scale * row.mean
        x, y = axis.transLimits.transform(axis.transScale.transform(point))
        if any(abs(x - other_x) < 0.5 and abs(y - other_y) < 0.06 for other_x, other_y in taken):
            continue
        taken.append((x, y))
        above = x > 0.5
        axis.annotate(
            folded(row.name),
            point,
            (-5, 5) if above else (5, -5),
            textcoords="offset points",
            ha="right" if above else "left",
            va="bottom" if above else "top",
            fontsize=7,
        )


def _scale_costs(axis: Any, values: Sequence[float]) -> None:
    """A cost of zero, of hard labels, has a place beside the others, whatever their size."""
    least, most = min((value for value in values if value > 0), default=1.0), max(values)
    if most > 8 * least:
        from matplotlib.ticker import LogLocator, NullLocator

        if min(values) <= 0:
            axis.set_xscale("symlog", linthresh=least)
        else:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.xaxis.set_minor_locator(NullLocator())
    axis.margins(x=0.12, y=0.12)
    axis.xaxis.set_major_formatter(lambda value, _: _short(value))


def _short(value: float) -> str:
    size, letter = next(((size, letter) for size, letter in _LETTERS if abs(value) >= size), (1.0, ""))
    return f"{value / size:g}{letter}"


def _undominated(points: Sequence[tuple[Comparison, float]]) -> list[tuple[Comparison, float]]:
    """Methods that are better than all cheaper ones, by cost; a lower value is better of what is not a share."""
    sign = 1 if points[0][0].higher_is_better else -1
    best: list[tuple[Comparison, float]] = []
    for row, cost in sorted(points, key=lambda point: (point[1], -sign * point[0].mean)):
        if not best or sign * row.mean > sign * best[-1][0].mean:
            best.append((row, cost))
    return best
