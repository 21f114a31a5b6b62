"""Students that teach the next students: each round is the two stages once more, and nobody answers what it saw."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.alignment import describe_examples
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.described import changed
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.generations.rounds import mean_kl, train_generations
from logitbank.pipeline.generations.settings import Generations
from logitbank.pipeline.models.weights import load_state, read_metadata, read_training_keys, weights_digest
from logitbank.pipeline.train_student.folder import WEIGHTS
from logitbank.pipeline.train_student.inputs import Inputs
from logitbank.pipeline.train_student.label_weight import best_label_weight
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from logitbank.stores.write.merge import merge_stores
from tests.students import train

DENSE = Encoding(kind="dense", num_classes=10, bits=16)


@pytest.fixture(scope="module")
def store(digits: Split, fold_teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three fold teachers' answers."""
    path = tmp_path_factory.mktemp("generations") / "first"
    teachers = load_teachers(digits, "mlp:32", str(fold_teachers))
    cache_teacher(NetworkTeacher(digits, teachers, Views()), path, encoding=DENSE, name="first")
    return open_store(path)


@pytest.fixture
def run(store: Store) -> Run:
    return Run(store=str(store.path), student="mlp:8", loss="soft_ce", training=Training(epochs=1), threads=1)


def digest(folder: Path) -> str:
    return weights_digest(load_state(folder / WEIGHTS))


def test_a_student_that_leaves_a_fold_out_has_seen_the_other_rows_alone(
    store: Store, digits: Split, tmp_path: Path
) -> None:
    train(store, digits, None, tmp_path, epochs=1, leave_out="1", val_share=0.1)
    held = np.asarray(store.folds) == 1
    keys = read_training_keys(tmp_path / WEIGHTS)
    assert keys is not None
    seen = np.isin(digits.keys, keys)
    assert not seen[held].any()
    assert 0.8 < seen[~held].mean() < 1
    said = read_metadata(tmp_path / WEIGHTS)["folds"]
    assert said == {"num_folds": 3, "strategy": "stratified", "seed": 0, "left_out": 1, "digest": said["digest"]}


def test_a_tail_rule_that_does_nothing_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--tail predicted does nothing here, because the store keeps every class"):
        train_generations(replace(run, tail="predicted"), tmp_path / "g", Generations())
    assert not list(tmp_path.rglob("student.safetensors"))


def test_fold_students_are_fold_teachers_with_proof(store: Store, digits: Split, tmp_path: Path) -> None:
    for fold in range(3):
        train(store, digits, None, tmp_path / f"fold{fold}", epochs=1, seed=fold, leave_out=str(fold))
    pattern = str(tmp_path / f"fold{{fold}}/{WEIGHTS}")
    teachers = load_teachers(digits, "mlp:16", pattern)
    assert teachers.proof == "metadata"
    assert (teachers.seen == 0).all()
    (tmp_path / "fold0").rename(tmp_path / "fold9")
    (tmp_path / "fold1").rename(tmp_path / "fold0")
    (tmp_path / "fold9").rename(tmp_path / "fold1")
    with pytest.raises(ValueError, match="left out fold 1 and has seen fold 0"):
        load_teachers(digits, "mlp:16", pattern)


@pytest.mark.parametrize("fold", ["3", "-1", "one", "0.5"])
def test_a_fold_that_the_store_does_not_have_is_refused(store: Store, digits: Split, tmp_path: Path, fold: str) -> None:
    with pytest.raises(ValueError, match=rf"--leave-out is '{fold}'; expected a fold of the store, 0 to 2"):
        train(store, digits, None, tmp_path / "run", epochs=1, leave_out=fold)
    assert not (tmp_path / "run").exists()


def test_a_store_without_folds_has_none_to_leave_out_and_none_to_go_on_from(
    digits: Split, plain_teacher: Path, run: Run, tmp_path: Path
) -> None:
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    cache_teacher(NetworkTeacher(digits, teachers, Views()), tmp_path / "plain", encoding=DENSE)
    plain = open_store(tmp_path / "plain")
    with pytest.raises(ValueError, match="--leave-out 0 names a fold, but the teacher of .* has none"):
        train(plain, digits, None, tmp_path / "run", epochs=1, leave_out="0")
    with pytest.raises(ValueError, match="has no folds, so a student would learn what it then answers"):
        train_generations(replace(run, store=str(plain.path)), tmp_path / "rounds", Generations())
    assert not (tmp_path / "rounds").exists()


