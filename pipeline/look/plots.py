"""Pictures of results, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.pipeline.look.describe import describe_kind
from logitbank.pipeline.look.figures import AnswerFigures
from logitbank.pipeline.metrics import expected_calibration_error, reliability
from logitbank.pipeline.train_student.compare import Comparison, against

_INK, _ACCENT, _QUIET = "#1f2933", "#1f6feb", "#9aa5b1"
_MOST_NAMED = 25  # more classes or folds than this have no room for their names


def plot_comparison(rows: Sequence[Comparison], answers: Mapping[str, Any], path: Path, *, title: str) -> None:
    """Accuracy of each method (mean and standard deviation over seeds) beside the teacher's reliability."""
    plt = _pyplot()
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=(3, 2), layout="constrained")
    for position, row in enumerate(reversed(rows)):
        colour = _QUIET if row.difference is None else _INK if row.within_noise else _ACCENT
        left.errorbar(100 * row.mean, position, xerr=100 * row.std, fmt="o", color=colour, capsize=4)
    left.set_yticks(range(len(rows)), [row.name for row in reversed(rows)])
    left.set_ylim(-0.6, len(rows) - 0.4)
    left.set_xlabel("test accuracy, %: mean and std over seeds (blue: beyond noise of baseline)")
    left.grid(axis="x", alpha=0.3)
    left.set_title(title, loc="left", fontsize=10)

    right.plot([0, 1], [0, 1], color=_QUIET, linewidth=1)
    bins = answers["reliability"]
    total = sum(b["count"] for b in bins)
    right.scatter(
        [b["confidence"] for b in bins],
        [b["accuracy"] for b in bins],
        s=[20 + 400 * b["count"] / total for b in bins],
        color=_ACCENT,
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
    plt = _pyplot()
    height = 1.6 + 0.36 * len(rows)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, height), sharey=True, layout="constrained")
    for position, row in enumerate(reversed(rows)):
        colour = _QUIET if row.difference is None else _INK if row.within_noise else _ACCENT
        left.errorbar(row.scale * row.mean, position, xerr=row.scale * row.std, fmt="o", color=colour, capsize=4)
        if row.difference is not None:
            half = None if row.half_width is None else row.scale * row.half_width
            right.errorbar(row.scale * row.difference, position, xerr=half, fmt="o", color=colour, capsize=4)
    right.axvline(0, color=_QUIET, linewidth=1)
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
    plt = _pyplot()
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
    plt = _pyplot()
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
        panel.plot([0, 1], [0, 1], color=_QUIET, linewidth=1)
        panel.scatter(
            [b["confidence"] for b in points],
            [b["accuracy"] for b in points],
            s=[4 + 400 * b["count"] / total for b in points],
            color=_ACCENT,
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


def plot_answers(figures: AnswerFigures, path: Path) -> None:
    """One teacher of a store: what the encoding loses, how sure it is, and where it is right."""
    plt = _pyplot()
    panels = [_draw_fidelity] if figures.fidelity else []
    panels += [_draw_confidence]
    panels += [_draw_classes] if figures.class_accuracy_C is not None else []
    if len(figures.fold_accuracy) > 1:
        panels += [_draw_folds]
    elif figures.correct_R is not None:
        panels += [_draw_reliability]
    lines = -(-len(panels) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(11, 3.9 * lines), squeeze=False, layout="constrained")
    for axis, draw in zip(axes.flat, panels, strict=False):
        draw(axis, figures)
        axis.grid(axis="y", alpha=0.3)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _draw_fidelity(axis: Any, figures: AnswerFigures) -> None:
    temperatures, values = list(figures.fidelity), list(figures.fidelity.values())
    places = range(len(values))
    axis.bar(places, values, width=0.5, color=_ACCENT)
    for place, value in zip(places, values, strict=True):
        axis.annotate(f"{value:.2g}", (place, value), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    outside = [figures.outside.get(temperature) for temperature in temperatures]
    notes = ["" if share is None else f"\n{share:.1%} of the mass\noutside the kept" for share in outside]
    axis.set_xticks(places, [f"T = {t:g}{note}" for t, note in zip(temperatures, notes, strict=True)], fontsize=9)
    axis.set_xlim(-0.6, len(values) - 0.4)
    axis.set_ylim(0, 1.15 * max(values) or 1)
    axis.set_ylabel("KL T², nats")
    axis.set_title("what the encoding loses of the answers", loc="left", fontsize=10)


def _draw_confidence(axis: Any, figures: AnswerFigures) -> None:
    confidence = figures.confidence_R
    parts, colours, labels = [confidence], [_ACCENT], ["all rows"]
    if figures.correct_R is not None:
        parts = [confidence[figures.correct_R], confidence[~figures.correct_R]]
        colours, labels = [_ACCENT, _INK], ["right", "wrong"]
    weights = [[100 / len(confidence)] * len(part) for part in parts]
    bins = [number / 20 for number in range(21)]
    axis.hist(parts, bins=bins, weights=weights, stacked=True, color=colours, label=labels, edgecolor="white")
    axis.set_xlim(0, 1)
    axis.set_xlabel("probability of the best class, T = 1")
    axis.set_ylabel("rows, %")
    axis.legend(frameon=False, loc="upper left")
    axis.set_title(f"how sure the teacher is, first view: mean {confidence.mean():.3f}", loc="left", fontsize=10)


def _draw_classes(axis: Any, figures: AnswerFigures) -> None:
    assert figures.class_accuracy_C is not None
    accuracy_C = 100 * figures.class_accuracy_C
    known = [number for number, value in enumerate(accuracy_C) if value == value]
    order = sorted(known, key=lambda number: float(-accuracy_C[number]))
    values = [float(accuracy_C[number]) for number in order]
    if len(order) <= _MOST_NAMED:
        axis.bar(range(len(order)), values, color=_ACCENT, width=0.7)
        names = [figures.class_names[number] if figures.class_names else str(number) for number in order]
        plain = [_label(name) for name in names]
        upright = max(len(name) for name in plain) <= 3
        axis.set_xticks(range(len(order)), plain, rotation=0 if upright else 45, ha="center" if upright else "right")
    else:
        axis.plot(range(len(order)), values, color=_ACCENT)
        axis.fill_between(range(len(order)), values, color=_ACCENT, alpha=0.15, linewidth=0)
        axis.set_xlabel(f"{len(order)} classes, best first")
    axis.set_ylim(0, 105)
    axis.set_ylabel("accuracy, %")
    axis.set_title(f"accuracy by class, first view: {min(values):.1f} to {max(values):.1f} %", loc="left", fontsize=10)


def _draw_folds(axis: Any, figures: AnswerFigures) -> None:
    """With 95 % intervals, so that a fold that leaked stands out of them."""
    values = [100 * accuracy for accuracy, _ in figures.fold_accuracy]
    halves = [196 * (max(a * (1 - a), 1 / n) / n) ** 0.5 for a, n in figures.fold_accuracy]
    axis.errorbar(range(len(values)), values, yerr=halves, fmt="o", color=_ACCENT, capsize=4)
    rows = [n for _, n in figures.fold_accuracy]
    mean = sum(value * n for value, n in zip(values, rows, strict=True)) / sum(rows)
    axis.axhline(mean, color=_QUIET, linewidth=1)
    axis.set_xlim(-0.6, len(values) - 0.4)
    if len(values) <= _MOST_NAMED:
        axis.set_xticks(range(len(values)))
    axis.set_xlabel("fold: its rows, answered by the teacher that has not seen them")
    axis.set_ylabel("accuracy, %")
    axis.set_title(f"out-of-fold accuracy, first view: {mean:.2f} %, 95 % intervals", loc="left", fontsize=10)


def _draw_reliability(axis: Any, figures: AnswerFigures) -> None:
    assert figures.correct_R is not None
    bins = reliability(figures.confidence_R, figures.correct_R)
    confidence, accuracy = [b.mean_confidence for b in bins], [b.accuracy for b in bins]
    sizes = [20 + 400 * b.count / len(figures.confidence_R) for b in bins]
    axis.plot([0, 1], [0, 1], color=_QUIET, linewidth=1)
    axis.scatter(confidence, accuracy, s=sizes, color=_ACCENT, alpha=0.7)
    axis.set_xlim(0, 1.03)
    axis.set_ylim(0, 1.03)
    axis.set_xlabel("teacher's confidence")
    axis.set_ylabel("accuracy")
    title = f"is it as sure as it is right, first view: ECE {expected_calibration_error(bins):.3f}"
    axis.set_title(title, loc="left", fontsize=10)


def _label(name: str) -> str:
    """A stranger's word as plain, short text."""
    text = " ".join(name.split())
    return text if len(text) <= 16 else f"{text[:15]}…"


def _pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["text.parse_math"] = False  # names are a user's, and a stranger's
    from matplotlib import pyplot as plt

    return plt


def _colour(number: int) -> str:
    return f"C{number % 10}"
