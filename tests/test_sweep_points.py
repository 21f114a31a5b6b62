"""A sweep over any option: lists, every value with every other, and points drawn at random from ranges."""

import math
import sys
from pathlib import Path

import pytest

from logitbank import cli
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.train_student.points import Search, drawn_points, every_point, read_search
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.train_student.sweep import plan_runs
from logitbank.pipeline.views import Views


def test_every_value_goes_with_every_other_in_its_own_type() -> None:
    points = every_point({"lr": "0.1,1e-2", "batch_size": "32,64", "schedule": "step,cosine"})
    assert len({tuple(point.options.items()) for point in points}) == 8
    assert points[0].options == {"lr": 0.1, "batch_size": 32, "schedule": "step"}
    assert [point.options for point in every_point({"lr": "0.1,0.10"})] == [{"lr": 0.1}]
    assert [point.options for point in every_point({})] == [{}]


def test_points_are_the_same_for_a_seed_and_the_first_of_more() -> None:
    several = {"lr": "1e-4..1e-1", "batch_size": "16..64", "optimizer": "sgd,adamw", "momentum": "0.5..0.9"}
    drawn = drawn_points(Search(count=200), several, {"temperature": "1..8"})
    assert drawn[:5] == drawn_points(Search(count=5), several, {"temperature": "1..8"})
    assert drawn[:5] != drawn_points(Search(count=5, seed=1), several, {"temperature": "1..8"})
    rates = [float(point.options["lr"]) for point in drawn]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates)
    assert 0.4 < sum(math.log10(rate) < -2.5 for rate in rates) / 200 < 0.6  # in their logarithm
    assert 0.4 < sum(float(point.options["momentum"]) < 0.7 for point in drawn) / 200 < 0.6  # evenly
    assert {type(point.options["batch_size"]) for point in drawn} == {int}
    assert {point.options["optimizer"] for point in drawn} == {"sgd", "adamw"}
    assert all(1 <= float(point.settings["temperature"]) <= 8 for point in drawn)
    assert len({str(point.options["lr"]) for point in drawn}) > 190


@pytest.mark.parametrize(
    ("several", "grid", "message"),
    [
        ({"lr": "1e-1..1e-4"}, {}, "expected LOW below HIGH"),
        ({"lr": "1e-4..1e-1,1"}, {}, "expected a range LOW..HIGH"),
        ({"lr": "-1..1"}, {}, "--lr is -1.0; expected above 0"),
        ({"batch_size": "1..many"}, {}, "--batch-size is 'many'; expected a whole number"),
        ({"schedule": "step,cosin"}, {}, "did you mean 'cosine'"),
        ({}, {"temperature": "cold..hot"}, "expected a range of numbers"),
        ({}, {}, "nothing to draw from"),
    ],
)
def test_what_cannot_be_drawn_is_refused(several: dict[str, str], grid: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn_points(Search(count=2), several, grid)


@pytest.mark.parametrize("text", ["random", "random:0", "random:x", "grid:3", "random:3:1:2"])
def test_a_mistake_in_a_search_is_named(text: str) -> None:
    with pytest.raises(ValueError, match="--search is"):
        read_search(text)


def test_a_range_without_a_search_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--lr is the range 1e-4\.\.1e-1; .*--search random:20"):
        every_point({"lr": "1e-4..1e-1"})


@pytest.fixture(scope="module")
def store(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "s.zarr"
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, path, encoding=Encoding(kind="dense", num_classes=10, bits=8))
    return path


def test_each_run_has_a_folder_that_says_what_it_is(store: Path, tmp_path: Path) -> None:
    base = Run(store=str(store), training=Training(epochs=2))
    points = every_point({"lr": "0.1,0.01", "batch_size": "32,64"})
    planned = plan_runs(base, tmp_path, losses=["ce", "kd"], students=["mlp:8"], grid={}, seeds=2, points=points)
    names = [each.folder.name for each in planned]
    assert len(set(names)) == 2 * 4 * 2
    assert names[0] == "ce-mlp_8-lr=0.1-batch_size=32-seed0"
    assert planned[-1].run.training == Training(epochs=2, lr=0.01, batch_size=64, seed=1)
    drawn = drawn_points(Search(count=3), {"lr": "0.01..0.1"}, {"temperature": "1..8"})
    planned = plan_runs(base, tmp_path, losses=["ce", "kd"], students=["mlp:8"], grid={}, seeds=1, points=drawn)
    assert len({each.folder for each in planned}) == 6  # ce has no temperature
    assert all(("temperature" in each.run.settings) == (each.run.loss == "kd") for each in planned)
    points = every_point({"optimizer": "sgd,adamw"})
    momentum = Run(store=str(store), training=Training(momentum=0.5))
    with pytest.raises(ValueError, match="--momentum does nothing here"):
        plan_runs(momentum, tmp_path, losses=["kd"], students=["mlp:8"], grid={}, seeds=1, points=points)


def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["cli", *arguments])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    return int(exited.value.code or 0), "".join(capsys.readouterr())


def test_the_command_trains_what_was_drawn_and_compare_reads_it(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "s")
    sweep: tuple[str, ...] = (
        "sweep",
        "--store",
        str(store),
        "--out",
        out,
        "--student",
        "mlp:8",
        "--loss",
        "kd",
        "--seeds",
        "1",
    )
    sweep += ("--epochs", "2", "--patience", "1", "--val-share", "0.1", "--select", "best,best:nll", "--jobs", "1")
    code, said = call(monkeypatch, capsys, *sweep, "--lr", "0.01..0.2", "--search", "random:2", "--log-json")
    assert (code, said.count('"event":"done"') + said.count('"event": "done"')) == (0, 2), said
    code, said = call(monkeypatch, capsys, "compare", out)
    assert (code, len({line.split()[1] for line in said.splitlines() if " lr=" in line})) == (0, 2), said
    for name, value, message in (
        ("--lr", "0.1,fast", "--lr is 'fast'; expected a number"),
        ("--lr", "0.1..0.2", "--lr is the range"),
        ("--workers", "1,2", "--workers"),
    ):
        code, said = call(monkeypatch, capsys, *sweep, name, value)
        assert code == 2
        assert message in said
