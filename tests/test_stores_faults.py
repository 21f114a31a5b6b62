"""Damage and refusing disks: verify names every fault, reading never returns a wrong row, nothing is lost."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from logitbank.stores import Cell, RowArray, StoreError, create_store, open_store, verify_store
from tests.test_stores import ARRAYS, K, N, description, finished, rows, writer


def one_line(call: Callable[[], object], match: str | None = None) -> str:
    """The message of the StoreError that `call` must raise."""
    with pytest.raises(StoreError, match=match) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    assert len(message) < 1500
    return message


def everything(path: Path) -> dict[str, bytes]:
    """All that a reader can get from a store, as bytes."""
    store = open_store(path)
    out = {"attributes": json.dumps([store.attributes, store.teachers], sort_keys=True).encode()}
    arrays = {"key": store.keys, "label": store.labels, **store.probes}
    for name in store.teachers:
        teacher = store.teacher(name)
        own = [teacher.identity, teacher.encoding, teacher.fidelity, teacher.summary, teacher.block_rows]
        out[name] = json.dumps(own, sort_keys=True).encode()
        arrays |= teacher.constants()
        for view in range(store.num_views):
            arrays |= {f"{name}/{view}/{key}": values for key, values in teacher.slab(view).items()}
    return out | {key: values.tobytes() for key, values in arrays.items()}


def meaning(file: Path) -> object:
    """What a file says: JSON for metadata, bytes for data, None when it is gone or no JSON."""
    if not file.exists():
        return None
    if file.name != "zarr.json":
        return file.read_bytes()
    try:
        return json.loads(file.read_bytes())
    except ValueError:
        return None


def check_random_damage(tmp_path: Path, trials: int) -> None:
    sound = finished(tmp_path / "sound.zarr")
    truth = everything(sound)
    files = sorted(file.relative_to(sound) for file in sound.rglob("*") if file.is_file())
    rng = np.random.default_rng(5)
    silent = 0
    for trial in range(trials):
        path = tmp_path / "s.zarr"
        shutil.copytree(sound, path)
        file = path / files[trial % len(files) if trial < len(files) else rng.integers(len(files))]
        before, data = meaning(file), bytearray(file.read_bytes())
        kind = ("flip", "flip", "truncate", "delete")[rng.integers(4)]
        if kind == "delete":
            file.unlink()
        elif kind == "truncate":
            file.write_bytes(data[: rng.integers(len(data))])
        else:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
            file.write_bytes(data)
        what = f"{kind} {file.relative_to(path)}"
        problems = verify_store(path)
        if meaning(file) == before:  # white space between the words of metadata
            silent += 1
            assert problems == [], what
        else:
            assert problems, what
            where = file.relative_to(path).as_posix().split("/c/")
            text = " ".join(f"{problem.array} {problem.message}" for problem in problems)
            assert where[0].removesuffix("/zarr.json").removesuffix("zarr.json") in text, what
            if len(where) == 2 and where[0].startswith("teachers") and "tail_bias" not in where[0]:
                view, block = map(int, where[1].split("/")[:2])
                assert {(p.array, p.view, p.block) for p in problems} == {(where[0], view, block)}, what
        with contextlib.suppress(StoreError):
            assert everything(path) == truth, what
        shutil.rmtree(path)
    assert silent < trials // 4


def test_verify_finds_random_damage(tmp_path: Path) -> None:
    check_random_damage(tmp_path, 45)


@pytest.mark.slow
def test_verify_finds_300_random_damages(tmp_path: Path) -> None:
    check_random_damage(tmp_path, 300)


def test_blocks_of_another_store_are_found(tmp_path: Path) -> None:
    one, two = finished(tmp_path / "1.zarr"), tmp_path / "2.zarr"
    create_store(two, **description())
    teacher = writer(two)
    for cell in teacher.pending():
        teacher.write(cell, rows(teacher, cell, seed=1))
    teacher.finish(fidelity={})
    for name in (*ARRAYS, "checksum", "committed"):
        file = f"teachers/t/{name}/c/0/1" + ("" if name in ("committed", "logsumexp") else "/0")
        shutil.copy(two / file, one / file)
    assert [problem.array for problem in verify_store(one)] == ["teachers/t/committed"]
    one_line(lambda: open_store(one).teacher().slab(0), "not those of the finished teacher")


def test_a_damaged_cell_can_be_written_again(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    truth = everything(path)
    (path / "teachers/t/index/c/1/2/0").unlink()
    (problem,) = verify_store(path)
    assert (problem.array, problem.view, problem.block) == ("teachers/t/index", 1, 2)
    (path / "teachers/t/committed/c/1/2").unlink()
    teacher = writer(path)
    assert teacher.pending() == [Cell(1, 2)]
    teacher.write(Cell(1, 2), rows(teacher, Cell(1, 2)))
    assert verify_store(path) == []
    assert everything(path) == truth


FULL_DISK = """
import sys, resource, signal
from pathlib import Path
from logitbank.stores import StoreError
from tests.test_stores import rows, writer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
teacher = writer(Path(sys.argv[1]))
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))
try:
    for cell in teacher.pending():
        teacher.write(cell, rows(teacher, cell))
