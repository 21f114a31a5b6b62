"""Pictures of finished runs: how good, at what cost, how they learnt, how sure they are."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from logitbank.pipeline.look.panels import Panel, folded
from logitbank.pipeline.look.plot_costs import cost_panels
from logitbank.pipeline.look.plots import ACCENT, INK, QUIET, colour
from logitbank.pipeline.train_student.compare import Comparison, against
from logitbank.pipeline.train_student.runs import FinishedRun

Methods = Mapping[str, Mapping[int, FinishedRun]]

_STYLES = ("-", "--", ":", "-.")


class Picture(NamedTuple):
    """Panels that are seen together.

    Attributes:
        heading: What they show.
        panels: At least one.
        columns: So many in a line where there is room.
    """

    heading: str
    panels: Sequence[Panel]
    columns: int


def run_pictures(methods: Methods, rows: Sequence[Comparison]) -> dict[str, Picture]:
    """Pictures by name.

    Args:
        methods: Runs by method and seed.
        rows: Their comparison, in the order of ``by_baseline``.
    """
    groups = list(_grouped(rows).values())
    return {
        "accuracy": Picture("Methods", _interval_panels(rows), 2),
        "cost": Picture("What it costs", cost_panels(methods, rows), 3),
        "curves": Picture("Learning curves", [panel for group in groups for panel in _curve_panels(methods, group)], 2),
        "reliability": Picture("Calibration", [_reliability_panel(methods[row.name], row) for row in rows], 4),
    }


def by_baseline(rows: Sequence[Comparison]) -> list[Comparison]:
    """The rows with those of one baseline together, the baseline first."""
    return [row for group in _grouped(rows).values() for row in group]


def _grouped(rows: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    groups: dict[str, list[Comparison]] = {}
    for row in rows:
        groups.setdefault(row.baseline or "", []).append(row)
    return {name: sorted(group, key=lambda row: row.name != name) for name, group in groups.items()}


def _interval_panels(rows: Sequence[Comparison]) -> list[Panel]:
    lines = sum(len(folded(row.name).splitlines()) for row in rows)
    size = (4.6, 1.1 + 0.24 * max(lines, 1.3 * len(rows)))
    return [
        Panel(f"{rows[0].heading}: mean and std over seeds", partial(_draw_values, rows=rows), size),
        Panel(f"difference against {against(rows)}", partial(_draw_differences, rows=rows), size),
    ]


def _draw_values(axis: Any, rows: Sequence[Comparison]) -> None:
    for place, row in enumerate(rows):
        axis.errorbar(row.scale * row.mean, place, xerr=row.scale * row.std, fmt="o", color=_tone(row), capsize=4)
    _name_lines(axis, rows)
    axis.set_xlabel(rows[0].heading)


def _draw_differences(axis: Any, rows: Sequence[Comparison]) -> None:
    for place, row in enumerate(rows):
        if row.difference is not None:
            half = None if row.half_width is None else row.scale * row.half_width
            axis.errorbar(row.scale * row.difference, place, xerr=half, fmt="o", color=_tone(row), capsize=4)
    axis.axvline(0, color=QUIET, linewidth=1)
    _name_lines(axis, rows)
    axis.set_xlabel("95 % interval; blue: it leaves out zero")


def _tone(row: Comparison) -> str:
    return QUIET if row.difference is None else INK if row.within_noise else ACCENT


def _name_lines(axis: Any, rows: Sequence[Comparison]) -> None:
    """The first row on top, a line between the baselines."""
    axis.set_yticks(range(len(rows)), [folded(row.name) for row in rows])
    axis.set_ylim(len(rows) - 0.4, -0.6)
    for place in range(1, len(rows)):
        if rows[place].baseline != rows[place - 1].baseline:
            axis.axhline(place - 0.5, color=QUIET, linewidth=0.8)


def _curve_panels(methods: Methods, rows: Sequence[Comparison]) -> list[Panel]:
    """Training loss and accuracy by epoch: of validation rows where every epoch has it."""
    histories = {row.name: [run.history() for run in methods[row.name].values()] for row in rows}
    lines = [line for runs in histories.values() for history in runs for line in history]
    shown, words = ("val_accuracy", "validation") if all("val_accuracy" in line for line in lines) else _TRAINING
    size = (4.6, 3.1 + 0.19 * -(-len(rows) // 2) * max(len(folded(row.name).splitlines()) for row in rows))
    panels = [
        Panel("training loss, each method's own", partial(_draw_curves, histories=histories, shown="loss"), size),
        Panel(f"{words} accuracy, %", partial(_draw_curves, histories=histories, shown=shown), size),
    ]
    measured = {
        name: runs for name, runs in histories.items() if all("val_golden" in line for run in runs for line in run)
    }
    for column, title in _DIVERGENCES.items() if measured else ():
        panels.append(Panel(title, partial(_draw_curves, histories=measured, shown=column), size))
    return panels


_TRAINING = ("train_accuracy", "training")
_DIVERGENCES = {
    "val_proxy": "divergence to the teacher, held-out rows, nats",
    "val_golden": "divergence to the truth, held-out rows, nats",
}


def _draw_curves(axis: Any, histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], shown: str) -> None:
    """A line a seed, a colour a method."""
    from matplotlib.ticker import MaxNLocator

    scale = 100 if shown.endswith("accuracy") else 1
    for number, (name, runs) in enumerate(histories.items()):
        for seed, history in enumerate(runs):
            axis.plot(
                [line["epoch"] for line in history],
                [scale * line[shown] for line in history],
                label=None if seed else folded(name),
                color=colour(number),
                linestyle=_STYLES[number // 10 % len(_STYLES)],
                alpha=0.8,
                linewidth=1.2,
                marker="." if len(history) == 1 else "",
            )
    if scale == 1 and all(line[shown] > 0 for runs in histories.values() for run in runs for line in run):
        _scale_losses(axis)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axis.set_xlabel("epoch")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, fontsize=7, frameon=False)


def _scale_losses(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.set_yscale("log")
    low, high = axis.get_ylim()
    wide = math.log10(high / low) > 2
    axis.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 3.0, 5.0)))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _reliability_panel(runs: Mapping[int, FinishedRun], row: Comparison) -> Panel:
    bins = [found for run in runs.values() for found in run.result["test"]["reliability"]]
    title = f"{folded(row.name)}\nECE {row.ece:.3f}"
    return Panel(title, partial(_draw_reliability, bins=bins), (2.7, 2.7 + 0.15 * title.count("\n")))


def _draw_reliability(axis: Any, bins: Sequence[Mapping[str, float]]) -> None:
    """Accuracy by confidence over all seeds; the area of a point is its share of rows."""
    total = sum(found["count"] for found in bins)
    axis.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    axis.scatter(
        [found["confidence"] for found in bins],
        [found["accuracy"] for found in bins],
        s=[4 + 400 * found["count"] / total for found in bins],
        color=ACCENT,
        alpha=0.6,
        linewidths=0,
    )
    axis.set_xlim(0, 1.03)
    axis.set_ylim(0, 1.03)
    axis.set_xlabel("confidence")
    axis.set_ylabel("accuracy")
