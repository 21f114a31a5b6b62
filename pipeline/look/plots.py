"""Pictures of runs, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.pipeline.look.describe import describe_kind
from logitbank.pipeline.train_student.compare import Comparison, against

INK, ACCENT, QUIET = "#1f2933", "#1f6feb", "#9aa5b1"


def plot_comparison(rows: Sequence[Comparison], answers: Mapping[str, Any], path: Path, *, title: str) -> None:
    """Accuracy of each method (mean and standard deviation over seeds) beside the teacher's reliability."""
    plt = pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
    for position, row in enumerate(reversed(rows)):
        colour = QUIET if row.difference is None else INK if row.within_noise else ACCENT
        left.errorbar(100 * row.mean, position, xerr=100 * row.std, fmt="o", color=colour, capsize=4)
    left.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.set_xlabel("test accuracy, %: mean and std over seeds (blue: beyond noise of baseline)")
    left.grid(axis="x", alpha=0.3)
    left.set_title(title, loc="left", fontsize=10)

    right.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    bins = answers["reliability"]
    total = sum(b["count"] for b in bins)
    right.scatter(
        [b["confidence"] for b in bins],
        [b["accuracy"] for b in bins],
        s=[20 + 400 * b["count"] / total for b in bins],
        color=ACCENT,
        alpha=0.7,
    )
    right.set_xlim(0, 1.03)
    right.set_ylim(0, 1.03)
    right.set_xlabel("teacher's confidence")
    right.set_ylabel("accuracy")
    right.set_title(
        f"teacher, {describe_kind(answers)}: accuracy {answers['accuracy']:.3f}, ECE {answers['ece']:.3f}",
        loc="left",
        fontsize=10,
    )
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_intervals(rows: Sequence[Comparison], path: Path) -> None:
    """Each method's metric (mean and deviation over seeds), and its difference to the baseline with 95 % interval."""
    plt = pyplot()
    height = 1.6 + 0.36 * len(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), sharey=True, layout="constrained")
    for position, row in enumerate(reversed(rows)):
        colour = QUIET if row.difference is None else INK if row.within_noise else ACCENT
        left.errorbar(row.scale * row.mean, position, xerr=row.scale * row.std, fmt="o", color=colour, capsize=4)
        if row.difference is not None:
            half = None if row.half_width is None else row.scale * row.half_width
            right.errorbar(row.scale * row.difference, position, xerr=half, fmt="o", color=colour, capsize=4)
    right.axvline(0, color=QUIET, linewidth=1)
    left.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.set_xlabel(f"{rows[0].heading}: mean and std over seeds")
    right.set_xlabel(
        f"difference against {against(rows)}, paired by seed: 95 % interval\n(blue: the interval excludes zero)"
    )
    for axes in (left, right):
        axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_curves(histories: Mapping[str, Sequence[Sequence[Mapping[str, float]]]], path: Path) -> None:
    """Training loss and accuracy by epoch, one line a seed; validation accuracy where there is one."""
    plt = pyplot()
    from matplotlib.ticker import LogFormatter

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    shown = "train_accuracy"
    if all("val_accuracy" in line for runs in histories.values() for history in runs for line in history):
        shown = "val_accuracy"
    for number, (name, runs) in enumerate(histories.items()):
        for seed, history in enumerate(runs):
            epochs = [line["epoch"] for line in history]
            marker = "." if len(epochs) == 1 else ""
            style = {"color": _colour(number), "alpha": 0.75, "linewidth": 1.2, "marker": marker}
            left.plot(epochs, [line["loss"] for line in history], label=None if seed else name, **style)
            right.plot(epochs, [100 * line[shown] for line in history], **style)
    left.set_yscale("log")
    for set_formatter in (left.yaxis.set_major_formatter, left.yaxis.set_minor_formatter):
        set_formatter(LogFormatter(minor_thresholds=(2, 0.4)))
    left.set_ylabel("training loss (each method's own)")
    right.set_ylabel("validation accuracy, %" if shown == "val_accuracy" else "training accuracy, %")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(len(histories), 3), fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def plot_reliability(bins: Mapping[str, Sequence[Mapping[str, float]]], ece: Mapping[str, float], path: Path) -> None:
    """Accuracy by confidence, a panel a method, over all of its seeds; the area of a point is its share of rows."""
    plt = pyplot()
    columns = min(len(bins), 4)
    lines = -(-len(bins) // columns)
    figure, panels = plt.subplots(
        lines,
        columns,
        figsize=(2.9 * columns, 3.1 * lines),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for panel in panels.flat[len(bins) :]:
        panel.set_visible(False)
    for panel, (name, points) in zip(panels.flat, bins.items(), strict=False):
        total = sum(b["count"] for b in points)
        panel.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
        panel.scatter(
            [b["confidence"] for b in points],
            [b["accuracy"] for b in points],
            s=[4 + 400 * b["count"] / total for b in points],
            color=ACCENT,
            alpha=0.6,
            linewidths=0,
        )
        panel.set_title(f"{name}\nECE {ece[name]:.3f}", loc="left", fontsize=8)
        panel.set_xlim(0, 1.03)
        panel.set_ylim(0, 1.03)
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy", fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["text.parse_math"] = False  # names are a user's, and a stranger's
    from matplotlib import pyplot as plt

    return plt


def _colour(number: int) -> str:
    return f"C{number % 10}"
