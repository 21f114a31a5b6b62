"""Pictures of runs, as PNG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.pipeline.look.describe import describe_kind
from logitbank.pipeline.train_student.compare import Comparison

INK, ACCENT, QUIET = "#1f2933", "#1f6feb", "#7b8794"


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


def pyplot() -> Any:
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["text.parse_math"] = False  # names are a user's, and a stranger's
    from matplotlib import pyplot as plt

    return plt


def colour(number: int) -> str:
    return f"C{number % 10}"
