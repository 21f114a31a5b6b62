"""Real processes that build one thing at the same moment, and real ones that are killed while they do.

A command is a function of the package, called in a process that is forked when everything is imported. Of two
that ask for the same, one makes it and the other finds it; of two that ask for something else, one is refused, in words
that are so. What is there holds what its maker was asked for. After a kill the same command ends with the same, and
nothing stays beside it, nor in the temporary folder.
"""

import multiprocessing
import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.pipeline.alignment import describe_examples
from logitbank.pipeline.exchange import export_store
from logitbank.pipeline.look.card import write_card
from logitbank.stores import StoreError, copy_store, open_store, verify_store
from logitbank.stores.write.extend import extend_store
from logitbank.stores.write.merge import merge_stores, subset_store
from tests.golden.make_decoded import FOLDER as GOLDEN
from tests.sharing import contents
from tests.test_merge import answers, make

FORK = multiprocessing.get_context("fork")
IDS = np.arange(12)
REFUSED = r"^\S+ (is there and is something else; remove it or choose another path|is there and is not this store; .*)$"
_INVERSE = pow(11_400_714_819_323_198_485, -1, 2**64)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Two requests to one place, what is there afterwards, and in what words the other is refused."""

    run: Callable[[Path, Path, int], bool]  # folder of inputs, place, number of the request -> whether it was written
    check: Callable[[Path, int], None] | None = None  # place, number of the request; None: always the same bytes
    ending: str = ""
    refused: str = REFUSED


def _store(teachers: dict[str, int], ids: Callable[[int], np.ndarray], num_views: int = 2) -> Any:
    """Checks a store: its examples, and each teacher's answers to them."""

    def check(out: Path, number: int) -> None:
        store = open_store(out)
        found = (store.keys * np.uint64(_INVERSE)).astype(np.int64)
        np.testing.assert_array_equal(found, ids(number))
        wanted = {name: offset for name, offset in teachers.items() if name not in "bc" or name == "bc"[number]}
        assert set(store.teachers) == set(wanted)
        for name, offset in wanted.items():
            for view in range(num_views):
                own = 100 if offset < 0 and number else offset
                np.testing.assert_array_equal(
                    store.teacher(name).slab(view)["logit"], answers(found, view, max(own, 0))["logit"]
                )
        assert verify_store(out) == []

    return check


def _subset(inputs: Path, out: Path, number: int) -> bool:
    rows = IDS[: 8 + number]
    return not subset_store(inputs / "a", out, rows, describe=describe_examples).already_there


def _merge(inputs: Path, out: Path, number: int) -> bool:
    return not merge_stores([inputs / "a", inputs / "bc"[number]], out, describe=describe_examples).already_there


def _copy(inputs: Path, out: Path, number: int) -> bool:
    return not copy_store(inputs / "de"[number], out, num_threads=2).already_there


def _export(inputs: Path, out: Path, number: int) -> bool:
    return export_store(inputs / "pq"[number], out)[1]


def _card(inputs: Path, out: Path, number: int) -> bool:
    return write_card(inputs / "pq"[number], out)[1]


def _extend(inputs: Path, out: Path, number: int) -> bool:
    """What stage one does, with a teacher that answers at once."""
    store = open_store(inputs / "de"[number], allow_incomplete=True)
    writer = extend_store(store, out, num_views=3, probes={})
    for cell in writer.pending():
        writer.write(cell, answers(IDS[writer.rows(cell.block)], cell.view, 100 * number))
    writer.finish(fidelity={"1": 0.0})
    return True


