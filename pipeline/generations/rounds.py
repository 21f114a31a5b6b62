"""The driver: each round trains students on the last store, lets them answer out of fold, and measures them.

OUT/roundG/student      trained on every row, measured on the test data: the generation's result
OUT/roundG/foldB        trained without fold B
OUT/roundG/store        what the fold students say of the rows that they were not trained on: the next round's teacher
OUT/roundG/targets      that store and the first one, of an anchored run
OUT/roundG/teacher-only, OUT/labels-only    the same of students of one side alone, of --label-weight auto
OUT/generations.csv     one line a round

Everything in a round goes on where it was stopped, so the same call does.
"""

import csv
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from logitbank.pipeline.alignment import check_data, describe_examples
from logitbank.pipeline.answers.interface import Answers
from logitbank.pipeline.answers.opening import open_answers, parse_teachers
from logitbank.pipeline.answers.side_by_side import side_by_side
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.described import changed
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit.estimators import is_estimator
from logitbank.pipeline.generations.settings import AUTO, Generations
from logitbank.pipeline.metrics import measure_agreement
from logitbank.pipeline.processes.device import find_device
from logitbank.pipeline.train_student.folder import RESULT, WEIGHTS
from logitbank.pipeline.train_student.inputs import Inputs, open_inputs
from logitbank.pipeline.train_student.label_weight import best_label_weight, labelled_rows
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from logitbank.stores.files import whole_file
from logitbank.stores.write.merge import merge_stores


@dataclass(frozen=True, kw_only=True)
class Round:
    """What a generation of students is worth.

    Attributes:
        round: From 1.
        accuracy, nll: Of the student of all rows, on the test data; None without one.
        fold_accuracy, fold_nll: Of the fold students, on the training rows that they were not trained on.
        kl_from_first: KL(first teacher || fold students) over these rows, nats.
        label_weight: Share of the label in the targets, where one was asked for.
    """

    round: int
    accuracy: float | None
    nll: float | None
    fold_accuracy: float | None
    fold_nll: float | None
    kl_from_first: float
    label_weight: float | None


def train_generations(
    run: Run,
    out: Path,
    generations: Generations,
    *,
    inputs: Inputs | None = None,
    on_step: Callable[[str], None] | None = None,
) -> list[Round]:
    """Students that teach the next students.

    The first store holds the answers of fold teachers. Each round trains, with the settings of ``run``, one student on
    all rows and one on the complement of each fold, and caches what the latter say of their own folds. That store
    teaches the next round; with an anchor, together with the first teacher.

    Args:
        run: Of each student: its store is the first one. Seeds differ from student to student.
        out: Folder of the rounds; the same call goes on with a stopped one.
        generations: How many rounds, and what is mixed into the targets.
        inputs: The first store and data that are open already; by default those that ``run`` names.
        on_step: Told what is done next.

    Returns:
        What each round is worth; fewer than asked for when patience ended them.

    Raises:
        ValueError: The first store was not written by fold teachers, or a setting makes no sense with it.
    """
    inputs = inputs or open_inputs(run)
    check_data(inputs.store, inputs.split)
    driver = _Driver(run, out, generations, inputs, on_step or (lambda _: None))
    rounds: list[Round] = []
    while len(rounds) < generations.rounds and not _worn_out(rounds, generations.stop_after):
        rounds.append(driver.round(len(rounds) + 1))
        _write(out, rounds)
    return rounds