except StoreError as error:
    print(error)
"""


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_refused_write_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    create_store(path, **description())
    teacher = writer(path)
    teacher.write(Cell(0, 0), rows(teacher, Cell(0, 0)))
    message = run(FULL_DISK, str(path), "limit")
    assert "cannot write view 0 block 1" in message
    assert "File too large" in message
    assert message.count("\n") == 1
    assert not list(path.rglob("*.partial"))
    teacher = writer(path)
    assert len(teacher.pending()) == 5
    for cell in teacher.pending():
        teacher.write(cell, rows(teacher, cell))
    teacher.finish(fidelity={})
    assert verify_store(path) == []


def test_a_full_disk(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=150k", "tmpfs", str(disk)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk is not permitted here")
    try:
        path = disk / "s.zarr"
        big = description(labels=np.zeros(N, dtype=int))
        create_store(path, **big)
        arrays = ARRAYS | {"log_prob": RowArray(dtype="float32", row_shape=(K,))}
        teacher = writer(path, arrays=arrays)
        done = []

        def answers(cell: Cell) -> dict[str, np.ndarray]:
            made = rows(teacher, cell)
            noise = np.random.default_rng(0).random(made["log_prob"].shape, dtype=np.float32)
            return made | {"log_prob": -np.sort(noise + 3, axis=1)}

        def write_all() -> None:
            for cell in teacher.pending():
                teacher.write(cell, answers(cell))
                done.append(cell)

        assert "No space left" in one_line(write_all, "cannot write view")
        assert done
        (problem,) = verify_store(path)
        assert f"({6 - len(done)} of 6 cells to go)" in problem.message
        one_line(lambda: create_store(disk / "other.zarr", **description()), "No space left")
        assert sorted(entry.name for entry in disk.iterdir()) == ["s.zarr"]
        subprocess.run([str(mount), "-o", "remount,size=2m", str(disk)], check=True)
        write_all()
        teacher.finish(fidelity={})
        assert verify_store(path) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


READ_ONLY = """
import os, sys
import numpy.random  # made at first use, from a place that the one it becomes cannot read
from pathlib import Path
from logitbank.stores import StoreError, create_store
from tests.test_stores import description, rows, writer
path = Path(sys.argv[1])
teacher = writer(path)
for folder in [path.parent, path, *(p for p in path.rglob("*") if p.is_dir())]:
    folder.chmod(0o555)
if os.getuid() == 0:
    os.setuid(65534)
calls = (
    lambda: teacher.write(teacher.pending()[0], rows(teacher, teacher.pending()[0])),
    lambda: writer(path, name="new"),
    lambda: create_store(path.parent / "new.zarr", **description()),
)
for call in calls:
    try:
        call()
    except StoreError as error:
        print(error)
"""


def test_a_read_only_folder() -> None:
    top = Path(tempfile.mkdtemp())
    top.chmod(0o755)
    try:
        create_store(top / "s.zarr", **description())
        lines = run(READ_ONLY, str(top / "s.zarr")).splitlines()
        assert len(lines) == 3
        assert all("Permission denied" in line for line in lines)
        assert len(writer(top / "s.zarr").pending()) == 6
        (top / "s.zarr").chmod(0)
        if os.getuid():
            one_line(lambda: open_store(top / "s.zarr"), "Permission denied")
    finally:
        for folder in (top, top / "s.zarr"):
            folder.chmod(0o755)
        for folder in top.rglob("*"):
            if folder.is_dir():
                folder.chmod(0o755)
        shutil.rmtree(top)