COMMANDS = {
    "subset": Command(run=_subset, check=_store({"a": 0}, lambda number: IDS[: 8 + number])),
    "merge": Command(run=_merge, check=_store({"a": 0, "b": 1, "c": 2}, lambda number: IDS)),
    "copy": Command(run=_copy),
    "zip": Command(run=_copy, ending=".zarr.zip"),
    "export": Command(run=_export, ending=".npz"),
    "card": Command(run=_card, ending=".md"),
    "extend": Command(
        run=_extend,
        check=_store({"t": -1}, lambda number: IDS, num_views=3),
        refused=r"^\S+ was written for .*: lineage is .* in the store and .* here; choose another path .*$",
    ),
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Teachers a, b and c of the same examples; d and e, which differ in nothing but their answers."""
    folder = tmp_path_factory.mktemp("inputs")
    for number, name in enumerate("abc"):
        make(folder / name, IDS, name, offset=number)
    for number, name in enumerate("de"):
        make(folder / name, IDS, "t", offset=100 * number)
    for name, kind in (("p", "dense-8"), ("q", "topk-16")):
        shutil.copytree(GOLDEN / f"{kind}.zarr", folder / name)
    for name, command in COMMANDS.items():
        for number in range(2):
            if command.check is None:
                out = folder / f"{name}-{number}" / f"out{command.ending}"
                out.parent.mkdir()
                command.run(folder, out, number)
    return folder


def check(name: str, inputs: Path, out: Path, number: int) -> None:
    wanted = COMMANDS[name].check
    if wanted is None:
        assert contents(out.parent) == contents(inputs / f"{name}-{number}")
    else:
        wanted(out, number)


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _child(command: Command, inputs: Path, out: Path, number: int, start: Any, tell: Connection) -> None:
    start.wait()
    try:
        tell.send(command.run(inputs, out, number))
    except StoreError as error:
        tell.send(str(error))


def _start(command: Command, inputs: Path, out: Path, number: int, start: Any) -> tuple[Any, Connection]:
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=_child, args=(command, inputs, out, number, start, theirs))
    process.start()
    theirs.close()
    return process, ours


def race(name: str, inputs: Path, out: Path, numbers: tuple[int, int]) -> None:
    """Two processes at once, each with a request of its own, or both with the same."""
    command = COMMANDS[name]
    start = FORK.Event()
    started = [_start(command, inputs, out, number, start) for number in numbers]
    start.set()
    assert all(tell.poll(60) for _, tell in started), "they wait for ever"
    said = [tell.recv() for _, tell in started]
    for process, _ in started:
        process.join()
        assert process.exitcode == 0
    made = [number for number, outcome in zip(numbers, said, strict=True) if outcome is True]
    assert made, said
    if numbers[0] == numbers[1]:
        assert set(said) <= {True, False}, said
    else:
        (refusal,) = (outcome for outcome in said if outcome is not True)
        assert re.match(command.refused, str(refusal)), said
    check(name, inputs, out, made[0])


def nothing_beside(out: Path) -> bool:
    return not [path.name for path in out.parent.iterdir() if path.name.startswith(".")]


def kill(name: str, inputs: Path, out: Path, moment: float) -> bool:
    """Runs a command, kills it at a moment, runs it again; whether it was killed before its end."""
    command = COMMANDS[name]
    start = FORK.Event()
    start.set()
    process, tell = _start(command, inputs, out, 1, start)
    time.sleep(moment)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    killed = process.exitcode == -signal.SIGKILL
    tell.close()
    start = FORK.Event()  # the one before may have been killed with its lock held
    start.set()
    process, tell = _start(command, inputs, out, 1, start)
    assert tell.poll(60), "it waits for ever"
    assert tell.recv() in (True, False)
    process.join()
    check(name, inputs, out, 1)
    return bool(killed)


def check_races(name: str, inputs: Path, tmp_path: Path, temporary: Path, num_races: int) -> None:
    for number in range(num_races):
        for numbers in ((0, 1) if number % 2 else (1, 0), (number % 2,) * 2):
            out = tmp_path / f"{number}-{numbers[0]}{numbers[1]}" / f"out{COMMANDS[name].ending}"
            out.parent.mkdir()
            race(name, inputs, out, numbers)
            assert nothing_beside(out), list(out.parent.iterdir())
    assert list(temporary.iterdir()) == []


def check_kills(name: str, inputs: Path, tmp_path: Path, temporary: Path, num_kills: int) -> None:
    started = time.perf_counter()
    (tmp_path / "whole").mkdir()
    COMMANDS[name].run(inputs, tmp_path / "whole" / f"out{COMMANDS[name].ending}", 1)
    whole = time.perf_counter() - started
    rng, kills, number = np.random.default_rng(7), 0, 0
    while kills < num_kills:
        out = tmp_path / str(number) / f"out{COMMANDS[name].ending}"
        out.parent.mkdir()
        kills += kill(name, inputs, out, rng.uniform(0, whole))
        number += 1
        assert nothing_beside(out), list(out.parent.iterdir())
        assert not list(out.rglob(".*"))
    assert list(temporary.iterdir()) == []


QUICK = [name for name in COMMANDS if name != "card"]  # which draws


@pytest.mark.parametrize("name", QUICK)
def test_two_at_once(name: str, inputs: Path, tmp_path: Path, temporary: Path) -> None:
    check_races(name, inputs, tmp_path, temporary, 1)


@pytest.mark.parametrize("name", QUICK)
def test_killed_and_run_again(name: str, inputs: Path, tmp_path: Path, temporary: Path) -> None:
    check_kills(name, inputs, tmp_path, temporary, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_races"), {name: 8 if name == "card" else 32 for name in COMMANDS}.items())
def test_400_races(name: str, num_races: int, inputs: Path, tmp_path: Path, temporary: Path) -> None:
    check_races(name, inputs, tmp_path, temporary, num_races)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "num_kills"), {name: 12 if name == "card" else 48 for name in COMMANDS}.items())
def test_300_kills(name: str, num_kills: int, inputs: Path, tmp_path: Path, temporary: Path) -> None:
    check_kills(name, inputs, tmp_path, temporary, num_kills)
