"""Does cross-fitting help overfit teachers, and the correction underfit ones? Random forests on two tables.

`python docs/semiparametric.py DIR [--repeats 5] [--rows 10000] [--tables magic04,adult]`, where DIR holds UCI's
magic04.data, adult.data and adult.test. Prints the table of docs/semiparametric.md. Everything passes through a
store: the forest's probabilities become logits in a .npy file, `ArrayAnswers` caches them, and students learn from
the store alone.
"""

import argparse
import csv
import json
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from pipeline.cache_teacher.answers import ArrayAnswers
from pipeline.cache_teacher.run import cache_teacher
from pipeline.datasets import Split, load_split
from pipeline.encoding import Encoding
from pipeline.fit import Training, predict
from pipeline.folds import FoldPlan
from pipeline.models import Preprocessing, build_model
from pipeline.models.weights import load_into, load_state, read_metadata
from pipeline.train_student.compare import half_width
from pipeline.train_student.folder import WEIGHTS
from pipeline.train_student.losses import parse_objective
from pipeline.train_student.run import train_student
from pipeline.views import Views
from stores import open_store

TREES, NUM_FOLDS, TEST_SHARE, VAL_SHARE = 40, 5, 0.3, 0.1
DEPTHS = (1, None)  # underfit, overfit
STUDENT = "mlp:32x2"
TRAINING = Training(epochs=12, batch_size=256, optimizer="adamw", lr=5e-3, weight_decay=1e-4)
LARGEST_LOG_ODDS = float(np.log(500))  # probabilities are clipped at 1/500, as in the authors' tabular code

# method -> (store, loss, settings): squared error of probabilities, so that only the answers or the correction differ
P_SCALE = {"scale": "probability", "weight": "1", "ce_weight": "0"}
METHODS: dict[str, tuple[str, str, dict[str, str]]] = {
    "labels alone": ("plain", "ce", {}),
    "teacher saw the rows": ("plain", "sel_corrected", {**P_SCALE, "c": "1e-9"}),
    "cross-fitted": ("crossfit", "sel_corrected", {**P_SCALE, "c": "1e-9"}),
    "cross-fitted, corrected": ("crossfit", "sel_corrected", {**P_SCALE, "c": "auto"}),
}
PAIRS = (("cross-fitted", "teacher saw the rows"), ("cross-fitted, corrected", "cross-fitted"))


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


def save_logits(path: Path, prob: np.ndarray) -> None:
    log_odds = np.clip(np.log(prob + 1e-12) - np.log1p(1e-12 - prob), -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)
    np.save(path, np.stack([-log_odds / 2, log_odds / 2], axis=1).astype(np.float32))


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
        answers = ArrayAnswers(folder / f"{name}.npy", split, Views(), plan=plan if name == "crossfit" else None)
        cache_teacher(answers, folder / f"{name}.zarr", encoding=Encoding(kind="dense", num_classes=2, bits=16))
    return teacher


def student_auc(run: Path, test: Split) -> float:
    model = build_model(STUDENT, test)
    load_into(model, load_state(run / WEIGHTS), architecture=STUDENT, source=str(run))
    scaling = Preprocessing.from_attributes(read_metadata(run / WEIGHTS)["preprocessing"])
    logits_NC = predict(model, test, preprocessing=scaling)
    return float(roc_auc_score(test.labels, (logits_NC[:, 1] - logits_NC[:, 0]).numpy()))


def outcomes(data: Path, names: list[str], repeats: int, num_rows: int) -> Iterator[dict[str, Any]]:
    """One record a data set, depth and repeat: AUC of the teacher and of each student on the test rows."""
    tables = {name: read_table(data, name) for name in names}
    for seed in range(repeats):
        for name, (x, y) in tables.items():
            order = np.random.default_rng(seed).permutation(len(y))[:num_rows]
            test_rows, rows = np.split(order, [round(TEST_SHARE * len(order))])
            for depth in DEPTHS:
                with tempfile.TemporaryDirectory() as temporary:
                    folder = Path(temporary)
                    np.savez(folder / "t.npz", x=x[rows], y=y[rows], x_test=x[test_rows], y_test=y[test_rows])
                    split, test = load_split(f"npz:{folder}/t.npz"), load_split(f"npz:{folder}/t.npz?split=test")
                    teacher = cache(folder, split, depth, seed)
                    found = {"teacher": float(roc_auc_score(test.labels, teacher.predict_proba(test.samples)[:, 1]))}
                    chosen_c = 0.0
                    for method, (store, loss, settings) in METHODS.items():
                        run = folder / method
                        stored, objective = open_store(folder / f"{store}.zarr"), parse_objective(loss, settings)
                        training = replace(TRAINING, seed=seed)
                        result = train_student(
                            stored, split, None, STUDENT, objective, training, run, val_share=VAL_SHARE
                        )
                        found[method] = student_auc(run, test)
                        if settings.get("c") == "auto":
                            chosen_c = result["settings"]["terms"][0]["c"]
                yield {"data": name, "depth": depth, "seed": seed, "auc": found, "c": chosen_c}


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: mean AUC (std), and paired differences with 95 % intervals; a star where they exclude zero."""
    columns = ["teacher", *METHODS]
    heads = ["data", "depth", "n", *columns, *(f"{a} - {b}" for a, b in PAIRS), "median c"]
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for name, depth in dict.fromkeys((record["data"], record["depth"]) for record in records):
        own = [record for record in records if (record["data"], record["depth"]) == (name, depth)]
        auc = {column: np.array([record["auc"][column] for record in own]) for column in columns}
        cells = [name, "none" if depth is None else str(depth), str(len(own))]
        cells += [f"{values.mean():.4f} ({values.std(ddof=1):.4f})" for values in auc.values()]
        for a, b in PAIRS:
            differences = auc[a] - auc[b]
            half = half_width(differences.tolist()) or 0.0
            star = "\\*" if abs(differences.mean()) > half else ""
            cells.append(f"{differences.mean():+.4f} ± {half:.4f}{star}")
        cells.append(f"{np.median([record['c'] for record in own]):g}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000, help="of each table, drawn anew in each repeat")
    parser.add_argument("--tables", default="magic04,adult")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    records = []
    for record in outcomes(arguments.data, arguments.tables.split(","), arguments.repeats, arguments.rows):
        records.append(record)
        print(json.dumps(record), flush=True)
    print(table(records))


if __name__ == "__main__":
    main()
