"""Losses of one's own: named by file and function, held to the laws before they train, part of a run's identity."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.train_student.folder import RESULT, SETTINGS
from logitbank.pipeline.train_student.losses import ExactAnswer, Objective, Step, own_loss, parse_objective
from logitbank.pipeline.train_student.needs import check_needs
from logitbank.pipeline.train_student.own_loss import read_objective
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.train_student.sweep import plan_runs
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.pages import run_command

FOCAL = """
import torch.nn.functional as F

def focal(student_BC, teacher_BC, labels_B, *, gamma=2.0, temperature=2.0, top: int = 0, hard=False, how="sum"):
    teacher_BC = F.softmax(teacher_BC / temperature, 1)
    log_q_BC = F.log_softmax(student_BC / temperature, 1)
    return -((1 - log_q_BC.exp()) ** gamma * teacher_BC * log_q_BC).sum(1)
"""
LOSSES = """
import torch
import torch.nn.functional as F

def labelled(student_BC, teacher_BC, labels_B):
    return F.cross_entropy(student_BC, labels_B, reduction="none")

def entropy(student_BC, teacher_BC, labels_B):
    return -(F.softmax(student_BC, 1) * F.log_softmax(student_BC, 1)).sum(1)

def absolute(student_BC, teacher_BC, labels_B):
    return (student_BC - teacher_BC).abs().mean(1)

def centred(student_BC, teacher_BC, labels_B):
    return F.cross_entropy(student_BC - student_BC.mean(0), labels_B, reduction="none")

def rising(student_BC, teacher_BC, labels_B, *, progress):
    return progress * labelled(student_BC, teacher_BC, labels_B)

def mean(student_BC, teacher_BC, labels_B):
    return F.cross_entropy(student_BC, labels_B)

def squeezed(student_BC, teacher_BC, labels_B):
    return F.cross_entropy(student_BC, labels_B, reduction="none").squeeze()

def number(student_BC, teacher_BC, labels_B):
    return 1.0

def logarithm(student_BC, teacher_BC, labels_B):
    return -F.softmax(student_BC, 1).gather(1, labels_B[:, None])[:, 0].log()

def root(student_BC, teacher_BC, labels_B):
    return ((F.softmax(student_BC, 1) - F.softmax(teacher_BC, 1)) ** 2).sum(1).sqrt()

def detached(student_BC, teacher_BC, labels_B):
    return F.cross_entropy(student_BC.detach(), labels_B, reduction="none")

def hard(student_BC, teacher_BC, labels_B):
    return 0 * student_BC.sum(1) + (student_BC.argmax(1) != labels_B).float()

def double(student_BC, teacher_BC, labels_B):
    return F.cross_entropy(student_BC.double(), labels_B, reduction="none")

def in_place(student_BC, teacher_BC, labels_B):
    return F.cross_entropy(student_BC, labels_B, reduction="none") + teacher_BC.div_(4).sum(1)

def random(student_BC, teacher_BC, labels_B):
    return F.cross_entropy(F.dropout(student_BC), labels_B, reduction="none")

def fails(student_BC, teacher_BC, labels_B):
    return (student_BC + teacher_BC[:, :3]).sum(1)

def two(student_BC, teacher_BC):
    return student_BC.sum(1)

def needy(student_BC, teacher_BC, labels_B, *, sharpness):
    return student_BC.sum(1)

def weight_named(student_BC, teacher_BC, labels_B, *, weight=1.0):
    return student_BC.sum(1)