class _Driver:
    def __init__(
        self, run: Run, out: Path, generations: Generations, inputs: Inputs, on_step: Callable[[str], None]
    ) -> None:
        store = inputs.store
        names = list(parse_teachers(run.teacher or None)) or [store.teacher(None).name]
        plan = store.teacher(names[0]).folds
        if plan is None:
            raise ValueError(
                f"teacher {names[0]!r} of {store.path} has no folds, so a student would learn what it then answers;"
                " cache fold teachers, with cache-teacher --folds"
            )
        if is_estimator(run.student):
            raise ValueError(
                f"{run.student} is no network, and only networks teach the next round; take another --student"
            )
        if Views.from_attributes(store.views).label_map:
            raise ValueError(f"{store.path} holds label maps, and students answer pictures; cache without --label-map")
        if run.leave_out:
            raise ValueError("--leave-out is what the rounds do by themselves; leave it out")
        if generations.label_weight and "+" in run.loss:
            raise ValueError(f"--label-weight is a sum with the label already; --loss {run.loss!r} must be one loss")
        self.run, self.out, self.settings, self.inputs, self.on_step = run, out, generations, inputs, on_step
        asked = generations.label_weight
        mixed = self._mixed(run, (0.5 if asked == AUTO else float(asked)) if asked else None)
        if generations.rounds > 1 and "embedding" in mixed.objective(inputs.split.num_classes).needs:
            raise ValueError(
                f"loss {run.loss!r} needs a teacher's features, and students that teach the next round keep none; pass"
                " --rounds 1, or choose another loss"
            )
        self.num_folds = int(plan["num_folds"])
        self.encoding = Encoding.from_attributes(store.teacher(names[0]).encoding)
        self.device = find_device(run.device, run.threads)
        self.first = run.teacher or names[0]

    def round(self, number: int) -> Round:
        """Trains, caches and measures one generation."""
        folder = self.out / f"round{number}"
        taught = self._taught(number)
        weight = self._label_weight(taught, number)
        run = changed(self._mixed(taught, weight), {"seed": self._seed(number, self.num_folds)})
        result = self._train(run, folder / "student", f"round{number}: the student of all rows")
        store, summary = self._answers_of(run, folder, number, name=f"round{number}")
        return Round(
            round=number,
            accuracy=result.get("accuracy"),
            nll=result.get("nll"),
            fold_accuracy=summary.get("accuracy"),
            fold_nll=summary.get("nll"),
            kl_from_first=mean_kl(self._open(self.inputs.store, self.first), self._open(store)),
            label_weight=weight,
        )

    def _taught(self, number: int) -> Run:
        """The student's settings with this round's teacher."""
        if number == 1:
            return self.run
        before = self.out / f"round{number - 1}"
        alone = replace(self.run, store=str(before / "store"), teacher="", combine="mean-prob")
        if not self.settings.anchor:
            return alone
        first, share = parse_teachers(self.first), self.settings.anchor
        scale = share / sum(first.values())
        names = [f"round{number - 1}:{1 - share!r}", *(f"{name}:{value * scale!r}" for name, value in first.items())]
        merge_stores([before / "store", self.inputs.store.path], before / "targets", describe=describe_examples)
        return replace(self.run, store=str(before / "targets"), teacher=",".join(names))

    def _label_weight(self, taught: Run, number: int) -> float | None:
        if self.settings.label_weight != AUTO:
            return float(self.settings.label_weight) if self.settings.label_weight else None
        labels_only, _ = self._answers_of(self._mixed(self.run, 1.0), self.out / "labels-only", 0, name="labels")
        folder = self.out / f"round{number}/teacher-only"
        teacher_only, _ = self._answers_of(self._mixed(taught, 0.0), folder, number, name=f"teacher{number}")
        labels_N = torch.from_numpy(self.inputs.split.labels)
        return best_label_weight(labelled_rows(self._open(labels_only), self._open(teacher_only), labels_N))

    def _answers_of(self, run: Run, folder: Path, number: int, *, name: str) -> tuple[Store, dict[str, Any]]:
        """Fold students, trained where they are not there yet, and the store of what they say."""
        for fold in range(self.num_folds):
            what = f"{folder.relative_to(self.out)}: the student without fold {fold} of {self.num_folds}"
            left = changed(replace(run, leave_out=str(fold)), {"seed": self._seed(number, fold)})
            self._train(left, folder / f"fold{fold}", what)
        teacher = build_teacher(
            self.inputs.split,
            run.student,
            str(folder / f"fold{{fold}}/{WEIGHTS}"),
            Views.from_attributes(self.inputs.store.views),
            device=self.device,
        )
        summary = cache_teacher(teacher, folder / "store", encoding=self.encoding, name=name)
        return open_store(folder / "store"), summary

    def _mixed(self, run: Run, weight: float | None) -> Run:
        """The run whose targets are the label to a share; cross-entropy and KL at T = 1 are linear in the target."""
        if weight is None:
            return run
        if weight == 1:
            return replace(run, loss="ce", settings={})
        label = f" + ce:{weight!r}" if weight else ""
        return replace(
            run, loss=f"{run.loss}:{1 - weight!r}{label}", label_smoothing=run.label_smoothing if weight else 0.0
        )

    def _seed(self, number: int, fold: int) -> int:
        return self.run.training.seed + number * (self.num_folds + 1) + fold

    def _train(self, run: Run, folder: Path, what: str) -> dict[str, Any]:
        if not (folder / RESULT).exists():
            self.on_step(what)
        # the first store is open, and may be one that is elsewhere
        store = self.inputs.store if run.store == self.run.store else open_store(Path(run.store))
        return train_student(run, folder, inputs=replace(self.inputs, store=store))

    def _open(self, store: Store, teacher: str = "") -> Answers:
        combine = self.run.combine if "," in teacher else "mean-prob"
        return open_answers(store, teacher=teacher or None, combine=combine, memory_budget=self.run.budget)


def mean_kl(first: Answers, second: Answers) -> float:
    """KL(first || second) in nats, mean over the answers to the first view that both give."""
    total, count = 0.0, 0
    for place_P, (first_PC, second_PC) in side_by_side([first, second], torch.arange(len(first.served(0)))):
        if len(place_P):
            total += len(place_P) * measure_agreement(second_PC, first_PC, torch.full_like(place_P, -1))["kl"]
            count += len(place_P)
    return total / max(count, 1)


def _worn_out(rounds: list[Round], patience: int) -> bool:
    """Whether the last rounds brought no better out-of-fold NLL."""
    if not patience or not rounds:
        return False
    measured = [each.fold_nll for each in rounds if each.fold_nll is not None]
    if len(measured) < len(rounds):
        raise ValueError("--stop-after needs labels: no row of the data has one; leave it out")
    return len(measured) - 1 - measured.index(min(measured)) >= patience


def _write(out: Path, rounds: list[Round]) -> None:
    names = [field.name for field in dataclasses.fields(Round)]
    with whole_file(out / "generations.csv") as path, path.open("w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(dataclasses.asdict(each) for each in rounds)
