"""Does cross-fitting help overfit teachers, and the correction underfit ones? Random forests on two tables.

`python docs/measurements/semiparametric.py DIR`, where DIR holds UCI's magic04.data, adult.data and adult.test,
prints the tables of docs/measurements/semiparametric.md. Everything passes through a store: the forest's probabilities
become logits in a .npy file, `ArrayTeacher` caches them, and students learn from the store alone.
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import log_loss, roc_auc_score

from logitbank import (
    Encoding,
    Inputs,
    Run,
    Split,
    Training,
    Views,
    build_model,
    cache_teacher,
    load_split,
    open_store,
    train_student,
)
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.models.weights import load_into, load_state, read_metadata
from logitbank.pipeline.train_student.compare import half_width
from logitbank.pipeline.train_student.folder import WEIGHTS

TREES, NUM_FOLDS = 40, 5
LARGEST_LOG_ODDS = float(np.log(500))  # probabilities are clipped at 1/500, as in the authors' tabular code

Method = tuple[str, str, dict[str, str]]  # store, loss, settings

# The teacher's answers and nothing else, so that columns differ in one thing.
SQUARED = {"scale": "probability", "weight": "1", "ce_weight": "0"}
ALONE = {"temperature": "1", "weight": "1", "ce_weight": "0"}
LABELS: dict[str, Method] = {"labels alone": ("plain", "ce", {})}
FITTED: dict[str, Method] = {
    "squared error, seen": ("plain", "sel_corrected", {**SQUARED, "c": "1e-9"}),
    "squared error, cross-fitted": ("crossfit", "sel_corrected", {**SQUARED, "c": "1e-9"}),
    "KD, seen": ("plain", "kd", ALONE),
    "KD, cross-fitted": ("crossfit", "kd", ALONE),
}
CORRECTED: dict[str, Method] = {"corrected": ("crossfit", "sel_corrected", {**SQUARED, "c": "auto"})}


@dataclass(frozen=True, kw_only=True)
class Student:
    """One student: what it is, how long it learns, and which methods it is trained with."""

    model: str
    training: Training
    methods: Mapping[str, Method]
    val_share: float = 0.0


SMALL = Student(
    model="mlp:32x2",
    training=Training(epochs=12, batch_size=256, optimizer="adamw", lr=5e-3, weight_decay=1e-4),
    methods={**LABELS, **FITTED, **CORRECTED},
    val_share=0.1,
)
LARGE = Student(
    model="mlp:128x2",
    training=Training(epochs=40, batch_size=256, optimizer="adamw", lr=5e-3, weight_decay=0.0),
    methods={**LABELS, **FITTED},
)
STUDENTS = {1: (SMALL,), None: (SMALL, LARGE)}  # depth of the forest, 1: underfit, None: overfit -> who learns


def read_table(folder: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Features, categories as one column a value, and labels 0 or 1."""
    files = {"magic04": ["magic04.data"], "adult": ["adult.data", "adult.test"]}[name]
    rows = [
        [cell.strip().rstrip(".") for cell in row]
        for file in files
        for row in csv.reader((folder / file).read_text().splitlines())
        if len(row) > 1
    ]
    columns = list(zip(*rows, strict=True))
    labels = np.array([label in ("g", ">50K") for label in columns.pop()], dtype=np.int64)
    features: list[np.ndarray] = []
    for column in columns:
        try:
            features.append(np.array(column, dtype=np.float32))
        except ValueError:
            features += [np.array([cell == value for cell in column], np.float32) for value in sorted(set(column))]
    return np.stack(features, axis=1), labels


def forest(depth: int | None, seed: int) -> RandomForestClassifier:
    return RandomForestClassifier(TREES, max_depth=depth, random_state=seed)


def log_odds(prob: np.ndarray) -> np.ndarray:
    odds: np.ndarray = np.log(prob + 1e-12) - np.log1p(1e-12 - prob)
    return odds.clip(-LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)


def save_logits(path: Path, prob: np.ndarray) -> None:
    odds = log_odds(prob)
    np.save(path, np.stack([-odds / 2, odds / 2], axis=1).astype(np.float32))


