"""Does what a store keeps of the teacher matter to its students? Real CIFAR-10 images, a real ResNet-20.

`python docs/measurements/students.py OUT --data 'torchvision:CIFAR10?root=DIR&split=train' --weights resnet20.th`
prints the tables of docs/measurements/students.md: it takes the first images, caches the teacher's answers to them once
for each encoding, trains students of every store, trains students with the teacher run online on every batch, and
compares. What is finished in OUT is not done again.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitbank import (
    Encoding,
    ExactAnswer,
    Run,
    Split,
    Step,
    Training,
    Views,
    build_model,
    cache_teacher,
    load_split,
    parse_objective,
    train_student,
)
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import with_split
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.models.weights import weights_digest
from logitbank.pipeline.train_student.compare import compare, format_table
from logitbank.pipeline.train_student.evaluate import evaluate_test
from logitbank.pipeline.train_student.folder import RESULT
from logitbank.pipeline.train_student.inputs import open_inputs
from logitbank.pipeline.train_student.runs import load_runs
from logitbank.pipeline.train_student.sweep import plan_runs

TEACHER, STUDENT = "resnet20", "cnn"
SCALING = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
VIEWS = Views(transform="flip-crop", num_views=2)
TRAINING = Training(epochs=8, batch_size=128, lr=0.05)
KD = {"temperature": "4"}
ENCODINGS = {
    "dense_32": Encoding(kind="dense", num_classes=10, bits=32),
    "dense_8": Encoding(kind="dense", num_classes=10, bits=8),
    "topk": Encoding(kind="topk", num_classes=10, top_k=3),
    "topk_tail": Encoding(kind="topk+tail", num_classes=10, top_k=3, tail_bits=2),
}
BASELINE, ONLINE = "kd store=dense_32", "kd teacher online"


class OnlineTeacher(BatchLoss):
    """KD with the teacher run on the very pixels that the student of the step sees; no store takes part."""

    def __init__(self, split: Split, weights: Path) -> None:
        self.teacher = load_teachers(split, TEACHER, str(weights), preprocessing=SCALING).teachers[0].model
        self.split, self.labels = split, torch.from_numpy(split.labels)
        self.objective = parse_objective("kd", KD)

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, *, view: int, step: int, steps_per_epoch: int) -> Tensor:
        samples = VIEWS.samples(self.split, rows_B.numpy(), view)
        with torch.inference_mode():
            teacher_BC = self.teacher(SCALING(torch.from_numpy(samples)))
        now = Step(step=step, steps_per_epoch=steps_per_epoch, num_epochs=TRAINING.epochs)
        return self.objective(logits_BC, ExactAnswer(teacher_BC.clone()), self.labels[rows_B], now)


def make_data(source: str, path: Path, num_rows: int, num_test: int) -> str:
    """The first training and test images in one .npz file; returns its data spec."""
    if not path.exists():
        train, test = load_split(source), load_split(with_split(source, "test"))
        partial = path.with_name(f".{path.name}")
        np.savez(
            partial,
            x=train.samples[:num_rows],
            y=train.labels[:num_rows],
            x_test=test.samples[:num_test],
            y_test=test.labels[:num_test],
        )
        partial.rename(path)
    return f"npz:{path}"


def make_stores(folder: Path, split: Split, weights: Path) -> None:
    """One store for each encoding; a store that is whole is left as it is."""
    teachers = load_teachers(split, TEACHER, str(weights), preprocessing=SCALING)
    for name, encoding in ENCODINGS.items():
        if not (folder / f"{name}.json").exists():
            summary = cache_teacher(NetworkTeacher(split, teachers, VIEWS), folder / f"{name}.zarr", encoding=encoding)
            (folder / f"{name}.json").write_text(json.dumps(summary))


def texts(numbers: Sequence[float]) -> str:
    return ",".join(map(str, numbers))


def train_from_stores(folder: Path, data: str, training: Training, seeds: int) -> None:
    """KD from every store, and labels alone, with every seed: runs/STORE/..."""
    for store in ENCODINGS:
        base = Run(
            store=str(folder / f"{store}.zarr"),
            data=data,
            student=STUDENT,
            loss="kd",
            settings=KD,
            training=training,
            mean=texts(SCALING.mean),
            std=texts(SCALING.std),
        )
        losses = ["kd", "ce"] if store == "dense_32" else ["kd"]
        inputs = open_inputs(base)
        for run in plan_runs(base, folder / "runs" / store, losses=losses, students=[STUDENT], grid={}, seeds=seeds):
            if not (run.folder / RESULT).exists():
                result = train_student(run.run, run.folder, inputs=inputs)
                print(f"{store}, {run.folder.name}: {100 * result['accuracy']:.2f} %", flush=True)


def train_online(folder: Path, data: str, weights: Path, training: Training) -> dict[str, Any]:
    """One student whose teacher is run at every step: what a run from a store would record of it."""
    path = folder / "online" / f"seed{training.seed}.json"
    if path.exists():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    split, test = load_split(data), load_split(with_split(data, "test"))
    torch.manual_seed(training.seed)
    model = build_model(STUDENT, split)
    started = time.perf_counter()
    fit(model, split, OnlineTeacher(split, weights), training, views=VIEWS, preprocessing=SCALING)
    result = {"seconds": time.perf_counter() - started, "weights_sha256": weights_digest(model.state_dict())}
    measured = evaluate_test(partial(predict, preprocessing=SCALING), model, test)
    result |= {name: measured[name] for name in ("accuracy", "nll", "ece")}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result))
    return result


def digests(stored: dict[int, dict[str, Any]], online: dict[int, dict[str, Any]]) -> str:
    """Markdown: the weights of both students of each seed."""
    lines = [
        "| seed | weights from the lossless store | weights with the teacher online | equal |",
        "|---|---|---|---|",
    ]
    for seed, result in online.items():
        a, b = stored[seed]["weights_sha256"], result["weights_sha256"]
        lines.append(f"| {seed} | `{a[:16]}` | `{b[:16]}` | {'yes' if a == b else 'no'} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", required=True, help="CIFAR-10's training images, as cli commands take them")
    parser.add_argument("--weights", type=Path, required=True, help="of the ResNet-20")
    parser.add_argument("--seeds", type=int, default=7)
    parser.add_argument("--online-seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=TRAINING.epochs)
    parser.add_argument("--rows", type=int, default=5000)
    parser.add_argument("--test-rows", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    out, training = arguments.out, replace(TRAINING, epochs=arguments.epochs)
    out.mkdir(parents=True, exist_ok=True)
    data = make_data(arguments.data, out / "images.npz", arguments.rows, arguments.test_rows)
    make_stores(out, load_split(data), arguments.weights)
    train_from_stores(out, data, training, arguments.seeds)
    online = {
        seed: train_online(out, data, arguments.weights, replace(training, seed=seed))
        for seed in range(arguments.online_seeds)
    }
    methods = {
        name: {seed: dict(run.result) for seed, run in runs.items()} for name, runs in load_runs(out / "runs").items()
    }
    methods = {BASELINE: methods.pop(BASELINE), ONLINE: online, **methods}
    print(format_table(compare(methods, BASELINE)))
    print("differences are paired by seed, with 95 % intervals over seeds; a star marks those beyond noise")
    print(digests(methods[BASELINE], online))


if __name__ == "__main__":
    main()
