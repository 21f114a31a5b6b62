"""Damage and malice: every fault ends in one clear line, nothing executed, nothing wrong returned."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from stores import Cell, RowArray, StoreError, create_store, open_store, verify_store
from stores.documents import sealed
from tests.test_stores import ARRAYS, C, K, N, V, description, finished, rows, writer


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


def test_what_is_no_store(tmp_path: Path) -> None:
    one_line(lambda: open_store(tmp_path / "nothing"), "found nothing")
    one_line(lambda: open_store(tmp_path), "no zarr.json")
    file = tmp_path / "file"
    file.write_text("x")
    one_line(lambda: open_store(file), "found a file")
    one_line(lambda: create_store(file, **description()), "found a file")
    group = tmp_path / "g.zarr"
    zarr.create_group(str(group), attributes={"x": 1})
    one_line(lambda: open_store(group), "must be a teacher-logit-store")
    one_line(lambda: create_store(group, **description()), "must be a teacher-logit-store")
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(3,), dtype="i4")
    one_line(lambda: open_store(tmp_path / "a.zarr"), "must be a teacher-logit-store")
    one_line(lambda: writer(tmp_path / "nothing"), "found nothing")
    assert verify_store(tmp_path / "nothing")


def edit(path: Path, change: Callable[[dict[str, Any]], object], folder: str = "") -> None:
    """Change one document of a store and make every digest agree with it, as one who means harm would."""
    top = "" if not folder.startswith("teachers/") else "/".join(folder.split("/")[:2])
    file = path / folder / "zarr.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    own = json.loads((path / top / "zarr.json").read_text())
    below = {name: path / top / name / "zarr.json" for name in own["attributes"]["documents"]}
    nothing: dict[str, Any] = {"attributes": {}}
    documents = {
        name: json.loads(file.read_text()) if file.exists() else nothing for name, file in below.items()
    }
    (path / top / "zarr.json").write_text(json.dumps(sealed({"": own, **documents})[""]))


def test_a_future_version_is_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    edit(path, lambda document: document["attributes"].update(version=2, new={"a": 1}))
    one_line(lambda: open_store(path), "format version 2, this program reads version 1")
    assert "version 2" in verify_store(path)[0].message


INDEX = "teachers/t/index"
HOSTILE: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "endless examples": ("", lambda d: d["attributes"]["dataset"].update(num_examples=2**40)),
    "more examples than there are": ("", lambda d: d["attributes"]["dataset"].update(num_examples=N + 1)),
    "examples as a text": ("", lambda d: d["attributes"]["dataset"].update(num_examples="9\n" * 99)),
    "examples as a bool": ("", lambda d: d["attributes"]["dataset"].update(num_examples=True)),
    "endless views": ("", lambda d: d["attributes"]["views"].update(num_views=2**20)),
    "too many views": ("", lambda d: d["attributes"]["views"].update(num_views=2**62)),
    "no views": ("", lambda d: d["attributes"].pop("views")),
    "fewer classes than kept": ("", lambda d: d["attributes"]["dataset"].update(num_classes=0)),
    "a document outside": ("", lambda d: d["attributes"]["documents"].update({"../../x": "0"})),
    "an absolute document": ("", lambda d: d["attributes"]["documents"].update({"/etc": "0"})),
    "endless keys": ("examples/key", lambda d: d.update(shape=[2**50])),
    "keys as objects": ("examples/key", lambda d: d.update(data_type="object")),
    "keys as text": (
        "examples/key",
        lambda d: d.update(data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 4}}),
    ),
    "a fill value": ("examples/label", lambda d: d.update(fill_value=7)),
    "a pickling codec": (
        INDEX,
        lambda d: d.update(codecs=[{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]),
    ),
    "a codec by dotted path": (INDEX, lambda d: d["codecs"].insert(0, {"name": "os.system"})),
    "no checksum": (INDEX, lambda d: d["codecs"].pop()),
    "another compressor": (INDEX, lambda d: d["codecs"][1]["configuration"].update(cname="snappy")),
    "codecs as a text": (INDEX, lambda d: d.update(codecs="blosc")),
    "an endless shape": (INDEX, lambda d: d.update(shape=[V, 2**60, K])),
    "endless chunks": (INDEX, lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[1, 2**40, K])),
    "a storage transformer": (INDEX, lambda d: d.update(storage_transformers=[{"name": "x"}])),
    "an unknown field": (INDEX, lambda d: d.update(must_understand_me={"name": "x"})),
    "another key encoding": (INDEX, lambda d: d.update(chunk_key_encoding={"name": "v2"})),
    "a float index": (INDEX, lambda d: d.update(data_type="float64")),
    "another k": ("teachers/t", lambda d: d["attributes"]["encoding"].update(top_k=K + 1)),
    "endless rows of a block": ("teachers/t", lambda d: d["attributes"].update(block_rows=2**40)),
    "one row a block": ("teachers/t", lambda d: d["attributes"].update(block_rows=1)),
    "an unknown array": ("teachers/t", lambda d: d["attributes"]["arrays"].update(evil={"dtype": "uint8"})),
    "arrays as a list": ("teachers/t", lambda d: d["attributes"].update(arrays=["index"])),
    "an endless row": (
        "teachers/t",
        lambda d: d["attributes"]["arrays"]["index"].update(row_shape=[2**62]),
    ),
    "an object array": ("teachers/t", lambda d: d["attributes"]["arrays"]["index"].update(dtype="object")),
    "complete, with no commits": ("teachers/t", lambda d: d["attributes"].pop("cells_sha256")),
    "a huge constant": ("teachers/t/tail_bias", lambda d: d.update(shape=[2**50])),
    "a constant of many chunks": (
        "teachers/t/tail_bias",
        lambda d: (d.update(shape=[2**50]), d["chunk_grid"]["configuration"].update(chunk_shape=[1])),
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_is_refused(case: str, tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    folder, change = HOSTILE[case]
    edit(path, change, folder)
    one_line(lambda: everything(path))
    assert verify_store(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.zarr"]


def test_hostile_json(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    for text in (
        "[" * 100_000,
        "[]",
        "1e999",
        '{"attributes": 3}',
        '{"attributes": {"x": ' + "9" * 5000 + "}}",
        "\xff",
    ):
        (path / "zarr.json").write_text(text, encoding="latin-1")
        one_line(lambda: open_store(path))


@pytest.mark.parametrize(
    "name", ["../x", "/x", "a/b", ".hidden", "", "x" * 200, "a\nb", "..", "x.partial", 3]
)
def test_path_tricks_in_names(name: Any, tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    one_line(lambda: writer(path, name=name))
    one_line(lambda: open_store(path).teacher(name))
    one_line(lambda: writer(path, name="u", constants={name: np.zeros(1)}))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.zarr"]
    assert open_store(path, allow_incomplete=True).teachers == ("t",)


@pytest.mark.parametrize(
    "target",
    ["zarr.json", "teachers/t", "teachers/t/index/c/0/0/0", "teachers/t/committed/c/0", "examples/key/c/0"],
)
def test_links_out_of_the_store_are_refused(target: str, tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    (path / target).rename(tmp_path / "outside")
    (path / target).symlink_to(tmp_path / "outside")
    one_line(lambda: everything(path), "inside the store")
    assert verify_store(path)
    if target.startswith("teachers/t"):
        before = {file: file.read_bytes() for file in (tmp_path / "outside").rglob("*") if file.is_file()}
        sound = writer(finished(tmp_path / "sound.zarr"))
        answers = rows(sound, Cell(0, 0), seed=1)
        one_line(lambda: writer(path).write(Cell(0, 0), answers))
        assert before == {
            file: file.read_bytes() for file in (tmp_path / "outside").rglob("*") if file.is_file()
        }


def test_a_special_file_is_not_read(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    chunk = path / "teachers/t/index/c/0/0/0"
    chunk.unlink()
    os.mkfifo(chunk)
    one_line(lambda: open_store(path).teacher().slab(0), "plain file")


def test_a_piece_that_claims_to_be_huge_is_not_decoded(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    chunk = path / "teachers/t/index/c/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[4:8] = (2**31 - 1).to_bytes(4, "little")
    data[-4:] = int(google_crc32c.value(bytes(data[:-4]))).to_bytes(4, "little")
    chunk.write_bytes(data)
    one_line(lambda: open_store(path).teacher().slab(0), "decode to 2560 bytes")


def test_a_slab_larger_than_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = finished(tmp_path / "s.zarr")
    monkeypatch.setattr("stores.blocks.available_memory", lambda: 1000)
    one_line(lambda: open_store(path).teacher().slab(0), "block by block")


FULL_DISK = """
import sys, resource, signal
from pathlib import Path
from stores import StoreError
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
            return made | {"log_prob": noise}

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
from pathlib import Path
from stores import StoreError, create_store
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


def test_memory_stays_bounded_by_what_is_on_disk(tmp_path: Path) -> None:
    """A store that declares a terabyte costs no more memory than an honest one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in ("endless examples", "endless views", "endless keys", "a constant of many chunks"):
        path = finished(tmp_path / f"{case}.zarr")
        folder, change = HOSTILE[case]
        edit(path, change, folder)
        one_line(lambda path=path: everything(path))  # type: ignore[misc]
        assert verify_store(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_too_many_classes_for_labels(tmp_path: Path) -> None:
    one_line(
        lambda: create_store(
            tmp_path / "s.zarr", **description(dataset=description()["dataset"] | {"num_classes": C - 50})
        ),
        "labels must be",
    )
