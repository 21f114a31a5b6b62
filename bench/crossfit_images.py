"""Does cross-fitting help students of small convolutional teachers, overfit or trained for one epoch? Real images.

    python -m bench.crossfit_images OUT --data 'torchvision:CIFAR10?root=DIR&split=train' [--seeds 5] [--page docs]

A seed draws training and test images, the folds, the teachers' and the student's start. One teacher has seen every row,
five fold teachers have each left a fifth of them out; students learn from the stored answers of either, with and
without the correction. Each seed is a line of OUT/seeds.jsonl; what stands there is not trained again. With --page,
explanation/cross-fitting.md there gets the table, and the figures as JSON.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench._crossfit_page import write_page
from bench._students import MEAN, SCALING, STD
from logitbank import Encoding, Inputs, Run, Split, Training, Views, cache_teacher, load_split, open_store
from logitbank import train_student as train
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.metrics import measure

TEACHER, STUDENT = "bench._students:patches64", "bench._students:patches24"
NUM_FOLDS = 5

# The teacher's answers and nothing else, so that columns differ in one thing; c = 1e-9 leaves the correction out.
KD = {"weight": "1", "ce_weight": "0"}
SQUARED = {"scale": "logit", "weight": "1", "ce_weight": "0"}
METHODS: dict[str, tuple[str, str, dict[str, str]]] = {  # name -> store, loss, settings
    "kd, seen": ("seen", "kd", KD),
    "kd, cross-fitted": ("crossfit", "kd", KD),
    "squared, seen": ("seen", "sel_corrected", {**SQUARED, "c": "1e-9"}),
    "squared, cross-fitted": ("crossfit", "sel_corrected", {**SQUARED, "c": "1e-9"}),
    "squared, corrected": ("crossfit", "sel_corrected", {**SQUARED, "c": "0.01"}),
}

Found = dict[str, dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """How much is trained on, and for how long."""

    rows: int = 2000
    tests: int = 3000
    overfit_epochs: int = 20
    epochs: int = 10  # of the student
    batch_size: int = 128

    @property
    def teachers(self) -> dict[str, Training]:
        """By name."""
        overfit = Training(
            epochs=self.overfit_epochs, batch_size=self.batch_size, lr=0.05, weight_decay=0.0, channels_last=True
        )
        return {"overfit": overfit, "one epoch": replace(overfit, epochs=1)}


def of_seed(data: Split, folder: Path, setting: Setting, seed: int) -> dict[str, Any]:
    """Teachers and students of one draw of the rows: measures on the test rows."""
    order = np.random.default_rng(seed).permutation(len(data))[: setting.rows + setting.tests]
    samples, labels = data.samples[order], data.labels[order]
    first, second = slice(setting.rows), slice(setting.rows, None)
    np.savez(folder / "d.npz", x=samples[first], y=labels[first], x_test=samples[second], y_test=labels[second])
    spec = f"npz:{folder}/d.npz?classes={data.num_classes}"
    split, test = load_split(spec), load_split(f"{spec}&split=test")
    record: dict[str, Any] = {"seed": seed, "labels": {}, "teachers": {}, "students": {}}
    for name, training in setting.teachers.items():
        own = folder / name
        record["teachers"][name] = write_stores(own, split, test, replace(training, seed=1000 * (seed + 1)))
        found = {
            method: student(own / f"{store}.zarr", split, test, loss, settings, setting, seed)
            for method, (store, loss, settings) in METHODS.items()
        }
        record["students"][name] = found
    record["labels"] = student(folder / "overfit" / "seen.zarr", split, test, "ce", {}, setting, seed)
    return record


def write_stores(out: Path, split: Split, test: Split, training: Training) -> Found:
    """``seen.zarr`` and ``crossfit.zarr``; how good the answers in each are, and the first teacher on test rows."""
    found: Found = {}
    for name, plan in (
        ("seen", None),
        ("crossfit", FoldPlan(num_folds=NUM_FOLDS, strategy="kfold", seed=training.seed)),
    ):
        train_teachers(split, TEACHER, training, out / name, plan=plan, preprocessing=SCALING)
        teachers = load_teachers(split, TEACHER, str(out / name), plan=None)
        encoding = Encoding(kind="dense", num_classes=split.num_classes, bits=32)
        summary = cache_teacher(NetworkTeacher(split, teachers, Views()), out / f"{name}.zarr", encoding=encoding)
        found[name] = {"accuracy": summary["accuracy"], "nll": summary["nll"]}
        if plan is None:
            logits_NC = predict(teachers.teachers[0].model, test, preprocessing=SCALING)
            measured = measure(logits_NC, torch.from_numpy(test.labels), ("accuracy", "nll"))
            found["test"] = {key: float(value or 0) for key, value in measured.items()}
    return found


def student(
    store: Path, split: Split, test: Split, loss: str, settings: dict[str, str], setting: Setting, seed: int
) -> dict[str, float]:
    """Measures of a student on the test rows."""
    run = Run(
        store=str(store),
        data=split.spec,
        student=STUDENT,
        loss=loss,
        settings=settings,
        training=Training(epochs=setting.epochs, batch_size=setting.batch_size, lr=0.05, channels_last=True, seed=seed),
        mean=MEAN,
        std=STD,
        device="cpu",
        threads=1,
    )
    with tempfile.TemporaryDirectory() as out:
        result = train(run, Path(out), inputs=Inputs(store=open_store(store), split=split, test=test))
    return {key: round(float(result[key]), 5) for key in ("accuracy", "nll", "ece")}


def main() -> int:
    """Prints a line for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--data", help="images, as cli commands take them; training and test rows are drawn of them")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="few rows and epochs: does it run?")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    if not (arguments.out and arguments.data):
        print(json.dumps({"name": "crossfit_images", "skipped": "name a folder and --data"}))
        return 0
    torch.set_num_threads(1)
    few = Setting(rows=60, tests=40, overfit_epochs=2, epochs=2, batch_size=32)
    setting, data = few if arguments.tiny else Setting(), load_split(arguments.data)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept = arguments.out / "seeds.jsonl"
    records = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for seed in sorted(set(range(arguments.seeds)) - {record["seed"] for record in records}):
        with tempfile.TemporaryDirectory() as folder, kept.open("a") as file:
            records.append(of_seed(data, Path(folder), setting, seed))
            print(json.dumps(records[-1]), file=file)
        print(json.dumps(records[-1]), flush=True)
    if arguments.page:
        write_page(arguments.page, records, {**asdict(setting), "versions": library_versions()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