kd = labelled
"""
STEP = Step(step=0, steps_per_epoch=1, num_epochs=1)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(FOCAL)
    Path("losses.py").write_text(LOSSES)
    return tmp_path


@pytest.fixture(scope="module")
def store(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    torch.manual_seed(0)
    hot_NC = 6 * torch.nn.functional.one_hot(torch.from_numpy(digits.labels), 10) + torch.randn(len(digits), 10)
    np.save(folder / "logits.npy", hot_NC[None].numpy())
    answers = ArrayTeacher(folder / "logits.npy", digits, Views())
    cache_teacher(answers, folder / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=8))
    return folder / "s.zarr"


def read(text: str, **settings: str) -> Objective:
    return read_objective(text, settings, 10)


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("mean", r"the law of shape: expected \[4\], found \[\]; return one loss a row, without a mean"),
        ("squeezed", r"the law of shape: expected \[1\], found \[\]"),
        ("number", r"the law of shape: expected \[4\], found float"),
        ("logarithm", r"the law of finite values: found inf at student logits -10000 to 10000"),
        ("root", r"the law of finite gradients: found nan at logits up to 10000"),
        ("detached", r"the law of gradient: none reaches the student's logits"),
        ("hard", r"the law of gradient: none reaches the student's logits"),
        ("double", r"the law of precision: expected torch.float32 of float32 logits, found torch.float64"),
        ("in_place", r"the law of inputs: it changes the tensors that it is given"),
        ("random", r"the law of repetition: the same rows give another loss"),
    ],
)
def test_a_law_that_is_broken_is_named(here: Path, function: str, line: str) -> None:
    with pytest.raises(ValueError, match=rf"^losses\.py:{function} breaks {line}"):
        read(f"losses.py:{function}")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("losses.py:fails", r"fails on student, teacher and labels of \[4, 10\], \[4, 10\], \[4\]: RuntimeError"),
        ("losses.py:two", r"expected \(student_BC, teacher_BC, labels_B, \*, option=default\), found 2"),
        ("losses.py:needy", "argument 'sharpness' needs a default"),
        ("losses.py:weight_named", "--set weight means something else already"),
        ("losses.py:kd", "the table has a loss 'kd' already"),
        ("losses.py:nothing", "it defines no function 'nothing'"),
        ("nowhere.py:loss", "no such file nowhere.py"),
        ("own.py:focal:0.5 + kd", "'kd' has no weight in a sum: write kd:1.0"),
        ("own.py:focal + ce:0.1", "'own.py:focal' has no weight in a sum: write own.py:focal:1.0"),
        ("own.py:focal:0.5 + ./own.py:focal:0.5", "'focal' stands twice"),
        ("own.py:focal:0", "weight of focal is a number in"),
    ],
)
def test_what_cannot_be_a_loss_is_refused(here: Path, text: str, line: str) -> None:
    with pytest.raises(ValueError, match=line):
        read(text)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"gama": "1"}, "unknown setting 'gama', did you mean 'gamma'"),
        ({"top": "1.5"}, "top is a whole number, not '1.5'"),
        ({"gamma": "nan"}, "gamma is a number, not 'nan'"),
        ({"hard": "maybe"}, "hard is 1 or 0, not 'maybe'"),
        ({"temperature_rule": "ttm"}, "unknown setting 'temperature_rule'"),
    ],
)
def test_options_have_the_types_of_their_defaults(here: Path, settings: dict[str, str], line: str) -> None:
    with pytest.raises(ValueError, match=line):
        read("own.py:focal", **settings)


def test_options_reach_the_function_and_the_laws_are_tried_with_them(here: Path) -> None:
    settings = read("own.py:focal:0.9+ce:0.1", **{"focal.gamma": "1", "top": "2", "hard": "yes", "how": "max"}).settings
    assert settings["objective"] == "own.py:focal:0.9 + ce:0.1"
    term = settings["terms"][0]
    assert {key: term[key] for key in ("loss", "weight", "gamma", "temperature", "top", "hard", "how")} == {
        "loss": "focal",
        "weight": 0.9,
        "gamma": 1.0,
        "temperature": 2.0,
        "top": 2,
        "hard": True,
        "how": "max",
    }
    assert len(term["sha256"]) == 64
    with pytest.raises(ValueError, match="the law of finite"):
        read("own.py:focal", temperature="1e-38")


def test_a_run_is_the_same_wherever_the_file_lies(here: Path) -> None:
    (here / "deep").mkdir()
    (here / "deep" / "own.py").write_text(FOCAL)
    assert read("deep/own.py:focal:0.5 + ce:0.5").settings == read(f"{here}/own.py:focal:0.5 + ce:0.5").settings


@pytest.mark.parametrize(
    ("function", "needs", "fits", "couples"),
    [
        ("labelled", {"labels"}, "labels", False),
        ("entropy", set(), "labels", False),
        ("absolute", {"logits", "fixed_tail"}, "teacher", False),
        ("centred", {"labels"}, "labels", True),
        ("rising", {"labels"}, "labels", False),
    ],
)
def test_what_a_loss_needs_is_found_by_trying(
    here: Path, function: str, needs: set[str], fits: str, couples: bool
) -> None:
    term = read(f"losses.py:{function}").terms[0]
    assert term.needs == needs
    assert (term.loss.fits, term.couples_rows) == (fits, couples)


def test_a_loss_of_raw_logits_says_that_a_tail_is_a_guess(digits: Split, here: Path) -> None:
    """It trains: the tail rule gives it logits. They are not the teacher's."""
    np.save("few.npy", np.random.default_rng(0).normal(size=(1, len(digits), 10)).astype(np.float32))
    for kind in ("topk", "topk+tail"):
        encoding = Encoding(kind=kind, num_classes=10, top_k=3, tail_bits=2 if kind == "topk+tail" else 0)
        cache_teacher(ArrayTeacher(Path("few.npy"), digits, Views()), here / f"{kind}.zarr", encoding=encoding)
    lines = {
        (kind, loss): check_needs(
            read(f"losses.py:{loss}"), open_store(f"{kind}.zarr"), open_answers(open_store(f"{kind}.zarr"))
        )
        for kind in ("topk", "topk+tail")
        for loss in ("absolute", "labelled")
    }
    assert "compares raw logits, and those of 7 of 10 classes are not stored (top 3)" in lines["topk", "absolute"][0]
    assert not any(
        "raw logits" in line for key, found in lines.items() if key != ("topk", "absolute") for line in found
    )