def cache(folder: Path, split: Split, depth: int | None, seed: int) -> RandomForestClassifier:
    """Writes the stores ``plain`` and ``crossfit``; returns the teacher that saw every row."""
    plan = FoldPlan(num_folds=NUM_FOLDS, strategy="kfold", seed=seed)
    folds = plan.assign(split)
    x, y = np.asarray(split.samples), split.labels
    teacher = forest(depth, seed).fit(x, y)
    prob = teacher.predict_proba(x)[:, 1]
    save_logits(folder / "plain.npy", prob)
    for fold in range(NUM_FOLDS):
        own = folds == fold
        prob[own] = forest(depth, seed).fit(x[~own], y[~own]).predict_proba(x[own])[:, 1]
    save_logits(folder / "crossfit.npy", prob)
    for name in ("plain", "crossfit"):
        answers = ArrayTeacher(folder / f"{name}.npy", split, Views(), plan=plan if name == "crossfit" else None)
        cache_teacher(answers, folder / f"{name}.zarr", encoding=Encoding(kind="dense", num_classes=2, bits=16))
    return teacher


def measure(labels: np.ndarray, odds: np.ndarray) -> dict[str, float]:
    """AUC and NLL (nats) of log-odds for label 1."""
    prob = np.exp(-np.logaddexp(0, -odds.astype(np.float64)))
    return {"auc": float(roc_auc_score(labels, odds)), "nll": float(log_loss(labels, prob))}


def measure_student(run: Path, architecture: str, test: Split) -> dict[str, float]:
    model = build_model(architecture, test)
    load_into(model, load_state(run / WEIGHTS), architecture=architecture, source=str(run))
    scaling = Preprocessing.from_attributes(read_metadata(run / WEIGHTS)["preprocessing"])
    logits_NC = predict(model, test, preprocessing=scaling)
    return measure(test.labels, (logits_NC[:, 1] - logits_NC[:, 0]).numpy())


def write_repeat(path: Path, x: np.ndarray, y: np.ndarray, *, rows: int, tests: int, flip: float, seed: int) -> None:
    """Draws training and test rows, and flips a share of the training labels."""
    rng = np.random.default_rng(seed)
    train, test = np.split(rng.permutation(len(y))[: rows + tests], [rows])
    noise = rng.random(len(train)) < flip
    np.savez(path, x=x[train], y=np.where(noise, 1 - y[train], y[train]), x_test=x[test], y_test=y[test])


def outcomes(data: Path, names: list[str], repeats: int, rows: int, tests: int) -> Iterator[dict[str, Any]]:
    """One record a repeat, data set, depth and student: measures of the teacher and of each method on the test rows."""
    tables = {name: read_table(data, name.partition(":")[0]) for name in names}
    for seed in range(repeats):
        for name, (x, y) in tables.items():
            flip = float(name.partition(":")[2] or 0)
            with tempfile.TemporaryDirectory() as temporary:
                path = Path(temporary) / "t.npz"
                write_repeat(path, x, y, rows=rows, tests=tests, flip=flip, seed=seed)
                split, test = load_split(f"npz:{path}"), load_split(f"npz:{path}?split=test")
                for depth, students in STUDENTS.items():
                    folder = Path(temporary) / f"depth-{depth}"
                    folder.mkdir()
                    teacher = cache(folder, split, depth, seed)
                    odds = log_odds(teacher.predict_proba(test.samples)[:, 1])
                    for student in students:
                        found, c = train(folder, split, test, student, seed)
                        found = {"teacher": measure(test.labels, odds), **found}
                        yield {
                            "data": name,
                            "depth": depth,
                            "student": student.model,
                            "seed": seed,
                            "found": found,
                            "c": c,
                        }


def train(
    folder: Path, split: Split, test: Split, student: Student, seed: int
) -> tuple[dict[str, dict[str, float]], float | None]:
    """Measures of the student by method, and the correction's ``c`` if one was searched."""
    found, chosen = {}, None
    for method, (store, loss, settings) in student.methods.items():
        out, path = folder / f"{student.model}, {method}", folder / f"{store}.zarr"
        run = Run(
            store=str(path),
            data=split.spec,
            student=student.model,
            loss=loss,
            settings=settings,
            training=replace(student.training, seed=seed),
            val_share=student.val_share,
        )
        result = train_student(run, out, inputs=Inputs(store=open_store(path), split=split))
        found[method] = measure_student(out, student.model, test)
        if settings.get("c") == "auto":
            chosen = float(result["settings"]["terms"][0]["c"])
    return found, chosen


