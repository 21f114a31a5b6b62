"""Real writers, really killed, and writers that get in each other's way."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from logitbank.stores import Cell, StoreError, create_store, open_store, verify_store
from tests.test_stores import description, rows, writer

BLOCK_ROWS = 96
WORKER = f"""
import sys
from pathlib import Path
from logitbank.stores import StoreError
from tests.test_stores import rows, writer
path, part, num_parts, seed = Path(sys.argv[1]), *map(int, sys.argv[2:])
print("ready", flush=True)
sys.stdin.readline()
teacher = writer(path, block_rows={BLOCK_ROWS})
for cell in [cell for cell in teacher.cells()[part::num_parts] if not teacher.is_committed(cell)]:
    try:
        teacher.write(cell, rows(teacher, cell, seed))
    except StoreError as error:
        print("refused", error, flush=True)
"""


def start(path: Path, part: int = 0, num_parts: int = 1, seed: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, str(path), str(part), str(num_parts), str(seed)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def go(worker: subprocess.Popen[str]) -> None:
    assert worker.stdin is not None
    assert worker.stdout is not None
    assert worker.stdout.readline() == "ready\n"
    worker.stdin.write("\n")
    worker.stdin.flush()


def wait(worker: subprocess.Popen[str]) -> str:
    out, _ = worker.communicate(timeout=120)
    return out


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def check_committed(path: Path) -> int:
    """Number of committed cells; all of them hold what the teacher answers."""
    teacher = open_store(path, allow_incomplete=True).teacher("t")
    made = writer(path, block_rows=BLOCK_ROWS)
    done = np.argwhere(teacher.committed() != 0).tolist()
    for view, block in done:
        found = teacher.block(view, block)
        for name, values in rows(made, Cell(view, block)).items():
            np.testing.assert_array_equal(found[name], values)
    return len(done)


def check_kills(tmp_path: Path, num_kills: int) -> None:
    base = tmp_path / "base.zarr"
    create_store(base, **description())
    undisturbed = shutil.copytree(base, tmp_path / "undisturbed.zarr")
    worker = start(undisturbed)
    go(worker)
    assert wait(worker) == ""
    writer(undisturbed, block_rows=BLOCK_ROWS).finish(fidelity={"1": 0.1})

    rng = np.random.default_rng(11)
    path, kills, torn = tmp_path / "s.zarr", 0, 0
    shutil.copytree(base, path)
    while True:
        workers = [start(path, part, 2) for part in range(2)]
        for worker in workers:
            go(worker)
        for worker in workers:
            if kills < num_kills:
                time.sleep(rng.uniform(0, 0.12))
                kills += worker.poll() is None
                worker.kill()
            wait(worker)
        torn += len(list(path.rglob("*.partial")))
        if not (path / "teachers/t").exists():
            continue
        before = check_committed(path)
        if before == 32 and kills < num_kills:  # all done: again from the start
            writer(path, block_rows=BLOCK_ROWS).finish(fidelity={"1": 0.1})
            assert contents(path) == contents(undisturbed)
            shutil.rmtree(path)
            shutil.copytree(base, path)
        elif before == 32:
            break
    writer(path, block_rows=BLOCK_ROWS).finish(fidelity={"1": 0.1})
    assert contents(path) == contents(undisturbed)
    assert verify_store(path) == []
    assert kills >= num_kills


def test_kill_and_run_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    check_kills(tmp_path, 6)


@pytest.mark.slow
def test_100_kills(tmp_path: Path) -> None:
    check_kills(tmp_path, 100)


def test_writers_with_the_same_answers_are_harmless(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, **description())
    workers = [start(path) for _ in range(3)]  # they create the teacher at the same moment, too
    for worker in workers:
        go(worker)
    assert [wait(worker) for worker in workers] == ["", "", ""]
    assert check_committed(path) == 32
    writer(path, block_rows=BLOCK_ROWS).finish(fidelity={})
    assert verify_store(path) == []
    assert not list(path.rglob("*.partial"))


def test_writers_with_different_answers_are_told(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, **description())
    teacher = writer(path, block_rows=BLOCK_ROWS)
    teacher.write(Cell(0, 0), rows(teacher, Cell(0, 0)))
    with pytest.raises(StoreError, match="two writers disagree"):
        teacher.write(Cell(0, 0), rows(teacher, Cell(0, 0), seed=1))
    assert check_committed(path) == 1

    workers = [start(path, seed=seed) for seed in (1, 2)]
    for worker in workers:
        go(worker)
    told = "".join(wait(worker) for worker in workers).count("two writers disagree")
    read = open_store(path, allow_incomplete=True).teacher()
    left = len(read.uncommitted())
    mixed = 0
    for view, block in np.argwhere(read.committed() != 0).tolist():
        cell = Cell(view, block)
        try:
            found = read.block(view, block)
        except StoreError:
            mixed += 1
            continue
        answers = [rows(teacher, cell, seed) for seed in (0, 1, 2)]
        assert any(all(np.array_equal(found[name], answer[name]) for name in answer) for answer in answers)
    assert told >= left + mixed  # each cell that is gone or mixed was reported by somebody


def test_leftovers_of_others_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, **description())
    teacher = writer(path)
    teacher.write(Cell(0, 0), rows(teacher, Cell(0, 0)))
    folder = path / "teachers/t/logsumexp/c/0"
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    code = (
        "from logitbank.stores.files import partial_path; from pathlib import Path; print(partial_path(Path('1')).name)"
    )
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    machine, pid = dead.split(".")[2].split("-")[:2]
    elsewhere = dead.replace(machine, "0" * 12)
    live = dead.replace(f"-{pid}-", f"-{sleeper.pid}-")
    for name in (dead, elsewhere, live, "mine.partial"):
        (folder / name).write_bytes(b"x")
    (tmp_path / ".s.zarr.mine.partial").write_bytes(b"x")
    writer(path)
    create_store(tmp_path / "s2.zarr", **description())
    kept = {file.name for file in folder.iterdir()}
    assert kept == {"0", elsewhere, live, "mine.partial"}
    assert (tmp_path / ".s.zarr.mine.partial").exists()
    sleeper.communicate(b"\n")
