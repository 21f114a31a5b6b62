"""Metadata of strangers: of stores, weights and listings. No input makes a traceback."""

import contextlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from logitbank.cli import app
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.models.weights import METADATA_KEY, TRAINING_KEYS, load_state
from logitbank.pipeline.views import Views
from logitbank.stores import StoreError, open_store
from logitbank.stores.format.documents import fingerprint
from logitbank.stores.format.plain_json import MAX_DEPTH, parse_json

DATA = "digits?limit=60"
NESTED: list[Any] = []
for _ in range(500):
    NESTED = [NESTED]
ODD = [None, True, [], {}, "", "x" * 300, "\ud800", "\x1b[31m", -1, 0, 2**63, 10**30, 0.5, 1e308, [1], ["x"], {"x": 1}]


def run(*arguments: str) -> str:
    """What a command says; anything but an error of a person's kind is a traceback."""
    result = CliRunner().invoke(app, list(arguments))
    error = result.exception
    if error is not None and not isinstance(error, SystemExit | ValueError | OSError):
        raise AssertionError(f"{arguments}: {type(error).__name__}: {error}") from error
    return result.output if error is None else str(error)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    split, plan = load_split(DATA), FoldPlan(num_folds=2, strategy="kfold")
    train_teachers(split, "linear", Training(epochs=1), folder / "t", plan=plan)
    answers = build_teacher(split, "linear", str(folder / "t"), Views(transform="flip-crop", num_views=2))
    encoding = Encoding(kind="topk", num_classes=10, top_k=3)
    cache_teacher(answers, folder / "s.zarr", encoding=encoding, name="a", predictor_rows=20)
    return folder / "s.zarr"


def reseal(store: Path, teacher: str | None = None) -> None:
    """A stranger's digests match what a stranger wrote."""
    top = store if teacher is None else store / "teachers" / teacher
    document = json.loads((top / "zarr.json").read_text())
    below = document["attributes"].get("documents")
    for folder in list(below) if isinstance(below, dict) else []:
        if (path := top / folder / "zarr.json").is_file():
            below[folder] = fingerprint(json.loads(path.read_text()))
    document["attributes"]["digest"] = fingerprint(document)
    (top / "zarr.json").write_text(json.dumps(document))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, inner in items:
        yield from places(inner, (*path, key))


def mutate(document: Any, rng: random.Random) -> str:
    """Replaces, removes or adds one thing somewhere."""
    path = rng.choice([path for path in places(document) if path and path[-1] not in ("digest", "format", "version")])
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.random()
    if kind < 0.2 and isinstance(parent, dict):
        del parent[path[-1]]
        return f"without {path}"
    if kind < 0.25 and isinstance(parent, dict):
        parent["unknown"] = NESTED
        return f"nested beside {path}"
    parent[path[-1]] = odd = rng.choice(ODD)
    return f"{path} = {str(odd)[:20]!a}"


def commands(store: Path, out: Path) -> Iterator[tuple[str, ...]]:
    name = str(store)
    yield ("inspect", name)
    yield ("inspect", name, "--json")
    yield ("verify", name, "--data", DATA)
    yield ("card", name)
    yield ("diff", name, name, "--teacher-name", "a,a")
    yield ("export", name, "--out", str(out / "e.npz"))
    yield ("decode", name, "--out", str(out / "d.npy"))
    yield ("subset", name, "--slice", "0:10", "--out", str(out / "sub.zarr"))
    yield ("copy", name, str(out / "copy.zarr"))
    rest = ("--data", DATA, "--epochs", "1", "--student", "linear")
    yield ("train-student", "--store", name, "--out", str(out / "run"), *rest)


def fuzz_store(store: Path, folder: Path, seed: int, count: int) -> None:
    rng = random.Random(seed)
    for number in range(count):
        here = folder / str(number)
        shutil.copytree(store, here / "s.zarr")
        if rng.random() < 0.5:
            path, teacher = here / "s.zarr" / "zarr.json", None
        else:
            path, teacher = here / "s.zarr" / "teachers" / "a" / "zarr.json", "a"
        document = json.loads(path.read_text())
        said = mutate(document["attributes"], rng)
        path.write_text(json.dumps(document))
        with contextlib.suppress(ValueError, RecursionError):  # what cannot be sealed is refused before its digest
            reseal(here / "s.zarr", teacher)
        for command in commands(here / "s.zarr", here):
            try:
                run(*command)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}, mutation {number}: {said}: {error}") from error
        shutil.rmtree(here)


