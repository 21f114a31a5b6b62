"""What stored views are worth: V of them against a fresh one in every epoch, at the same number of steps.

    python -m bench.views OUT --data 'torchvision:CIFAR10?root=DIR&split=train' --weights resnet20.th [--page docs]

A student that trains for E epochs from a store of V views sees view e mod V in epoch e. With V = E no view comes twice:
that is augmentation as it is done online (the store is lossless, and its students are those of the teacher run online,
docs/measurements/students.md). The teacher answers E views of the first images once, and a store of V views is a copy
of the first V. What is finished in OUT is not done again. With --page, explanation/views.md there is written anew,
with its plot.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench._marked import rewrite
from bench._students import MEAN, SCALING, STD
from logitbank import Encoding, Run, Training, Views, cache_teacher, copy_store, load_split, train_student
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.train_student.compare import Comparison, compare
from logitbank.pipeline.train_student.inputs import open_inputs

TEACHER, STUDENT = "resnet20", "cnn"
SCRIPT = "bench.views"
LOSSES = {"kd": {"temperature": "4"}, "ce": {}}

Results = dict[tuple[str, int, int], dict[int, dict[str, Any]]]
"""(loss, epochs, views) -> seed -> result."""


def make_stores(out: Path, data: str, weights: str, views: Sequence[int]) -> None:
    """``views-V.zarr`` for each V: the largest is answered, the others are its first views."""
    split = load_split(data)
    whole = out / f"views-{max(views)}.zarr"
    teachers = load_teachers(split, TEACHER, weights, preprocessing=SCALING)
    answers = NetworkTeacher(split, teachers, Views(transform="flip-crop", num_views=max(views)))
    cache_teacher(answers, whole, encoding=Encoding(kind="dense", num_classes=split.num_classes, bits=32))
    for count in views:
        if count != max(views):
            copy_store(whole, out / f"views-{count}.zarr", num_views=count)


def train_all(out: Path, data: str, plans: Sequence[tuple[str, int, int]], seeds: int) -> Results:
    """Every student, seed by seed, so that a run that is stopped has whole seeds."""
    found: Results = {plan: {} for plan in plans}
    for seed in range(seeds):
        for loss, epochs, views in plans:
            run = Run(
                store=str(out / f"views-{views}.zarr"),
                data=data,
                student=STUDENT,
                loss=loss,
                settings=LOSSES[loss],
                training=Training(epochs=epochs, batch_size=128, lr=0.05, seed=seed),
                mean=MEAN,
                std=STD,
                threads=1,
            )
            folder = out / "runs" / f"{loss}-epochs{epochs}-views{views}-seed{seed}"
            folder.parent.mkdir(exist_ok=True)
            result = train_student(run, folder, inputs=open_inputs(run))
            found[loss, epochs, views][seed] = result
            said = {"name": folder.name, "accuracy": result["accuracy"], "seconds": round(result["seconds"], 1)}
            print(json.dumps(said), flush=True)
    return found


def compared(found: Results) -> dict[tuple[str, int, int], Comparison]:
    """Each against the fresh views of its loss and its number of epochs."""
    rows: dict[tuple[str, int, int], Comparison] = {}
    for loss, epochs in dict.fromkeys((loss, epochs) for loss, epochs, _ in found):
        runs = {
            str(views): by_seed for (own, length, views), by_seed in found.items() if (own, length) == (loss, epochs)
        }
        for row in compare(runs, str(epochs)):
            rows[loss, epochs, int(row.name)] = row
    return rows


def table(rows: dict[tuple[str, int, int], Comparison]) -> str:
    """Markdown."""
    lines = [
        "| loss | epochs | views | times each is seen | n | accuracy, % (std) | against fresh views, points | NLL |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|---:|---:|")
    for (loss, epochs, views), row in rows.items():
        fresh = "fresh" if views == epochs else row.difference_text().replace("+-", "±").strip().replace("*", "\\*")
        accuracy = f"{100 * row.mean:.2f} ({100 * row.std:.2f})"
        cells = (f"`{loss}`", epochs, views, f"{epochs / views:g}", row.num_seeds, accuracy, fresh, f"{row.nll:.3f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def plot(rows: dict[tuple[str, int, int], Comparison], path: Path) -> None:
    """Accuracy against views, a line for each loss and number of epochs, and what fresh views reach."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for number, (loss, epochs) in enumerate(dict.fromkeys((loss, epochs) for loss, epochs, _ in rows)):
        own = {views: row for (a, b, views), row in sorted(rows.items()) if (a, b) == (loss, epochs)}
        axis.errorbar(
            list(own),
            [100 * row.mean for row in own.values()],
            yerr=[100 * row.std for row in own.values()],
            fmt="o-",
            capsize=3,
            color=f"C{number}",
            label=f"{loss}, {epochs} epochs",
        )
        axis.plot(epochs, 100 * own[epochs].mean, "o", markersize=11, markerfacecolor="none", color=f"C{number}")
    counts = sorted({views for _, _, views in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(count) for count in counts])
    axis.set_xlabel("stored views (circled: a fresh view in every epoch)")
    axis.set_ylabel("test accuracy, %: mean and std over seeds")
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def write_page(docs: Path, rows: dict[tuple[str, int, int], Comparison], arguments: argparse.Namespace) -> None:
    """The measured part of explanation/views.md, between its marks; figures and plot beside it."""
    seeds = f"Seeds 0 to {arguments.seeds - 1}; torch {library_versions()['torch']}, one CPU thread."
    rewrite(docs / "explanation" / "views.md", SCRIPT, f"{table(rows)}\n\n{seeds}")
    plot(rows, docs / "explanation" / "views.png")


def main() -> int:
    """Prints a line for each student and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--data", help="training images, as cli commands take them")
    parser.add_argument("--weights", help=f"of the {TEACHER}")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--views", default="1,2,4,8")
    parser.add_argument("--epochs", default="8,16")
    parser.add_argument("--losses", default="kd")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    if not (arguments.out and arguments.data and arguments.weights):
        print(json.dumps({"name": "views", "skipped": "name a folder, --data and --weights"}))
        return 0
    torch.set_num_threads(1)
    views, lengths = ([int(number) for number in text.split(",")] for text in (arguments.views, arguments.epochs))
    plans = [
        (loss, epochs, count)
        for loss in arguments.losses.split(",")
        for epochs in lengths
        for count in sorted({*(view for view in views if view < epochs), epochs})
    ]
    data = f"{arguments.data}{'&' if '?' in arguments.data else '?'}limit={arguments.rows}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    make_stores(arguments.out, data, arguments.weights, sorted({count for _, _, count in plans}))
    rows = compared(train_all(arguments.out, data, plans, arguments.seeds))
    print(table(rows))
    if arguments.page:
        write_page(arguments.page, rows, arguments)
    return 0


if __name__ == "__main__":
    sys.exit(main())