def test_a_round_is_the_commands_one_after_the_other(
    store: Store, digits: Split, digits_test: Split, run: Run, tmp_path: Path
) -> None:
    inputs = Inputs(store=store, split=digits, test=digits_test)
    out = tmp_path / "rounds"
    elsewhere = replace(run, store="s3://bucket/first.zarr")  # the store that is open is used, whatever names it
    rounds = train_generations(elsewhere, out, Generations(rounds=2, anchor=0.25), inputs=inputs)
    with (out / "generations.csv").open() as file:
        assert [(row["round"], float(row["accuracy"])) for row in csv.DictReader(file)] == [
            (str(each.round), each.accuracy) for each in rounds
        ]
    hand = tmp_path / "hand"
    for fold in range(3):
        left = changed(replace(run, leave_out=str(fold)), {"seed": 4 + fold})
        train_student(left, hand / f"fold{fold}", inputs=inputs)
    again = build_teacher(digits, "mlp:8", str(hand / f"fold{{fold}}/{WEIGHTS}"), Views())
    summary = cache_teacher(again, hand / "store", encoding=DENSE, name="round1")
    assert (rounds[0].fold_accuracy, rounds[0].fold_nll) == (summary["accuracy"], summary["nll"])
    merge_stores([hand / "store", store.path], hand / "targets", describe=describe_examples)
    second = changed(replace(run, store=str(hand / "targets"), teacher="round1:0.75,first:0.25"), {"seed": 2 * 4 + 3})
    train_student(second, hand / "student", inputs=replace(inputs, store=open_store(hand / "targets")))
    assert digest(hand / "student") == digest(out / "round2/student")


def test_the_same_call_goes_on_where_it_was_stopped(store: Store, digits: Split, run: Run, tmp_path: Path) -> None:
    inputs, wanted = Inputs(store=store, split=digits), Generations(rounds=2)
    undisturbed = train_generations(run, tmp_path / "one", wanted, inputs=inputs)
    steps: list[str] = []

    def stop(text: str) -> None:
        steps.append(text)
        if len(steps) == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_generations(run, tmp_path / "two", wanted, inputs=inputs, on_step=stop)
    after: list[str] = []
    assert train_generations(run, tmp_path / "two", wanted, inputs=inputs, on_step=after.append) == undisturbed
    assert after[0] == steps[-1]
    assert len(steps) - 1 + len(after) == 8
    assert digest(tmp_path / "one/round2/student") == digest(tmp_path / "two/round2/student")
    assert train_generations(run, tmp_path / "two", wanted, inputs=inputs) == undisturbed


def test_the_label_weight_is_found_between_labels_and_teacher(
    store: Store, digits: Split, run: Run, tmp_path: Path
) -> None:
    inputs = Inputs(store=store, split=digits)
    (found,) = train_generations(run, tmp_path, Generations(rounds=1, label_weight="auto"), inputs=inputs)
    assert found.label_weight is not None
    assert 0 <= found.label_weight <= 1
    (given,) = train_generations(
        run, tmp_path / "given", Generations(rounds=1, label_weight=repr(found.label_weight)), inputs=inputs
    )
    assert given == found


