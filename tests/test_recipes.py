"""A recipe is the options that it stands for, and what is typed beside it goes before."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from logitbank import cli
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.commands.options import takes
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.described import changed, settings_of, values_of
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.train_student.folder import SETTINGS
from logitbank.pipeline.train_student.recipes import RECIPES, SETTINGS_OF, from_recipe, typed
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views


def asked(*options: str) -> Run:
    """The run that the command line makes of options."""
    found: list[Run] = []
    app = typer.Typer()

    @app.command()
    @takes(Run, recipes=SETTINGS_OF)
    def command(*, run: Run) -> None:
        """Keeps it."""
        found.append(run)

    typer.main.get_command(app)(args=["--store", "s.zarr", *options], standalone_mode=False)
    return found[0]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_its_options_typed(name: str) -> None:
    recipe = RECIPES[name]
    run = asked("--recipe", name)
    assert run == asked(*typed(recipe).split()) == from_recipe(name, {"store": "s.zarr"})
    values = values_of(run)
    assert {setting: values[setting] for setting in recipe.settings} == recipe.settings
    others = {setting.name: setting.default for setting in settings_of(Run) if setting.name not in recipe.settings}
    assert {setting: values[setting] for setting in others if setting != "store"} | {"store": others["store"]} == others


@pytest.mark.parametrize(("name", "setting"), [(name, each) for name in RECIPES for each in RECIPES[name].settings])
def test_what_is_typed_goes_before(name: str, setting: str) -> None:
    """Also where it is the default, and whatever it makes idle of the recipe."""
    (described,) = (each for each in settings_of(Run) if each.name == setting)
    other: Any = {"select": "best:auc", "patience": 3, "epochs": 300}.get(setting, described.default)
    run = asked("--recipe", name, described.flag, str(other))
    assert values_of(run)[setting] == other
    kept = {each: value for each, value in RECIPES[name].settings.items() if each not in (setting, "momentum")}
    assert {each: values_of(run)[each] for each in kept} == kept


def test_what_a_typed_setting_makes_idle_is_left_out_of_the_recipe() -> None:
    run = asked("--recipe", "tabular", "--select", "last")
    assert run == changed(asked("--recipe", "tabular", "--patience", "3"), {"select": "last", "patience": 0})
    assert asked("--recipe", "cifar-240", "--optimizer", "adamw").training.optimizer == "adamw"
    with pytest.raises(ValueError, match="--momentum does nothing here, because adamw has none; leave it out"):
        asked("--recipe", "cifar-240", "--optimizer", "adamw", "--momentum", "0.9")
    with pytest.raises(ValueError, match="unknown recipe 'cifar-24', did you mean 'cifar-240'"):
        asked("--recipe", "cifar-24")
    with pytest.raises(ValueError, match="--warmup-epochs is 5 of 3 epochs"):
        asked("--recipe", "patient", "--epochs", "3")
    assert from_recipe("", {"store": "s.zarr"}) == Run(store="s.zarr")


def test_a_run_says_nothing_of_the_recipe_that_its_options_came_from(digits: Split, tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.random.default_rng(0).normal(size=(len(digits), 10)).astype(np.float32))
    answers = ArrayTeacher(tmp_path / "l.npy", digits, Views())
    cache_teacher(answers, tmp_path / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=8))
    command = ["train-student", "--store", str(tmp_path / "s.zarr"), "--student", "mlp:8", "--data", "digits"]
    short = {"epochs": "4", "patience": "2"}
    by_name = [f"--{name}={value}" for name, value in short.items()]
    written = typed(RECIPES["tabular"]).split()
    pairs = dict(zip(written[::2], written[1::2], strict=True)) | {f"--{name}": value for name, value in short.items()}
    for out, options in (
        ("by-name", ["--recipe", "tabular", *by_name]),
        ("typed", [text for pair in pairs.items() for text in pair]),
    ):
        done = CliRunner().invoke(cli.app, [*command, *options, "--out", str(tmp_path / out)])
        assert done.exit_code == 0, done.output
    named, plain = ((tmp_path / out / SETTINGS).read_text() for out in ("by-name", "typed"))
    assert named == plain
    assert json.loads(named)["training"]["patience"] == 2