def test_odd_attributes_of_stores_make_no_traceback(store: Path, tmp_path: Path) -> None:
    fuzz_store(store, tmp_path, seed=0, count=12)


@pytest.mark.slow
def test_many_odd_attributes_of_stores(store: Path, tmp_path: Path) -> None:
    fuzz_store(store, tmp_path, seed=1, count=300)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deep|RecursionError"),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), "nested deeper"),
        ('{"a": NaN}', "no number of JSON"),
        ('{"a": 1e999}', "not finite"),
        (f'{{"a": {10**30}}}', "64 bits"),
        ("9" * 5000, "plain JSON"),
        ('"\\ud800"', "surrogates"),
        ("{", "plain JSON"),
        (b"\xff\xfe\xff", "plain JSON"),
    ],
)
def test_json_that_is_not_plain_is_refused_with_its_source(text: str | bytes, message: str) -> None:
    with pytest.raises(StoreError, match=f"^a file: .*({message})"):
        parse_json(text, "a file")


def test_plain_json_is_read() -> None:
    value = {"a": [1, 2.5, None, True, "é"], "b": {"c": 2**64 - 1}}
    assert parse_json(json.dumps(value), "x") == value


def with_metadata(source: Path, target: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    with safe_open(source, framework="pt") as file:
        texts = dict(file.metadata())
    metadata = json.loads(texts[METADATA_KEY])
    changed = change(metadata)
    texts[METADATA_KEY] = changed if isinstance(changed, str) else json.dumps(metadata)
    save_file(load_state(source), target, metadata=texts)
    return target


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(preprocessing="none"), "its input scaling is 'none'"),
        (lambda m: m.update(preprocessing={"mean": "0.5", "std": [1]}), "lists of numbers"),
        (lambda m: m.update(preprocessing={"mean": [0], "std": [1], "size": 10**6}), "at most 1024 pixels"),
        (lambda m: m.update(preprocessing={"mean": [0], "std": [-1]}), "must be positive"),
        (lambda m: m.update(architecture=["mlp"]), "its architecture is"),
        (lambda m: m.update(architecture="x" * 1000), "expected a short text"),
        (lambda m: m.update(data_fingerprint=5), "its data_fingerprint is '5'"),
        (lambda m: m.update(folds="two"), "its folds are 'two'"),
        (lambda m: m.update(folds={"num_folds": "2", "seed": 0}), "num_folds of its folds"),
        (lambda m: m.update(folds={"num_folds": 2, "seed": -1, "left_out": 0}), "seed of its folds"),
        (lambda m: "[" * 100_000, "nested too deep"),
        (lambda m: '{"a": NaN}', "no number of JSON"),
        (lambda m: "[]", "not a JSON object"),
        (lambda m: "{" + " " * 2**20 + "}", "characters, more than"),
    ],
)
def test_odd_metadata_of_weights_is_one_line(
    store: Path, change: Callable[[dict[str, Any]], object], message: str, tmp_path: Path
) -> None:
    path = with_metadata(store.parent / "t" / "fold0.safetensors", tmp_path / "w.safetensors", change)
    said = run("cache-teacher", "--data", DATA, "--teacher", "linear", "--weights", str(path), "--out", "o.zarr")
    assert message in said
    assert str(path) in said


def test_damaged_training_keys_are_one_line(store: Path, tmp_path: Path) -> None:
    for text in ("not base64!", "QUJD", "é"):
        path = tmp_path / "w.safetensors"
        save_file(load_state(store.parent / "t" / "fold0.safetensors"), path, metadata={TRAINING_KEYS: text})
        said = run("cache-teacher", "--data", DATA, "--teacher", "linear", "--weights", str(path), "--out", "o.zarr")
        assert f"its {TRAINING_KEYS} are damaged" in said


def test_a_deep_listing_of_teachers_is_no_listing(store: Path, tmp_path: Path) -> None:
    target = tmp_path / "s.zarr"
    shutil.copytree(store, target)
    (target / "zarr.json").write_text("[" * 100_000)
    with pytest.raises(StoreError, match="zarr.json: expected plain JSON"):
        open_store(target)
