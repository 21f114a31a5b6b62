"""One description of a student run: its settings are the command line's, and each says whether it decides."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from logitbank import cli
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.described import changed, from_values, settings_of, values_of
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.models import build_model, spell_model
from logitbank.pipeline.models.weights import save_weights
from logitbank.pipeline.train_student.folder import RESULT, SETTINGS
from logitbank.pipeline.train_student.losses import parse_objective
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views
from logitbank.stores import copy_store

SETTINGS_OF_RUN = {setting.name: setting for setting in settings_of(Run)}
# another value for every setting; {name} stands for a path of the fixture
OTHER: dict[str, Any] = {
    "store": "{other}",
    "data": "{few}",
    "eval_data": "digits?split=train",
    "student": "mlp:9",
    "init": "{init}",
    "loss": "kd:0.9 + ce:0.2",
    "settings": {"temperature": "2"},
    "label_smoothing": 0.1,
    "teacher": "nobody",
    "combine": "mean-logit",
    "tail": "uniform",
    "transform": "own.py:f",
    "epochs": 2,
    "batch_size": 32,
    "accumulate": 2,
    "optimizer": "adamw",
    "lr": 0.1,
    "momentum": 0.5,
    "schedule": "step",
    "warmup_epochs": 0.5,
    "layer_decay": 0.5,
    "weight_decay": 1e-3,
    "weight_decay_on": "weights",
    "grad_clip": 1.0,
    "ema_decay": 0.9,
    "drop_path": 0.1,
    "random_erasing": 0.25,
    "mixup": 1.0,
    "precision": "bfloat16",
    "channels_last": True,
    "compile": True,
    "weight_bits": 4,
    "dp_sgd": 1.0,
    "dp_delta": 1e-6,
    "select": "best",
    "patience": 1,
    "seed": 1,
    "val_share": 0.2,
    "golden": "labels",
    "leave_out": "1",
    "mean": "0.5",
    "std": "0.5",
    "input_transform": "mean=0.5,std=0.5",
    "memory_budget": 1.0,
    "eval_batch_size": 100,
    "workers": 2,
    "checkpoint_every": 5,
    "logger": ("tensorboard",),
    "device": "cpu",
    "threads": 1,
}
# what a setting is asked with where it makes no sense alone
WITH: dict[str, dict[str, Any]] = {
    "mean": {"std": "1"},
    "std": {"mean": "0"},
    "golden": {"val_share": 0.2},
    "dp_delta": {"dp_sgd": 1.0},
}


@pytest.fixture(scope="module")
def places(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("described")
    for name in ("store", "other"):
        logits = np.random.default_rng(len(name) + (name == "other")).normal(size=(len(digits), 10))
        np.save(folder / f"{name}.npy", logits.astype(np.float32))
        answers = ArrayTeacher(folder / f"{name}.npy", digits, Views(), plan=FoldPlan(num_folds=3))
        cache_teacher(answers, folder / f"{name}.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=8))
    np.savez(folder / "few.npz", x=digits.samples[:100], y=digits.labels[:100])
    save_weights(folder / "init.safetensors", build_model("mlp:8", digits), {"architecture": "mlp:8"})
    return {
        "store": str(folder / "store.zarr"),
        "other": str(folder / "other.zarr"),
        "few": f"npz:{folder / 'few.npz'}",
        "init": str(folder / "init.safetensors"),
    }


@pytest.fixture(scope="module")
def finished(places: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    out = tmp_path_factory.mktemp("runs") / "run"
    training = {"epochs": 1, "batch_size": 128}
    values = {"student": "mlp:8", "loss": "kd:0.9 + ce:0.1", "workers": 0, **training}
    run = from_values(Run, {"store": places["store"], **values})
    train_student(run, out)
    return run, out


def state(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.iterdir()}


def test_the_table_below_has_every_setting() -> None:
    assert OTHER.keys() == SETTINGS_OF_RUN.keys()


@pytest.mark.parametrize("name", OTHER)
def test_a_finished_run_is_another_one_when_and_only_when_what_decides_it_differs(
    name: str, finished: tuple[Run, Path], places: dict[str, str]
) -> None:
    run, out = finished
    other = OTHER[name].format(**places) if isinstance(OTHER[name], str) else OTHER[name]
    before = state(out)

    def ask() -> dict[str, Any]:
        return train_student(changed(run, {name: other, **WITH.get(name, {})}), out)

    assert values_of(run)[name] != other
    if SETTINGS_OF_RUN[name].option.decides:
        with pytest.raises(ValueError) as refused:
            ask()
        assert "\n" not in str(refused.value)
    else:
        assert ask() == json.loads((out / RESULT).read_text())
    assert state(out) == before


def test_what_is_the_same_is_so_however_it_is_spelled(
    finished: tuple[Run, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = finished
    before = state(out)
    monkeypatch.chdir(tmp_path)
    copied = copy_store(run.store, str(tmp_path / "moved.zarr"))
    assert copied
    for spelled in (
        {"store": os.path.relpath(run.store)},
        {"store": "moved.zarr"},
        {"loss": "kd:0.90+ce:0.10"},
        {"student": "mlp:8x1"},
        {"data": "digits?split=train"},
        {"eval_data": "digits?split=test"},
        {"teacher": "teacher"},
    ):
        assert train_student(changed(run, spelled), out.resolve()) == json.loads((out / RESULT).read_text()), spelled
    assert state(out) == before


def test_folders_of_earlier_versions_are_the_same_run_or_say_what_differs(
    finished: tuple[Run, Path], tmp_path: Path
) -> None:
    """They may lack settings that came later, and have kept texts as they were typed."""
    run, out = finished
    old = tmp_path / "old"
    shutil.copytree(out, old)
    recorded = json.loads((old / SETTINGS).read_text())
    recorded["student"], recorded["objective"]["objective"] = "mlp:8x1", "kd:0.90+ce:0.10"
    for name in ("accumulate", "select"):
        del recorded["training"][name]
    (old / SETTINGS).write_text(json.dumps(recorded))
    assert train_student(run, old)["weights_sha256"]
    with pytest.raises(ValueError, match=r"finished run with other settings \(training.accumulate 1, here 2\)"):
        train_student(changed(run, {"accumulate": 2}), old)
    recorded["training"]["turbo"] = True
    (old / SETTINGS).write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match=r"finished run with other settings \(training.turbo True, here None\)"):
        train_student(run, old)
    (old / SETTINGS).write_text("[]")
    with pytest.raises(ValueError, match="run.json: grouping is nothing; expected"):
        train_student(run, old)


def test_commands_offer_what_the_description_has() -> None:
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    for command, own, left_out in (
        ("train-student", {"out", "log_json", "recipe"}, set[str]()),
        ("sweep", {"out", "seeds", "jobs", "log_json", "recipe", "search", "ray", "gpus_per_run"}, {"seed"}),
    ):
        offered = {parameter.name: parameter for parameter in group.commands[command].params}
        assert offered.keys() - {"help"} == (SETTINGS_OF_RUN.keys() - left_out) | own
        for name in SETTINGS_OF_RUN.keys() - left_out:
            assert offered[name].opts[0] == SETTINGS_OF_RUN[name].flag


def test_a_description_refuses_what_its_domains_do_not_hold() -> None:
    with pytest.raises(ValueError, match="--combine|combine 'mean'"):
        Run(store="s.zarr", combine="mean")
    with pytest.raises(ValueError, match="--mean and --std belong together"):
        Run(store="s.zarr", mean="0.5")
    with pytest.raises(TypeError, match="Run has no setting epoch"):
        from_values(Run, {"store": "s.zarr", "epoch": 3})
    run = changed(Run(store="s.zarr"), {"epochs": 3, "workers": 4})
    assert (run.training.epochs, run.workers) == (3, 4)
    assert replace(run, loss="mse", label_smoothing=0.1)
    with pytest.raises(ValueError, match="--label-smoothing does nothing here"):
        replace(run, loss="mse", label_smoothing=0.1).objective()


def test_a_loss_and_a_model_have_one_spelling() -> None:
    for text in ("kd:0.90+ce:0.10", "kd:.9 +ce:1e-1", " kd:0.9 + ce:0.1 "):
        assert parse_objective(text).name == "kd:0.9 + ce:0.1"
    assert parse_objective("kd").name == "kd"
    split = load_split("digits?split=test")
    for name in ("mlp:8x1", "mlp:256x2", "mlp:256x1", "linear", "cnn"):
        shapes = [[p.shape for p in build_model(text, split).parameters()] for text in (name, spell_model(name))]
        assert shapes[0] == shapes[1]
    assert [spell_model(name) for name in ("mlp:8x1", "mlp:256x2", "mlp:8x2")] == ["mlp:8", "mlp", "mlp:8x2"]
