"""What the store saves: k students whose teacher runs online in every step, against one pass of it and k students.

    python -m bench.saving OUT --data 'torchvision:CIFAR10?root=DIR&split=train' --weights resnet56.th [--page docs]

The teacher is ResNet-56, the students are ResNet-8, on some images, on one CPU thread; the process's own seconds of
whole trainings, so that neighbours on the machine count little, cached and online in turns. A store has V views and a
student's epoch e sees view e mod V, online as well. Evaluation is left out of both. With --page, figures and plots are
written there.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from bench._students import SCALING
from bench.train_student import OnlineTeacher
from logitbank import Encoding, Training, Views, cache_teacher, load_split
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, take
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.models import build_model
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.losses import parse_objective
from logitbank.stores import open_store

TEACHER, STUDENT = "resnet56", "resnet8"
FILES = {"light": "saving.png", "dark": "saving-dark.png"}

Seconds = dict[str, list[float]]
"""What was timed -> seconds of each time."""


def seconds_of_a_student(split: Split, loss: BatchLoss, views: Views, epochs: int, seed: int) -> float:
    """Of a training from its first step to its last."""
    torch.manual_seed(seed)
    model = build_model(STUDENT, split)
    begin = time.process_time()
    fit(
        model,
        split,
        loss,
        Training(epochs=epochs, batch_size=128, lr=0.05, seed=seed),
        views=views,
        preprocessing=SCALING,
    )
    return time.process_time() - begin


def measure(out: Path, split: Split, weights: Path, *, views: Views, epochs: int, students: int) -> Seconds:
    """One pass of the teacher, then students in turns."""
    teachers = load_teachers(split, TEACHER, str(weights), preprocessing=SCALING)
    encoding = Encoding(kind="dense", num_classes=split.num_classes, bits=8)
    begin = time.process_time()
    cache_teacher(NetworkTeacher(split, teachers, views), out / "answers.zarr", encoding=encoding)
    found: Seconds = {"the pass": [time.process_time() - begin], "cached": [], "online": []}
    for seed in range(students):
        answers = StoredAnswers(open_store(out / "answers.zarr"))
        cached = DistillationLoss(parse_objective("kd"), answers, split, epochs=epochs)
        for name, loss in (("cached", cached), ("online", OnlineTeacher(split, weights, views, epochs))):
            found[name].append(seconds_of_a_student(split, loss, views, epochs, seed))
        print(json.dumps({name: round(times[-1], 2) for name, times in found.items()}), flush=True)
    return found


def cumulated(found: Seconds) -> tuple[list[float], list[float]]:
    """Seconds until k students are there, k from 0: cached, with the pass before the first, and online."""
    cached, online = [found["the pass"][0]], [0.0]
    for one, other in zip(found["cached"], found["online"], strict=True):
        cached.append(cached[-1] + one)
        online.append(online[-1] + other)
    return cached, online


def crossing(found: Seconds) -> float:
    """The number of students, not rounded, from which on the store has paid for its pass."""
    saved = sum(found["online"]) - sum(found["cached"])
    return found["the pass"][0] * len(found["cached"]) / saved if saved > 0 else float("inf")


def plot(found: Seconds, folder: Path) -> None:
    """Both lines, on a light and on a dark ground."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    cached, online = cumulated(found)
    for ground, name in FILES.items():
        style = "dark_background" if ground == "dark" else "default"
        with plt.style.context(style):
            figure, axis = plt.subplots(figsize=(4.8, 3.2), layout="constrained")
            axis.plot(online, "o-", color="C3", label="teacher online in every step")
            axis.plot(cached, "o-", color="C0", label="teacher once, then from its store")
            axis.set_xticks(range(len(online)))
            axis.set_xlabel("students trained")
            axis.set_ylabel("CPU seconds, one thread")
            axis.set_ylim(bottom=0)
            axis.legend()
            axis.grid(alpha=0.25)
            figure.savefig(folder / name, dpi=150, transparent=ground == "dark")
            plt.close(figure)


def result(found: Seconds, **settings: Any) -> dict[str, Any]:
    """What ``saving.json`` holds."""
    cached, online = cumulated(found)
    return {
        "seconds": {name: [round(value, 2) for value in values] for name, values in found.items()},
        "pays from": round(crossing(found), 2),
        "all students, online / cached": round(online[-1] / cached[-1], 2),
        "settings": {"teacher": TEACHER, "student": STUDENT, "loss": "kd", "threads": 1, **settings},
        "versions": library_versions(),
    }


def main(arguments: list[str]) -> int:
    """Measures, prints and draws."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--data")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--views", type=int, default=2)
    parser.add_argument("--students", type=int, default=4)
    parser.add_argument("--page", type=Path)
    asked = parser.parse_args(arguments)
    if not (asked.out and asked.data and asked.weights):
        print(json.dumps({"name": "saving", "skipped": "name a folder, --data and --weights"}))
        return 0
    torch.set_num_threads(1)
    asked.out.mkdir(parents=True)
    split, views = take(load_split(asked.data), asked.rows), Views(transform="flip-crop", num_views=asked.views)
    found = measure(asked.out, split, asked.weights, views=views, epochs=asked.epochs, students=asked.students)
    said = result(found, rows=asked.rows, epochs=asked.epochs, views=asked.views)
    print(json.dumps(said, indent=2))
    folder = asked.page or asked.out
    (folder / "saving.json").write_text(json.dumps(said, indent=2) + "\n")
    plot(found, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