def test_rows_without_a_label_get_nothing_from_a_loss_of_labels(here: Path) -> None:
    student_BC, labels_B = torch.randn(3, 10), torch.tensor([1, -1, 2])
    answer = ExactAnswer(torch.randn(3, 10))
    by_labels = read("losses.py:labelled")(student_BC, answer, labels_B, STEP)
    ce = parse_objective("ce")(student_BC, answer, labels_B, STEP)
    assert torch.equal(by_labels, ce)
    assert float(by_labels[1]) == 0
    assert (read("losses.py:absolute")(student_BC, answer, labels_B, STEP) > 0).all()


def test_trying_a_loss_leaves_the_generator_alone(here: Path) -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read("own.py:focal")
    assert torch.equal(before, torch.get_rng_state())


def test_a_run_with_a_changed_file_is_another_run(here: Path, store: Path) -> None:
    words = ["cli", "train-student", "--store", str(store), "--student", "mlp:8", "--epochs", "4", "--out", "run"]
    words += ["--loss", "own.py:focal:0.9 + ce:0.1", "--set", "gamma=1"]
    code, said = run_command(words)
    assert code == 0, said
    result = json.loads((here / "run" / RESULT).read_text())
    assert result["loss"] == "own.py:focal:0.9 + ce:0.1"
    assert result["accuracy"] > 0.5
    terms = json.loads((here / "run" / SETTINGS).read_text())["objective"]["terms"]
    assert terms[0]["gamma"] == 1.0
    assert run_command(words)[1].startswith("already there: run")
    Path("own.py").write_text(FOCAL.replace("** gamma", "** (2 * gamma)"))
    code, said = run_command(words)
    assert code == 2
    assert "other settings (objective.terms.focal.sha256" in said
    code, said = run_command([*words[:-6], "--loss", "losses.py:mean", "--out", "other"])
    assert code == 2
    assert "error: losses.py:mean breaks the law of shape" in said
    assert not (here / "other").exists()


def test_a_sweep_takes_them_like_those_of_the_table(here: Path, store: Path) -> None:
    words = ["cli", "sweep", "--store", str(store), "--student", "mlp:8", "--epochs", "1", "--seeds", "1", "--out", "s"]
    code, said = run_command([*words, "--loss", "ce,losses.py:mean"])
    assert code == 2
    assert "error: losses.py:mean breaks the law of shape" in said
    base = Run(store=str(store), training=Training(epochs=1))
    grid = {"gamma": ["1", "2"], "temperature": ["3"]}
    planned = plan_runs(base, here / "s", losses=["kd", "./own.py:focal"], students=["mlp:8"], grid=grid, seeds=1)
    assert [run.folder.name for run in planned] == [
        "kd-mlp_8-temperature=3-seed0",
        "own.py_focal-mlp_8-gamma=1-temperature=3-seed0",
        "own.py_focal-mlp_8-gamma=2-temperature=3-seed0",
    ]
    result = train_student(planned[1].run, planned[1].folder)
    assert result["settings"]["terms"][0]["gamma"] == 1.0


def test_losses_shows_what_the_trial_found(here: Path) -> None:
    code, said = run_command(["cli", "losses", "losses.py:absolute"])
    assert code == 0
    assert "Needs: fixed_tail, logits" in said
    code, said = run_command(["cli", "losses", "own.py:focal"])
    assert "temperature=2" in said
    assert run_command(["cli", "losses", "losses.py:mean"])[0] == 2


def absolute(student_BC: torch.Tensor, teacher_BC: torch.Tensor, labels_B: torch.Tensor, *, power: float = 1.0) -> Any:
    return ((student_BC - teacher_BC).abs() + 1e-6).pow(power).mean(1)


def test_a_function_at_hand_is_a_loss_as_well(here: Path) -> None:
    own = {"absolute": own_loss(absolute)}
    objective = parse_objective("absolute:0.5 + ce:0.5", {"power": 1.5}, own=own)
    terms = objective.settings["terms"]
    assert (terms[0]["loss"], terms[0]["power"], len(terms[0]["sha256"])) == ("absolute", 1.5, 64)
    student_BC, teacher_BC, labels_B = torch.randn(4, 10), torch.randn(4, 10), torch.arange(4)
    expected_B = 0.5 * absolute(student_BC, teacher_BC, labels_B, power=1.5)
    expected_B += 0.5 * torch.nn.functional.cross_entropy(student_BC, labels_B, reduction="none")
    torch.testing.assert_close(objective(student_BC, ExactAnswer(teacher_BC), labels_B, STEP), expected_B)
    names: dict[str, Any] = {}
    exec("def loss(student_BC, teacher_BC, labels_B):\n    return student_BC.sum(1)", names)
    with pytest.raises(ValueError, match="the text of .* cannot be read"):
        own_loss(names["loss"])
    with pytest.raises(ValueError, match="unknown loss 'absolute'"):
        parse_objective("absolute")


def test_progress_says_where_the_run_is(here: Path) -> None:
    objective, plain = read("losses.py:rising"), read("losses.py:labelled")
    tensors = torch.randn(4, 10), ExactAnswer(torch.randn(4, 10)), torch.arange(4)
    step = Step(step=1, steps_per_epoch=5, num_epochs=1)
    torch.testing.assert_close(objective(*tensors, step), 0.25 * plain(*tensors, step))
