"""The whole job on scikit-learn's handwritten digits, from teachers to table and plot.

The setting is the one that distillation is for: few rows have a label, many have none, and a teacher that learnt from
the few answers them all.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.look.describe import describe_kind
from logitbank.pipeline.look.plots import plot_comparison
from logitbank.pipeline.train_student.compare import Comparison, compare, format_table
from logitbank.pipeline.train_student.folder import read_json, write_json
from logitbank.pipeline.train_student.inputs import Inputs
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views
from logitbank.stores import open_store, verify_store
from logitbank.stores.locks import locked

MARKER = "demo.json"
NUM_LABELS = 200
TEACHER, STUDENT = "cnn", "mlp:8"
NUM_FOLDS = 5
TEACHER_TRAINING = Training(epochs=60, lr=0.05)  # each of some 160 rows
STUDENT_EPOCHS, STUDENT_LR = 30, 0.05
BASELINE = "hard labels"

# method -> (loss, store), with the losses' defaults. "crossfit" holds answers of teachers that had not seen a row's
# label, "plain" those of one teacher that had seen every label there is. RLD is not among them: it corrects answers by
# labels, and learns nothing from a row without one.
METHODS: dict[str, tuple[str, str]] = {
    BASELINE: ("ce", "crossfit"),
    "KD (Hinton)": ("kd", "crossfit"),
    "KD, teacher saw the rows": ("kd", "plain"),
    "power divergence (REDistill)": ("redistill", "crossfit"),
    "cross-fitting + correction": ("sel_corrected", "crossfit"),
}


def run_demo(out: Path, *, seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Runs the demo into a folder that it owns, or goes on with it; anything else there is refused.

    Returns:
        What ``demo.json`` holds: the comparison and how long each stage took.
    """
    if seeds < 3:
        raise ValueError(f"--seeds is {seeds}; expected at least 3, since spread is half of the answer")
    with locked(out):
        there = _claim(out, seeds)
        if "rows" not in there:
            return _run(out, seeds, say)
    say(f"already there: {out}\n\n{format_table([Comparison(**row) for row in there['rows']])}")
    return there


def _run(out: Path, seeds: int, say: Callable[[str], None]) -> dict[str, Any]:
    torch.set_num_threads(1)  # networks this small lose time to more threads
    started = time.perf_counter()
    train, test = load_split(f"digits?split=train&labelled={NUM_LABELS}"), load_split("digits?split=test")
    say(
        f"data: {len(train)} training and {len(test)} test digits (real scans, inside scikit-learn); {NUM_LABELS}"
        " training digits keep their label, the others have none for teachers and students alike\n"
    )

    say(f"stage one: {NUM_FOLDS} fold teachers and one plain teacher ({TEACHER}), each run once")
    for name, plan in (("crossfit", FoldPlan(num_folds=NUM_FOLDS)), ("plain", None)):
        train_teachers(train, TEACHER, TEACHER_TRAINING, out / "teachers" / name, plan=plan)
        teachers = load_teachers(train, TEACHER, str(out / "teachers" / name))
        encoding = Encoding(kind="dense", num_classes=train.num_classes, bits=16)
        answers = NetworkTeacher(train, teachers, Views())
        summary = cache_teacher(answers, out / f"{name}.zarr", encoding=encoding)
        problems = verify_store(out / f"{name}.zarr")
        if problems:
            raise ValueError(f"{out / name}.zarr does not verify: {problems[0].message}")
        check_data(open_store(out / f"{name}.zarr"), train)
        say(
            f"  {name}.zarr: verified; teacher's accuracy {summary['accuracy']:.4f}, ECE {summary['ece']:.4f}"
            f" ({describe_kind(summary)})"
        )
    stage_one = time.perf_counter() - started

    say(f"\nstage two: {len(METHODS)} methods x {seeds} seeds, student {STUDENT}, without the teachers")
    runs = {name: _students(name, train, test, out, seeds, say) for name in METHODS}
    stage_two = time.perf_counter() - started - stage_one

    rows = compare(runs, BASELINE)
    plot = out / "demo.png"
    teacher = open_store(out / "crossfit.zarr").teacher()
    plot_comparison(
        rows, teacher.summary or {}, plot, title=f"digits: {TEACHER} teacher, {STUDENT} student, n = {seeds} seeds"
    )
    say("\n" + format_table(rows))
    for what, clear in (
        ("accuracy", [row.name for row in rows if not row.within_noise]),
        ("NLL", [row.name for row in rows if not row.nll_within_noise]),
    ):
        say(f"{what} differs from {BASELINE!r} beyond noise: {', '.join(clear) or 'nowhere'}; elsewhere within noise.")
    say(
        f"One test image is {100 / len(test):.2f} points. Intervals cover the seeds, not the choice of the {len(test)}"
        f" test images, and are not corrected for comparing {len(METHODS) - 1} methods."
    )
    say(f"\nstage one took {stage_one:.1f} s once, stage two {stage_two:.1f} s for {len(METHODS) * seeds} students")
    say(f"plot: {plot}\nlook at the store: cli inspect {out / 'crossfit.zarr'}")
    report = {
        "rows": [vars(row) for row in rows],
        "seconds": {"stage_one": stage_one, "stage_two": stage_two},
        "seeds": seeds,
    }
    write_json(out / MARKER, report)
    return report


def _students(
    name: str, train: Split, test: Split, out: Path, seeds: int, say: Callable[[str], None]
) -> dict[int, dict[str, Any]]:
    loss, store_name = METHODS[name]
    store = open_store(out / f"{store_name}.zarr")
    results = {}
    for seed in range(seeds):
        training = Training(epochs=STUDENT_EPOCHS, lr=STUDENT_LR, seed=seed)
        run = Run(store=str(store.path), student=STUDENT, loss=loss, training=training)
        folder = out / "students" / f"{loss}-{store_name}-seed{seed}"
        results[seed] = train_student(run, folder, inputs=Inputs(store=store, split=train, test=test))
    accuracies = [f"{100 * result['accuracy']:.2f}" for result in results.values()]
    say(f"  {name}: {', '.join(accuracies)}")
    return results


def _claim(out: Path, seeds: int) -> dict[str, Any]:
    """What ``demo.json`` says: from the start how many seeds, so that a killed demo goes on; all else at the end."""
    if (out / MARKER).exists():
        there: dict[str, Any] = read_json(out / MARKER)
        if there["seeds"] != seeds:
            raise ValueError(f"{out} is a demo with --seeds {there['seeds']}; choose another --out or remove it")
        return there
    if out.exists() and any(out.iterdir()):
        raise ValueError(f"{out} holds something that is not a demo; choose another --out or remove it")
    out.mkdir(exist_ok=True)
    write_json(out / MARKER, {"seeds": seeds})
    return {"seeds": seeds}