def cross_fitting(records: list[dict[str, Any]], measure: str) -> str:
    """Markdown: overfit teachers that have seen the rows against cross-fitted ones, for each student and loss."""
    heads = [
        f"data, student, loss ({repeats(records)})",
        "teacher",
        "labels alone",
        "seen",
        "cross-fitted",
        "difference",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for (name, depth, student), found in by_row(records).items():
        for loss in ("squared error", "KD") if depth is None else ():
            a, b = f"{loss}, cross-fitted", f"{loss}, seen"
            cells = [f"{name}, {student}, {loss}"]
            cells += [mean(found, column, measure) for column in ("teacher", "labels alone", b, a)]
            lines.append(f"| {' | '.join([*cells, difference(found, a, b, measure)])} |")
    return "\n".join(lines)


def correction(records: list[dict[str, Any]]) -> str:
    """Markdown: the correction on top of cross-fitting, AUC and difference of NLL."""
    a, b = "corrected", "squared error, cross-fitted"
    columns = {"seen": "squared error, seen", "cross-fitted": b, "corrected": a}
    heads = [
        f"data, depth, the teacher's AUC ({repeats(records)})",
        *columns,
        "change, AUC",
        "change, NLL",
        "c",
    ]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    own = [record for record in records if a in record["found"]]
    for (name, depth, student), found in by_row(own).items():
        chosen = [r["c"] for r in own if (r["data"], r["depth"], r["student"]) == (name, depth, student)]
        cells = [f"{name}, {'none' if depth is None else depth}, {mean(found, 'teacher', 'auc')}"]
        cells += [mean(found, column, "auc") for column in columns.values()]
        cells += [difference(found, a, b, measure) for measure in ("auc", "nll")]
        lines.append(f"| {' | '.join([*cells, f'{np.median(chosen):g}'])} |")
    return "\n".join(lines)


def repeats(records: list[dict[str, Any]]) -> str:
    """How many repeats the rows of a table have."""
    return f"n = {' or '.join(map(str, sorted({len(found) for found in by_row(records).values()})))}"


def by_row(records: list[dict[str, Any]]) -> dict[tuple[str, int | None, str], list[dict[str, Any]]]:
    """What was found in every repeat, by data, depth and student."""
    rows: dict[tuple[str, int | None, str], list[dict[str, Any]]] = {}
    for record in records:
        rows.setdefault((record["data"], record["depth"], record["student"]), []).append(record["found"])
    return rows


def mean(found: list[dict[str, Any]], method: str, measure: str) -> str:
    values = np.array([one[method][measure] for one in found])
    return f"{values.mean():.4f} ({values.std(ddof=1):.4f})"


def difference(found: list[dict[str, Any]], a: str, b: str, measure: str) -> str:
    """``a - b``, paired by repeat, with its 95 % interval; a star where that excludes zero."""
    values = np.array([one[a][measure] - one[b][measure] for one in found])
    half = half_width(values.tolist()) or 0.0
    return f"{values.mean():+.4f} ± {half:.4f}" + ("\\*" if abs(values.mean()) > half else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--rows", type=int, default=7000, help="training rows of each table, drawn anew in each repeat")
    parser.add_argument("--test-rows", type=int, default=12_000, help="of the other rows, at most")
    help_tables = "magic04 or adult; NAME:SHARE flips that share of the training labels"
    parser.add_argument("--tables", default="adult,magic04,magic04:0.2", help=help_tables)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    names = arguments.tables.split(",")
    for record in outcomes(arguments.data, names, arguments.repeats, arguments.rows, arguments.test_rows):
        records.append(record)
        print(json.dumps(record), flush=True)
    for title, text in (
        ("AUC", cross_fitting(records, "auc")),
        ("NLL", cross_fitting(records, "nll")),
        ("Correction, AUC", correction(records)),
    ):
        print(f"\n{title}\n\n{text}")


if __name__ == "__main__":
    main()
