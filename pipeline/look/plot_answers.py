"""A picture of one teacher's answers, as a PNG file."""

from pathlib import Path
from typing import Any

from logitbank.pipeline.look.figures import AnswerFigures
from logitbank.pipeline.look.plots import ACCENT, INK, QUIET, pyplot
from logitbank.pipeline.metrics import accuracy_interval, expected_calibration_error, reliability

_MOST_NAMED = 25  # more classes or folds than this have no room for their names


def plot_answers(figures: AnswerFigures, path: Path) -> None:
    """One teacher of a store: what the encoding loses, how sure it is, and where it is right."""
    plt = pyplot()
    panels = [_draw_fidelity] if figures.fidelity else []
    panels += [_draw_confidence]
    panels += [_draw_classes] if figures.class_accuracy_C is not None else []
    if len(figures.fold_accuracy) > 1:
        panels += [draw_folds]
    elif figures.correct_R is not None:
        panels += [_draw_reliability]
    # one below the other: beside each other, a telephone shrinks their words until nobody reads them
    figure, axes = plt.subplots(len(panels), 1, figsize=(5.6, 3 * len(panels)), squeeze=False, layout="constrained")
    figure.get_layout_engine().set(hspace=0.06)
    for axis, draw in zip(axes.flat, panels, strict=True):
        draw(axis, figures)
        axis.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _draw_fidelity(axis: Any, figures: AnswerFigures) -> None:
    temperatures, values = list(figures.fidelity), list(figures.fidelity.values())
    places = range(len(values))
    axis.bar(places, values, width=0.5, color=ACCENT)
    for place, value in zip(places, values, strict=True):
        axis.annotate(f"{value:.2g}", (place, value), (0, 3), textcoords="offset points", ha="center", fontsize=9)
    outside = [figures.outside.get(temperature) for temperature in temperatures]
    notes = ["" if share is None else f"\n{share:.1%} of the mass\noutside the kept" for share in outside]
    axis.set_xticks(places, [f"T = {t:g}{note}" for t, note in zip(temperatures, notes, strict=True)], fontsize=9)
    axis.set_xlim(-0.6, len(values) - 0.4)
    axis.set_ylim(0, 1.15 * max(values) or 1)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_ylabel("KL T², nats")
    axis.set_title("what the encoding loses of the answers", loc="left", fontsize=10)


def _draw_confidence(axis: Any, figures: AnswerFigures) -> None:
    confidence = figures.confidence_R
    parts, colours, labels = [confidence], [ACCENT], ["all rows"]
    if figures.correct_R is not None:
        parts = [confidence[figures.correct_R], confidence[~figures.correct_R]]
        colours, labels = [ACCENT, INK], ["right", "wrong"]
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
        axis.bar(range(len(order)), values, color=ACCENT, width=0.7)
        names = [figures.class_names[number] if figures.class_names else str(number) for number in order]
        plain = [_label(name) for name in names]
        upright = max(len(name) for name in plain) <= 3
        axis.set_xticks(range(len(order)), plain, rotation=0 if upright else 45, ha="center" if upright else "right")
    else:
        axis.plot(range(len(order)), values, color=ACCENT)
        axis.fill_between(range(len(order)), values, color=ACCENT, alpha=0.15, linewidth=0)
        axis.set_xlabel(f"{len(order)} classes, best first")
    axis.set_ylim(0, 105)
    axis.set_ylabel("accuracy, %")
    axis.set_title(f"accuracy by class, first view: {min(values):.1f} to {max(values):.1f} %", loc="left", fontsize=10)


def draw_folds(axis: Any, figures: AnswerFigures) -> None:
    """With 95 % intervals, so that a fold that leaked stands out of them."""
    values = [100 * accuracy for accuracy, _ in figures.fold_accuracy]
    intervals = [accuracy_interval(accuracy, num_rows) for accuracy, num_rows in figures.fold_accuracy]
    below = [max(0.0, value - 100 * low) for value, (low, _) in zip(values, intervals, strict=True)]
    above = [max(0.0, 100 * high - value) for value, (_, high) in zip(values, intervals, strict=True)]
    axis.errorbar(range(len(values)), values, yerr=(below, above), fmt="o", color=ACCENT, capsize=4)
    rows = [n for _, n in figures.fold_accuracy]
    mean = sum(value * n for value, n in zip(values, rows, strict=True)) / sum(rows)
    axis.axhline(mean, color=QUIET, linewidth=1)
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
    axis.plot([0, 1], [0, 1], color=QUIET, linewidth=1)
    axis.scatter(confidence, accuracy, s=sizes, color=ACCENT, alpha=0.7)
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
