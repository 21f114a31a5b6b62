"""Ray: a real cluster on this machine, whose processes are killed, writes and trains what one process does."""

import filecmp
import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from logitbank.pipeline.processes.ray_cluster import Resources, connected, room_for
from logitbank.pipeline.train_student.folder import RESULT, read_json
from logitbank.stores import open_store, verify_store

ROOT = Path(__file__).parents[1]
SECRET = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}  # nobody else gets in
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **SECRET}
CLUSTER = """
import logging, sys, ray
ray.init("local", num_cpus=2, num_gpus=1, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
print(ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
"""
CACHE = (
    "cache-teacher --teacher cnn --weights random-init --views 6 --transform flip-crop --device cpu --threads 1"
    " --log-json --out"
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster that lives as long as the tests here; its GPU is a number to Ray, and nothing else."""
    command = [sys.executable, "-c", CLUSTER]
    with subprocess.Popen(command, env=ENVIRONMENT, stdin=-1, stdout=-1, stderr=-3, text=True) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        yield process.stdout.readline().strip()
        process.stdin.close()


def start(cwd: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "logitbank", *arguments]
    environment = {**ENVIRONMENT, "PYTHONWARNINGS": "error"}
    return subprocess.Popen(command, cwd=cwd, env=environment, stdout=-1, stderr=-1, text=True)


def run(cwd: Path, *arguments: str) -> str:
    """What it prints."""
    with start(cwd, *arguments) as process:
        said, error = process.communicate()
    assert process.returncode == 0, error
    return said


def processes_of_ray(cwd: Path) -> list[int]:
    """Those that work for a command in that folder."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            ours = process.name.isdecimal() and (process / "cwd").readlink() == cwd.resolve()
            if ours and (process / "cmdline").read_bytes().startswith(b"ray::_Holder"):
                found.append(int(process.name))
        except OSError:  # another user's, or gone
            continue
    return sorted(found)


def files_of(store: Path) -> set[str]:
    return {path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file()} - {"zarr.json"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one process."""
    cwd = tmp_path_factory.mktemp("alone")
    run(cwd, *CACHE.split(), "s.zarr")
    return cwd / "s.zarr"


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 20))])
def test_a_store_is_that_of_one_process_whoever_dies(seed: int, cluster: str, alone: Path, tmp_path: Path) -> None:
    """No cell is answered twice but those under way at a kill."""
    random, killed = np.random.default_rng(seed), 0
    out = tmp_path / "s.zarr"
    with start(tmp_path, *CACHE.split(), "s.zarr", "--ray", cluster) as process:
        while process.poll() is None:
            time.sleep(float(random.uniform(0.05, 0.5)))
            there = processes_of_ray(tmp_path)
            if there and killed < (3 if seed else 1) and (out / "teachers").exists():
                os.kill(int(random.choice(there)), signal.SIGKILL)
                killed += 1
        said, error = process.communicate()
    assert process.returncode == 0, error
    assert killed
    assert '"event": "finished"' in said.splitlines()[-1]
    cells = [line for line in said.splitlines() if '"event": "progress"' in line]
    committed = open_store(out).teacher().committed().size
    assert committed - killed <= len(cells) <= committed  # one may be committed at a kill, and not yet told
    assert verify_store(out) == []
    assert files_of(out) == files_of(alone)
    different = filecmp.cmpfiles(out, alone, files_of(out), shallow=False)[1]
    assert [name for name in different if not name.endswith("zarr.json")] == []
    assert open_store(out).teacher().summary == open_store(alone).teacher().summary
    assert {path.name for path in tmp_path.iterdir()} == {"s.zarr"}


def test_a_sweep_trains_what_the_local_pool_trains(cluster: str, alone: Path, tmp_path: Path) -> None:
    sweep = ["sweep", "--store", str(alone), "--loss", "ce,kd", "--student", "mlp:8", "--seeds", "1", "--epochs", "2"]
    sweep += ["--threads", "1", "--out"]
    run(tmp_path, *sweep, "pool")
    assert "2 runs trained" in run(tmp_path, *sweep, "ray", "--ray", cluster, "--gpus-per-run", "0.5")
    results = {path.parent.name: read_json(path) for path in (tmp_path / "ray").rglob(RESULT)}
    assert len(results) == 2
    for name, found in results.items():
        wanted = read_json(tmp_path / "pool" / name / RESULT)
        assert {**found, "seconds": 0} == {**wanted, "seconds": 0}
    refused = start(tmp_path, *sweep, "more", "--ray", cluster, "--gpus-per-run", "7")
    said, error = refused.communicate()
    assert (refused.returncode, said) == (2, "")
    assert f"error: --ray {cluster}: each process takes 1 CPUs and 7 GPUs, and no machine has them" in error


@pytest.mark.slow
def test_twelve_students_are_the_same_whoever_trains_them(cluster: str, alone: Path, tmp_path: Path) -> None:
    """The local pool, Ray, and two machines that share a folder."""
    sweep = ["sweep", "--store", str(alone), "--loss", "ce,kd", "--student", "mlp:8,mlp:16", "--seeds", "3"]
    sweep += ["--epochs", "5", "--threads", "1", "--log-json", "--out"]
    run(tmp_path, *sweep, "pool", "--jobs", "2")
    run(tmp_path, *sweep, "ray", "--ray", cluster)
    (tmp_path / "disk").mkdir()
    for machine in ("a", "b"):
        (tmp_path / machine).mkdir()
        (tmp_path / machine / "shared").symlink_to(tmp_path / "disk")
    both = [start(tmp_path / machine, *sweep, "shared/sweep") for machine in ("a", "b")]
    ended = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    counts = [json.loads(said.splitlines()[-1]) for said, _ in ended]
    assert sum(count["done"] for count in counts) == 12  # nothing is trained twice
    assert all(count["done"] for count in counts)
    pool, ray, disk = (
        {path.parent.name: {**read_json(path), "seconds": 0} for path in (tmp_path / folder).rglob(RESULT)}
        for folder in ("pool", "ray", "disk")
    )
    assert len(pool) == 12
    assert pool == ray == disk


def test_a_mistake_in_a_process_of_ray_is_one_line(cluster: str, tmp_path: Path) -> None:
    done = start(tmp_path, *CACHE.split(), "s.zarr", "--ray", cluster, "--data", "npz:none.npz")
    said, error = done.communicate()
    assert (done.returncode, said, error.count("\n")) == (2, "", 1)
    assert error.startswith("error: npz:none.npz")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cache-teacher", "--out", "s", "--ray", "local", "--part", "0/2"), "--part does nothing here, because --ray"),
        (("cache-teacher", "--out", "s", "--ray", "local", "--dry-run"), "--dry-run does nothing here, because --ray"),
        (("cache-teacher", "--out", "s", "--ray", "ray://host:10001"), "expected local, auto, or HOST:PORT"),
        (("cache-teacher", "--out", "s3://bucket/s.zarr", "--ray", "local"), "a folder that all machines share"),
        (("sweep", "--store", "s", "--out", "o", "--gpus-per-run", "1"), "--ray is not given"),
        (("sweep", "--store", "s", "--out", "o", "--ray", "local", "--jobs", "2"), "--jobs does nothing here"),
    ],
)
def test_what_ray_makes_of_other_options(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    with start(tmp_path, *arguments) as process:
        said, error = process.communicate()
    assert (process.returncode, said, error.count("\n")) == (2, "", 1)
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install logitbank\[ray\]"):
        connected("local")


def test_room_for_processes() -> None:
    machines = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}, {}]
    rooms = {
        (1, None): 4,
        (1, 0.0): 24,
        (4, 0.0): 6,
        (1, 0.5): 8,
        (1, 0.3): 12,  # a part is a part of one GPU
        (1, 2.0): 2,
        (8, None): 2,
    }
    for (cpus, gpus), room in rooms.items():
        assert room_for(machines, Resources(cpus=cpus, gpus=gpus), "auto")[0] == room
    assert room_for(machines[1:], Resources(cpus=2), "auto") == (4, 0.0)
    with pytest.raises(ValueError, match="32 CPUs and 1 GPUs, and no machine has them"):
        room_for(machines, Resources(cpus=32), "auto")
