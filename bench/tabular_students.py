"""Forest and boosted students of a forest of 500 trees, with and without cross-fitting: Adult and MAGIC.

`python -m bench.tabular_students DATA`, where DATA holds UCI's adult.data, adult.test and magic04.data, prints a line
of JSON for every student, and the table of docs/measurements/tabular-students.md at the end. Everything passes through
a store. `--from FILE` prints the table of lines that were kept.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from logitbank import (
    Encoding,
    Inputs,
    Run,
    Split,
    Training,
    Views,
    cache_teacher,
    load_split,
    open_store,
    train_student,
)
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.estimators import EstimatorTeacher
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.train_student.compare import half_width

NUM_FOLDS = 10
FLOOR = 0.002  # the least probability, 1/500, as in the authors' tabular code
TABLES = {
    "adult": "csv:{0}/adult.data?header=0&comment=|&label_strip=.&test={0}/adult.test",
    "magic": "csv:{0}/magic04.data?header=0",
}
STUDENTS = {
    "1 tree": "sklearn:RandomForestRegressor?n_estimators=1",
    "10 trees": "sklearn:RandomForestRegressor?n_estimators=10",
    "40 trees": "sklearn:RandomForestRegressor?n_estimators=40",
    "boosted": "sklearn:HistGradientBoostingRegressor",
}
SQUARED = {"scale": "probability", "weight": "1", "ce_weight": "0"}
# name -> store, loss, settings; c = 1e9 leaves the labels, c = 1e-9 the teacher
METHODS: dict[str, tuple[str, str, dict[str, str]]] = {
    "labels": ("seen", "sel_corrected", {**SQUARED, "c": "1e9"}),
    "seen, logits": ("seen", "mse", {}),
    "seen": ("seen", "sel_corrected", {**SQUARED, "c": "1e-9"}),
    "cross-fitted": ("crossfit", "sel_corrected", {**SQUARED, "c": "1e-9"}),
    "corrected": ("crossfit", "sel_corrected", {**SQUARED, "c": "0.01"}),
}
# Dao et al. 2021, from the result files of their repository: no KD, vanilla KD (log scale), cross-fitted, corrected
PUBLISHED = {
    ("adult", "1 tree"): (0.740, 0.889, 0.899, 0.900),
    ("adult", "10 trees"): (0.882, 0.908, 0.911, 0.911),
    ("adult", "40 trees"): (0.900, 0.910, 0.912, 0.912),
    ("magic", "1 tree"): (0.787, 0.894, 0.908, 0.908),
    ("magic", "10 trees"): (0.914, 0.920, 0.922, 0.922),
    ("magic", "40 trees"): (0.928, 0.924, 0.924, 0.924),
}


def read_table(spec: str) -> tuple[Any, Any]:
    """All rows, float32 [N, D], and labels int64 [N], whatever the split they are published in."""
    parts = [load_split(f"{spec}&split={split}") for split in ("train", "test")]
    return np.concatenate([part.samples for part in parts]), np.concatenate([part.labels for part in parts])


def draw(path: Path, x: Any, y: Any, *, rows: int, share: float, seed: int) -> tuple[Split, Split]:
    """Training rows and the share of the table that is tested on, drawn anew by each seed."""
    order = np.random.default_rng(seed).permutation(len(y))
    test, train = np.split(order, [round(share * len(y))])
    train = train[:rows] if rows else train
    np.savez(path, x=x[train], y=y[train], x_test=x[test], y_test=y[test])
    return load_split(f"npz:{path}"), load_split(f"npz:{path}?split=test")


def write_stores(folder: Path, split: Split, test: Split, trees: int, seed: int) -> dict[str, float]:
    """The answers of a teacher that saw each row, and of cross-fitted ones; AUC of the first on test rows."""
    teacher = RandomForestClassifier(trees, random_state=seed).fit(split.samples, split.labels)
    seen_NC = teacher.predict_proba(split.samples).clip(FLOOR, 1)
    np.save(folder / "seen.npy", np.log(seen_NC).astype(np.float32))
    encoding = Encoding(kind="dense", num_classes=2, bits=32)
    cache_teacher(ArrayTeacher(folder / "seen.npy", split, Views()), folder / "seen.zarr", encoding=encoding)
    plan = FoldPlan(num_folds=NUM_FOLDS, strategy="kfold", seed=seed)
    forest = f"sklearn:RandomForestClassifier?n_estimators={trees}&floor={FLOOR}"
    crossfit = EstimatorTeacher(forest, split, plan=plan, seed=seed)
    cache_teacher(crossfit, folder / "crossfit.zarr", encoding=encoding)
    return {"teacher": float(roc_auc_score(test.labels, teacher.predict_proba(test.samples)[:, 1]))}


def outcomes(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """AUC on the test rows of every table, repeat, student and method."""
    tables = {name: read_table(TABLES[name].format(arguments.data)) for name in arguments.tables.split(",")}
    for seed in range(arguments.first, arguments.first + arguments.repeats):
        for name, (x, y) in tables.items():
            with tempfile.TemporaryDirectory() as temporary:
                folder = Path(temporary)
                split, test = draw(folder / "t.npz", x, y, rows=arguments.rows, share=arguments.test_share, seed=seed)
                found = write_stores(folder, split, test, arguments.trees, seed)
                yield {"table": name, "seed": seed, "rows": len(split), "test_rows": len(test), "auc": found}
                for student, spec in STUDENTS.items():
                    found = {
                        method: train(
                            folder / f"{student}, {method}", folder / f"{store}.zarr", split, test, spec, told
                        )
                        for method, (store, *told) in METHODS.items()
                    }
                    yield {"table": name, "seed": seed, "student": student, "auc": found}


def train(out: Path, store: Path, split: Split, test: Split, student: str, told: list[Any]) -> float:
    loss, settings = told
    run = Run(
        store=str(store),
        data=split.spec,
        student=student,
        loss=loss,
        settings=settings,
        training=Training(seed=int(split.fingerprint[:6], 16)),  # one for all students of a repeat
        threads=1,
    )
    result = train_student(run, out, inputs=Inputs(store=open_store(store), split=split, test=test))
    return float(result["test"]["auc"])


def table(records: list[dict[str, Any]]) -> str:
    """Markdown: means, standard deviations, and differences paired by repeat with 95 % intervals."""
    students = [each for each in records if "student" in each]
    counts = Counter((each["table"], each["student"]) for each in students)
    repeats = " or ".join(map(str, sorted(set(counts.values()))))
    lines = _head(f"table, student (n = {repeats})", *METHODS, "cross-fitted - seen")
    for name, student in ((name, student) for name in TABLES for student in STUDENTS if counts[name, student]):
        own = [each["auc"] for each in students if (each["table"], each["student"]) == (name, student)]
        cells = [f"{name}, {student}", *(mean([auc[method] for auc in own]) for method in METHODS)]
        lines.append(f"| {' | '.join([*cells, difference([auc['cross-fitted'] - auc['seen'] for auc in own])])} |")
    teachers = {
        name: [each["auc"]["teacher"] for each in records if each["table"] == name and "student" not in each]
        for name in TABLES
    }
    said = ", ".join(f"{name} {mean(values)}" for name, values in teachers.items() if values)
    lines += ["", f"Teachers: {said}.", "", "Published (the authors' result files, n = 5, all training rows):", ""]
    lines += _head("table, student", "labels", "seen, logits", "cross-fitted", "corrected")
    for (name, student), values in PUBLISHED.items():
        lines.append(f"| {name}, {student} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return "\n".join(lines)


def _head(*names: str) -> list[str]:
    return [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]


def mean(values: list[float]) -> str:
    return f"{np.mean(values):.4f} ({np.std(values, ddof=1):.4f})" if len(values) > 1 else f"{values[0]:.4f}"


def difference(values: list[float]) -> str:
    half = half_width(values) or 0.0
    return f"{np.mean(values):+.4f} ± {half:.4f}" + ("\\*" if abs(np.mean(values)) > half > 0 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="seed of the first repeat")
    parser.add_argument("--trees", type=int, default=500, help="of the teacher")
    parser.add_argument("--rows", type=int, default=5000, help="training rows of each repeat; 0: all that are left")
    parser.add_argument("--test-share", type=float, default=0.3, help="share of the table that is tested on")
    parser.add_argument("--tables", default=",".join(TABLES))
    parser.add_argument("--from", dest="kept", type=Path, help="lines of an earlier run: print their table alone")
    arguments = parser.parse_args()
    if not (arguments.data or arguments.kept):
        print(json.dumps({"name": "tabular_students", "skipped": "name a folder with the tables"}))
        return
    torch.set_num_threads(1)
    if arguments.kept is not None:
        records = [json.loads(line) for line in arguments.kept.read_text().splitlines() if line.startswith("{")]
    else:
        records = []
        for record in outcomes(arguments):
            records.append(record)
            print(json.dumps(record), flush=True)
    print(f"\n{table(records)}", file=sys.stdout)


if __name__ == "__main__":
    main()
