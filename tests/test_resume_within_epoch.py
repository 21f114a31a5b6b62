"""A run goes on from between two steps, to the bits of one that was not stopped, and in another number of processes."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.described import from_values
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.feed import Feed
from logitbank.pipeline.models.weights import load_state
from logitbank.pipeline.processes import LEAST_ROWS
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.folder import CHECKPOINT, HISTORY, RESULT, WEIGHTS
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.students import train

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def store(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "s.zarr"
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    views = Views(transform="flip-crop", num_views=2)
    answers, encoding = NetworkTeacher(digits, teachers, views), Encoding(kind="topk", num_classes=10, top_k=3)
    cache_teacher(answers, path, encoding=encoding, block_rows=256)
    return path


def start(store: Path, out: Path, asked: dict[str, Any], count: int) -> list[subprocess.Popen[bytes]]:
    """The command line, in so many processes that train together."""
    options = [text for name, value in asked.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    command = [
        sys.executable,
        str(ROOT / "cli.py"),
        "train-student",
        "--store",
        str(store),
        "--out",
        str(out),
        *options,
    ]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    meeting = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ranks = [{**meeting, "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank)} for rank in range(count)]
    return [subprocess.Popen(command, env=rank, stdout=subprocess.DEVNULL) for rank in ranks]


def place(checkpoint: Path) -> tuple[int, int]:
    """Whole epochs, and steps of the one under way, of a checkpoint."""
    try:
        with safe_open(checkpoint, framework="pt") as file:
            content = json.loads(file.metadata()["checkpoint"])
    except (OSError, SafetensorError):
        return 0, 0
    return len(content["history"]), content["under_way"]["steps"]


def kill_between(store: Path, out: Path, asked: dict[str, Any], after: tuple[int, int], count: int = 1) -> None:
    """SIGKILL, to all processes, once a checkpoint between two steps is this far."""
    started = start(store, out, asked, count)
    found = (0, 0)
    while found < after or not found[1]:
        assert all(process.poll() is None for process in started), "finished before it could be killed"
        time.sleep(0.02)
        found = place(out / CHECKPOINT)
    for process in started:
        process.send_signal(signal.SIGKILL)
    for process in started:
        process.wait()
    assert not (out / RESULT).exists()
    assert place(out / CHECKPOINT) >= after


def losses(out: Path) -> list[dict[str, str]]:
    """The history without its seconds."""
    with (out / HISTORY).open() as file:
        return [{name: value for name, value in line.items() if name != "seconds"} for line in csv.DictReader(file)]


def test_a_process_killed_between_steps_goes_on_to_the_same_bytes(store: Path, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"student": "cnn", "epochs": 2, "batch_size": 16, "accumulate": 2, "mixup": 0.5}
    asked |= {"loss": "rld", "val_share": 0.1, "select": "best", "threads": 1, "device": "cpu"}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    often = {**asked, "checkpoint_every": 4}
    kill_between(store, killed, often, (1, 20))
    train_student(from_values(Run, {"store": str(store), **often}), killed)
    train_student(from_values(Run, {"store": str(store), **asked}), whole)
    assert (killed / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()
    assert losses(killed) == losses(whole)
    results = [json.loads((out / RESULT).read_text()) for out in (killed, whole)]
    assert results[0]["notes"] == results[1]["notes"]
    assert results[0]["notes"]["rld_rows"] > 0


class Killed(Exception):
    """Where the process would have been killed."""


@pytest.mark.parametrize("budget", [0.0, 25e-6], ids=["whole", "blocks"])
def test_what_was_shown_is_not_read_again(
    store: Path, digits: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: float
) -> None:
    """Neither samples nor, where they are read block by block, answers."""
    asked: dict[str, Any] = {"student": "mlp:8", "epochs": 1, "batch_size": 64, "checkpoint_every": 10}
    asked |= {"memory_budget": budget, "device": "cpu", "tail": "uniform", "ema_decay": 0.9, "random_erasing": 0.3}
    opened, read = open_store(store), list[int]()
    samples, save = Feed._samples, Checkpoint.save

    def counted(self: Feed, view: int, rows_B: torch.Tensor) -> torch.Tensor:
        read.append(len(rows_B))
        return samples(self, view, rows_B)

    def killed(self: Checkpoint, run: Any, *arguments: Any) -> None:
        save(self, run, *arguments)
        if run.under_way.steps == 20:
            raise Killed

    monkeypatch.setattr(Feed, "_samples", counted)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed)
        with pytest.raises(Killed):
            train(opened, digits, None, tmp_path / "run", asked=asked)
    assert sum(read) == 20 * 64
    read.clear()
    result = train(opened, digits, None, tmp_path / "run", asked=asked)
    assert sum(read) == len(digits) - 20 * 64
    whole = train(opened, digits, None, tmp_path / "whole", asked=asked)
    assert result["weights_sha256"] == whole["weights_sha256"]
    assert (result["grouping"] is None) == (budget == 0)


@pytest.mark.parametrize(
    "counts", [(2, 1), pytest.param((1, 3, 2), marks=pytest.mark.slow)], ids=["two-one", "one-three-two"]
)
def test_a_run_goes_on_in_another_number_of_processes(store: Path, tmp_path: Path, counts: tuple[int, ...]) -> None:
    """The steps of one that was not stopped, but for rounding."""
    asked: dict[str, Any] = {"student": "mlp:16", "epochs": 3, "batch_size": 24, "mixup": 1.0, "checkpoint_every": 2}
    asked |= {"threads": 1, "device": "cpu"}
    out, whole = tmp_path / "out", tmp_path / "whole"
    for epoch, count in enumerate(counts[:-1]):
        kill_between(store, out, asked, (epoch, 10), count)
    for process in start(store, out, asked, counts[-1]):
        assert process.wait() == 0
    train_student(from_values(Run, {"store": str(store), **asked}), whole)
    went_on, expected = load_state(out / WEIGHTS), load_state(whole / WEIGHTS)
    for name, values in expected.items():
        torch.testing.assert_close(went_on[name], values, rtol=1e-3, atol=1e-4)
    for line, other in zip(losses(out), losses(whole), strict=True):
        np.testing.assert_allclose(float(line["loss"]), float(other["loss"]), rtol=1e-4)
        assert line["lr"] == other["lr"]
    result = json.loads((out / RESULT).read_text())
    assert result["processes"] == counts[-1]
    said = ", then ".join(map(str, counts))
    assert result["warnings"][-1].startswith(f"the run was trained by {said} processes: the same steps")


def test_more_processes_than_the_last_step_has_rows_for_are_refused(digits: Split) -> None:
    """1437 rows in steps of 49 leave 16 to the last, of which each process takes two or more."""

    def feed(count: int) -> Feed:
        settings, processes = Training(batch_size=49), Processes(count=count)
        return Feed(digits, Views(), settings, processes, fit=None, workers=0, pinned=False, least_rows=LEAST_ROWS)

    feed(8).check(len(digits))
    with pytest.raises(
        ValueError, match="last step of its epochs has 16 examples; go on with at most 8 processes, not 9"
    ):
        feed(9).check(len(digits))