@pytest.mark.parametrize("ridge", [2.0, 2.5])
def test_the_closed_form_is_the_best_on_a_grid_for_kernel_ridge_regression(ridge: float) -> None:
    generator = np.random.default_rng(0)
    x = generator.uniform(-2, 2, (150, 1))
    labels = (np.sin(3 * x[:, 0]) + 0.6 * generator.normal(size=150) > 0).astype(int)
    kernel = np.exp(-((x - x.T) ** 2) / 0.1)
    fold = np.arange(150) % 5

    def out_of_fold(targets: np.ndarray) -> np.ndarray:
        answers = np.empty_like(targets)
        for b in range(5):
            kept, left = fold != b, fold == b
            solved = np.linalg.solve(kernel[np.ix_(kept, kept)] + ridge * np.eye(kept.sum()), targets[kept])
            answers[left] = kernel[np.ix_(left, kept)] @ solved
        return answers

    truth = np.eye(2)[labels]
    teacher = out_of_fold(truth)
    f1, f0 = out_of_fold(truth), out_of_fold(teacher)
    found = best_label_weight([(torch.from_numpy(f1), torch.from_numpy(f0), torch.from_numpy(labels))])
    grid = np.linspace(0, 1, 1001)
    errors = [((out_of_fold(a * truth + (1 - a) * teacher) - truth) ** 2).sum() for a in grid]
    assert 0 < found < 1
    assert abs(found - grid[int(np.argmin(errors))]) <= 0.001


def test_students_that_answer_alike_leave_nothing_to_choose() -> None:
    same = torch.full((4, 2), 0.5)
    with pytest.raises(ValueError, match="answer alike"):
        best_label_weight([(same, same, torch.zeros(4, dtype=torch.int64))])


def test_an_anchor_bounds_how_far_the_targets_drift(store: Store, digits: Split, run: Run, tmp_path: Path) -> None:
    """KL(b || t) <= (1 - lambda) KL(b || q), for t = (1 - lambda) q + lambda b and for t ~ q^(1 - lambda) b^lambda: by
    convexity, and since the geometric mean's mass is at most 1; so rounds contract towards b."""
    inputs = Inputs(store=store, split=digits)
    for share, combine in ((0.3, "mean-prob"), (0.9, "mean-logit")):  # an arithmetic anchor, and a geometric one
        out = tmp_path / f"{share}"
        first, _ = train_generations(run, out, Generations(rounds=2, anchor=share), inputs=inputs)
        targets = open_store(out / "round1/targets")
        mixed = open_answers(targets, teacher=f"round1:{1 - share},first:{share}", combine=combine)
        drift = mean_kl(open_answers(targets, teacher="first"), mixed)
        assert 0 < drift <= (1 - share) * first.kl_from_first + 1e-9


def test_rounds_end_when_they_are_no_better(store: Store, digits: Split, run: Run, tmp_path: Path) -> None:
    asked = Generations(rounds=50, stop_after=1)
    slow = changed(run, {"lr": 0.001})
    rounds = train_generations(slow, tmp_path, asked, inputs=Inputs(store=store, split=digits))
    losses = [each.fold_nll or 0.0 for each in rounds]
    assert len(rounds) < 50
    assert losses[-1] >= losses[-2]
    assert losses[:-1] == sorted(losses[:-1], reverse=True)


@pytest.mark.parametrize(
    ("settings", "loss", "says"),
    [
        ({"label_weight": "0.5"}, "kd:1 + ce:1", "must be one loss"),
        ({"rounds": 2}, "feature", "students that teach the next round keep none; pass --rounds 1"),
        ({"rounds": 2, "label_weight": "auto"}, "wkd", "students that teach the next round keep none"),
        ({"label_weight": "1.5"}, "kd", "--label-weight is '1.5'; expected 0 to 1, or auto"),
        ({"label_weight": "much"}, "kd", "--label-weight is 'much'; expected 0 to 1, or auto"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_made(
    store: Store, digits: Split, run: Run, tmp_path: Path, settings: dict[str, Any], loss: str, says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        train_generations(
            replace(run, loss=loss), tmp_path / "out", Generations(**settings), inputs=Inputs(store=store, split=digits)
        )
    assert not (tmp_path / "out").exists()


def test_students_that_no_pass_can_ask_are_refused(store: Store, digits: Split, run: Run, tmp_path: Path) -> None:
    trees = Run(store=run.store, student="sklearn:DecisionTreeRegressor", loss="mse")
    with pytest.raises(ValueError, match="sklearn:DecisionTreeRegressor is no network"):
        train_generations(trees, tmp_path / "out", Generations(), inputs=Inputs(store=store, split=digits))
    assert not (tmp_path / "out").exists()
