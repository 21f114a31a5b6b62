"""Successive halving: who goes on, that a run stopped on the way is the same run, and that nothing is done twice."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from logitbank import cli
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.train_student.folder import CHECKPOINT, ERROR, HISTORY, RESULT, WEIGHTS
from logitbank.pipeline.train_student.halving import epochs_of_halving, find_rungs, train_by_halving
from logitbank.pipeline.train_student.planned import Event, OpenedOnce, Planned, run_planned
from logitbank.pipeline.train_student.points import Search, drawn_points, read_search
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.train_student.sweep import ended_early, errors_of, plan_runs
from logitbank.pipeline.views import Views
from logitbank.stores.locks import locked

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("halving") / "s.zarr"
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, path, encoding=Encoding(kind="dense", num_classes=10, bits=8))
    return path


def plan(
    store: Path, out: Path, count: int, *, losses: tuple[str, ...] = ("kd",), seeds: int = 1, **training: object
) -> list[Planned]:
    base = Run(store=str(store), val_share=0.2, threads=1, training=Training(**training))  # type: ignore[arg-type]
    points = drawn_points(Search(count=count), {"lr": "1e-4..1"}, {})
    return plan_runs(base, out, losses=losses, students=["mlp:8"], grid={}, seeds=seeds, points=points)


def halve(planned: list[Planned], *, backwards: bool = False) -> list[Event]:
    """In this process: the runs of a rung one after the other."""
    inputs, heard = OpenedOnce(), list[Event]()

    def train(runs: Iterable[Planned]) -> Iterator[Event]:
        for run in sorted(runs, key=planned_place, reverse=backwards):
            yield run_planned(run, inputs=inputs, on_event=heard.append)

    def planned_place(run: Planned) -> int:
        return [each.folder for each in planned].index(run.folder)

    heard += train_by_halving(planned, find_rungs(planned), train)
    return heard


def lines(folder: Path, *, timed: bool = False) -> list[dict[str, str]]:
    with (folder / HISTORY).open(newline="") as file:
        rows = list(csv.DictReader(file))
    return rows if timed else [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def ended(events: list[Event]) -> dict[str, int]:
    return {event.run: event.epoch for event in events if event.kind == "ended"}


@pytest.fixture(scope="module")
def halved(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Planned], list[Event]]:
    planned = plan(store, tmp_path_factory.mktemp("halved"), 9, epochs=9)
    return planned, halve(planned)


def test_the_best_third_goes_on_and_no_epoch_is_trained_twice(halved: tuple[list[Planned], list[Event]]) -> None:
    planned, events = halved
    epochs = {each.folder.name: len(lines(each.folder)) for each in planned}
    assert sorted(epochs.values()) == [1] * 6 + [3] * 2 + [9]
    assert sum(epochs.values()) == 9 + 3 * 2 + 6 == epochs_of_halving(planned, find_rungs(planned))
    assert ended(events) == {name: number for name, number in epochs.items() if number < 9}
    for rung, count in ((1, 3), (3, 1)):
        there = {each.folder: lines(each.folder) for each in planned if epochs[each.folder.name] >= rung}
        value = {folder.name: float(history[rung - 1]["val_accuracy"]) for folder, history in there.items()}
        best = sorted(value, key=lambda name: -value[name])[:count]
        assert set(best) == {name for name, number in epochs.items() if number > rung}
    for each in planned:
        assert (each.folder / CHECKPOINT).exists() == (epochs[each.folder.name] < 9) != (each.folder / RESULT).exists()
        assert not (each.folder / ERROR).exists()


def test_a_run_that_went_through_all_rungs_is_the_run_trained_at_once(
    halved: tuple[list[Planned], list[Event]], tmp_path: Path
) -> None:
    winner = next(each for each in halved[0] if (each.folder / RESULT).exists())
    train_student(winner.run, tmp_path / "direct")
    assert (winner.folder / WEIGHTS).read_bytes() == (tmp_path / "direct" / WEIGHTS).read_bytes()
    assert lines(winner.folder) == lines(tmp_path / "direct")


def test_again_it_trains_nothing_and_ends_the_same_whatever_the_order(
    store: Path, halved: tuple[list[Planned], list[Event]], tmp_path: Path
) -> None:
    planned, events = halved
    before = [lines(each.folder, timed=True) for each in planned]
    again = halve(planned)
    assert ended(again) == ended(events)
    assert [event.kind for event in again if event.kind in ("done", "skipped", "failed")] == ["skipped"]
    assert [lines(each.folder, timed=True) for each in planned] == before
    assert ended(halve(plan(store, tmp_path, 9, epochs=9), backwards=True)) == ended(events)


def test_points_compete_within_a_loss_by_the_mean_of_their_seeds(store: Path, tmp_path: Path) -> None:
    """By a measure of which less is better; a point one of whose seeds fails does not go on."""
    planned = plan(store, tmp_path, 4, losses=("ce", "kd"), seeds=2, epochs=3, select="best:nll")
    broken = planned[3]
    broken.folder.write_text("")
    events = halve(planned)
    assert [event.run for event in events if event.kind == "failed"] == [broken.folder.name]
    for loss in ("ce", "kd"):
        nll: dict[float, list[float]] = {}
        for each in planned:
            if each.run.loss == loss and each is not broken:
                nll.setdefault(each.run.training.lr, []).append(float(lines(each.folder)[0]["val_nll"]))
        whole = {lr: sum(values) for lr, values in nll.items() if len(values) == 2}
        done = {each.run.training.lr for each in planned if each.run.loss == loss and (each.folder / RESULT).exists()}
        assert done == {min(whole, key=lambda lr: whole[lr])}
    assert len(ended(events)) == 2 * 4 * 2 - 2 * 2 - 1  # two points of two seeds are done, and one run failed


def test_nobody_chooses_while_another_process_trains(store: Path, tmp_path: Path) -> None:
    planned = plan(store, tmp_path, 3, epochs=2)
    with locked(planned[1].folder), pytest.raises(ValueError, match="being trained by another process; the same comm"):
        halve(planned)
    assert not list(tmp_path.rglob(RESULT))
    assert len(ended(halve(planned))) == 2


def test_one_that_lost_patience_on_the_way_is_complete(store: Path, tmp_path: Path) -> None:
    planned = plan(store, tmp_path, 3, epochs=18, select="best", patience=1)
    events = halve(planned)
    short = [each.folder.name for each in planned if (each.folder / RESULT).exists() and len(lines(each.folder)) < 18]
    assert short
    assert not set(short) & set(ended(events))
    assert len([event for event in events if event.kind == "done"]) == len(list(tmp_path.rglob(RESULT)))


def arguments_of(store: Path, jobs: int = 2) -> list[str]:
    arguments = ["sweep", "--store", str(store), "--out", "s", "--loss", "kd", "--student", "mlp:8", "--seeds", "1"]
    arguments += ["--epochs", "9", "--val-share", "0.2", "--select", "last", "--lr", "1e-4..1", "--search", "halving:9"]
    return [*arguments, "--threads", "1", "--jobs", str(jobs)]


def test_the_command_killed_goes_on_and_ends_the_same(
    store: Path,
    halved: tuple[list[Planned], list[Event]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), *arguments_of(store, jobs=1)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=-3, start_new_session=True)
    while not any(len(path.read_text().splitlines()) > 2 for path in tmp_path.rglob(HISTORY)):  # at the second rung
        assert process.poll() is None
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.rglob(RESULT))
    monkeypatch.chdir(tmp_path)
    code, out, error = call(arguments_of(store), monkeypatch, capsys)
    assert code == 0, error
    assert "s: 1 runs trained, 0 were there, 0 failed, 8 ended early" in out
    planned, events = halved
    listed = json.loads((tmp_path / "s" / "sweep.json").read_text())
    assert listed == {"runs": [each.folder.name for each in planned], "rungs": [1, 3, 9], "ended": ended(events)}
    for each in planned:
        assert lines(tmp_path / "s" / each.folder.name) == lines(each.folder)
    winner = next(each.folder for each in planned if (each.folder / RESULT).exists())
    assert (tmp_path / "s" / winner.name / WEIGHTS).read_bytes() == (winner / WEIGHTS).read_bytes()
    assert (ended_early(tmp_path), errors_of(tmp_path)) == ({1: 6, 3: 2}, {})
    code, out, error = call(["compare", "s"], monkeypatch, capsys)
    assert (code, error) == (0, "")
    assert "ended early, as --search halving chose, and not compared: 6 after 1 epoch, 2 after 3 epochs" in out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (("--val-share", "0"), "chooses by validation rows; pass --val-share 0.1"),
        (("--epochs", "1"), "--epochs is 1, .*expected at least 2"),
        (("--epochs", "9,18"), "--epochs has several values"),
        (("--select", "best,best:nll"), "--select has several values"),
        (("--search", "halving:2"), "expected at least 3 of halving:N"),
        (("--search", "halving"), "expected random:N or halving:N"),
        (("--student", "mlp:8,sklearn:RandomForestClassifier", "--loss", "ce"), "Classifier is fitted in one go"),
    ],
)
def test_what_cannot_be_halved_is_refused_before_the_first_run(
    changes: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = arguments_of(Path("none.zarr"))
    for name, value in zip(changes[::2], changes[1::2], strict=True):
        arguments[arguments.index(name) + 1] = value
    refused(arguments, message, tmp_path, monkeypatch, capsys)


def test_a_cluster_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = arguments_of(Path("none.zarr"))
    at = arguments.index("--jobs")
    arguments[at : at + 2] = ["--ray", "local"]
    refused(arguments, "does not go with --ray", tmp_path, monkeypatch, capsys)


def refused(
    arguments: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    code, out, error = call(arguments, monkeypatch, capsys)
    assert (code, out, error.count("\n")) == (2, "", 1)
    assert re.search(message, error), error
    assert list(folder.iterdir()) == []


def call(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["cli", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0), *capsys.readouterr()


def test_a_search_says_whether_it_halves() -> None:
    assert read_search("halving:27:3") == Search(count=27, seed=3, halving=True)
    assert read_search("random:27") == Search(count=27)
