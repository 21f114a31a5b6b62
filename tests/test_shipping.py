"""A store that machines without a shared folder write in a bucket: raced for, killed, gone on with, and the same."""

import os
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from logitbank.pipeline.cache_teacher.begin import begin_pass, is_finished
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.shipping import ship_pass
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.views import Views
from logitbank.stores import Cell, StoreError, TeacherWriter, copy_store, create_store, open_store, verify_store
from logitbank.stores.share.bucket import Bucket
from logitbank.stores.share.shipping import Address
from logitbank.stores.share.shipping_writer import ShippingWriter
from tests.golden.make import C, N, V, arrays_of
from tests.sharing import CONSTANTS, add_teacher, answers, make_store, memory_bucket, s3_server
from tests.workers import PROCESSES, Telling

TOP_K = Encoding(kind="topk", num_classes=10, top_k=3)
BLOCK_ROWS, NUM_VIEWS = 300, 2
NUM_CELLS = NUM_VIEWS * -(-1437 // BLOCK_ROWS)
PROCESSES.set_forkserver_preload([__name__])
ONE_LINE = "[^\n]*"


def teacher_of(split: Split, weights: Path) -> NetworkTeacher:
    return NetworkTeacher(
        split, load_teachers(split, "mlp:32", str(weights)), Views(transform="flip-crop", num_views=NUM_VIEWS)
    )


class Machine(Telling):
    """A process with a disk of its own."""

    def __init__(self, url: str, weights: Path, disk: Path, number: int) -> None:
        environment = {name: text for name, text in os.environ.items() if name.startswith("AWS_")}
        super().__init__(_work, url, weights, number, environment | {"LOGITBANK_CACHE": str(disk)})


def _work(url: str, weights: Path, number: int, environment: dict[str, str], say: Connection) -> None:
    os.environ.update(environment)
    torch.set_num_threads(1)
    teacher = teacher_of(load_split("digits"), weights)
    summary = ship_pass(
        Path(url),
        "teacher",
        lambda out: begin_pass(teacher, out, encoding=TOP_K, block_rows=BLOCK_ROWS),
        rank=Rank(number=number, count=3),
        on_progress=lambda progress: say.send(progress.done) if progress.rows else None,
        patience=0.5,
    )
    say.send(summary)


def files_at(url: str) -> dict[str, bytes]:
    fs, root = fsspec.url_to_fs(url)
    fs.invalidate_cache()
    return {path.removeprefix(f"{root}/"): fs.cat_file(path) for path in fs.find(root)}


def test_machines_without_a_shared_folder_write_one_store(
    digits: Split, plain_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two that start at once are killed, one early and one late; a third, which knows nothing, finishes."""
    with s3_server(monkeypatch) as bucket:
        url = f"{bucket}/s.zarr"
        machines = [Machine(url, plain_teacher, tmp_path / f"disk{number}", number) for number in range(2)]
        answered = machines[0].kill(1)
        answered += machines[1].kill(2)
        assert not is_finished(Path(url), "teacher")
        with pytest.raises(StoreError, match="expected a finished teacher, found none"):
            copy_store(url, tmp_path / "early.zarr")
        last = Machine(url, plain_teacher, tmp_path / "disk2", 2).wait()
        assert last[-1]["kind"] == "seen"
        assert NUM_CELLS - 2 * len(machines) <= answered + len(last) - 1 <= NUM_CELLS + 2 * len(machines)

        fs, root = fsspec.url_to_fs(url)
        alone = tmp_path / "alone.zarr"
        for path in fs.find(root):  # the same beginning: a store says when it was created
            inside = path.removeprefix(f"{root}/")
            if not inside.startswith("teachers/") or inside == "teachers/zarr.json":
                (alone / inside).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(path, str(alone / inside))
        (alone / "teachers.json").unlink()
        assert (
            cache_teacher(teacher_of(digits, plain_teacher), alone, encoding=TOP_K, block_rows=BLOCK_ROWS) == last[-1]
        )
        copy_store(alone, f"{bucket}/pushed.zarr")
        assert files_at(url) == files_at(f"{bucket}/pushed.zarr")
        copy_store(url, tmp_path / "back.zarr")
    assert verify_store(tmp_path / "back.zarr") == []
    rows_left = [path for path in (tmp_path / "disk2").rglob("log_prob/c/*/*") if path.is_file()]
    assert not rows_left


def test_a_pass_into_a_bucket_that_is_there_already(
    digits: Split, plain_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher, answered = teacher_of(digits, plain_teacher), list[int]()
    summaries = []
    with memory_bucket() as bucket:
        for disk in ("disk0", "disk1", "disk1"):
            monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / disk))
            out = Path(f"{bucket}/s.zarr")
            summaries.append(
                cache_teacher(teacher, out, encoding=TOP_K, on_progress=lambda progress: answered.append(progress.rows))
            )
            assert is_finished(out, "teacher")
        with pytest.raises(StoreError, match="is another one: predictor_rows"):
            cache_teacher(teacher, out, encoding=TOP_K, predictor_rows=100)
    assert sum(answered) == NUM_VIEWS * len(digits)
    assert summaries[0] == summaries[1] == summaries[2]


@pytest.fixture
def url() -> Iterator[str]:
    with memory_bucket() as bucket:
        yield f"{bucket}/s.zarr"


def test_a_mark_that_was_there_and_is_gone_again_is_no_fault(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another machine made it, finished what it marks, and took it away before this one could look."""
    bucket = Bucket(url)
    bucket.create("begun.json", b"theirs")
    create = bucket.fs.pipe_file

    def and_gone(path: str, value: bytes, **how: object) -> None:
        try:
            create(path, value, **how)
        finally:
            bucket.fs.rm_file(path)

    monkeypatch.setattr(bucket.fs, "pipe_file", and_gone)
    bucket.create("begun.json", b"mine")
    assert bucket.read("begun.json") is None


def begin(folder: Path, seed: int = 0, label: int = 0) -> TeacherWriter:
    """A store with an unfinished teacher whose constants depend on the machine, or the one that is there."""
    if not (folder / "zarr.json").exists():
        create_store(
            folder,
            dataset={"name": "toy", "split": "train", "num_examples": N, "num_classes": C, "fingerprint": "00"},
            views={"num_views": V, "transform": "none", "seed": 0, "versions": {}},
            keys=np.arange(N, dtype=np.uint64),
            labels=np.full(N, label),
            attributes={"description": f"of {seed}"},
        )
    there = open_store(folder, allow_incomplete=True)
    known = there.teacher("a").constants() if "a" in there.teachers else None
    return TeacherWriter(
        folder,
        "a",
        identity={"architecture": "a"},
        encoding={"num_classes": C, "kind": "topk", "top_k": 3, "bits": 8},
        arrays=arrays_of("topk"),
        constants=known or {name: values + seed for name, values in CONSTANTS.items()},
        block_rows=256,
    )


def machine(url: str, folder: Path, seed: int = 0) -> ShippingWriter:
    address = Address(url, "a")
    if not address.agrees(folder):
        address.begin(folder, lambda built: begin(built, seed))
    return ShippingWriter(begin(folder), address, folder, patience=0.2)


def write(writer: ShippingWriter, folder: Path, cell: Cell, seed: int = 0) -> None:
    values = answers("topk", cell.view + seed, open_store(folder, allow_incomplete=True).labels)
    writer.write(cell, {array: rows[writer.rows(cell.block)] for array, rows in values.items()})


def finish(writer: ShippingWriter) -> None:
    writer.gather()
    writer.finish(fidelity={"1": 0.01}, summary={"kind": "in-sample"})


@pytest.mark.parametrize("late", [False, True])
def test_who_begins_first_decides_for_all(url: str, tmp_path: Path, late: bool) -> None:
    """Another machine begins, or even finishes, while this one is computing what to begin with."""
    one, other = tmp_path / "one.zarr", tmp_path / "other.zarr"

    def slow(built: Path) -> None:
        writer = machine(url, other, seed=1)
        if late:
            for cell in writer.pending():
                write(writer, other, cell)
            finish(writer)
        begin(built)

    Address(url, "a").begin(one, slow)
    mine, theirs = (open_store(folder, allow_incomplete=True) for folder in (one, other))
    assert mine.attributes == theirs.attributes
    assert mine.attributes["description"] == "of 1"
    for name, values in theirs.teacher("a").constants().items():
        np.testing.assert_array_equal(mine.teacher("a").constant(name), values)
    writer = machine(url, one)
    assert len(writer.pending()) == (0 if late else 2 * V)
    if late:
        assert not [path for path in files_at(url) if path.endswith(("begun", "unfinished.txt"))]
        writer.gather()
        assert open_store(one, allow_incomplete=True).teacher("a").complete


def test_what_was_committed_here_and_not_sent_is_sent_by_the_next(url: str, tmp_path: Path) -> None:
    folder = tmp_path / "s.zarr"
    machine(url, folder)
    cell = Cell(1, 0)
    values = answers("topk", 1, open_store(folder, allow_incomplete=True).labels)
    begin(folder).write(cell, {name: rows[:256] for name, rows in values.items()})
    assert not Address(url, "a").is_committed(cell)
    writer = machine(url, folder)
    assert Address(url, "a").is_committed(cell)
    assert cell not in writer.pending()
    assert not (folder / "teachers/a/index/c/1/0/0").exists()


def test_two_that_disagree_are_told_and_the_cell_is_nobodys(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = machine(url, tmp_path / "1.zarr"), machine(url, tmp_path / "2.zarr")
    write(one, tmp_path / "1.zarr", Cell(0, 0))
    with pytest.raises(StoreError, match=f"^{ONE_LINE}two writers disagree{ONE_LINE}$"):
        write(other, tmp_path / "2.zarr", Cell(0, 0), seed=1)
    assert one.is_committed(Cell(0, 0))
    address, put = Address(url, "a"), Address._put

    def slow(self: Address, file: Path, path: str) -> None:
        if path.endswith("checksum/c/1/1/0") and not address.is_committed(Cell(1, 1)) and "1.zarr" in str(file):
            write(other, tmp_path / "2.zarr", Cell(1, 1), seed=1)  # between the rows of one and its commit
        put(self, file, path)

    monkeypatch.setattr(Address, "_put", slow)
    with pytest.raises(StoreError, match="two writers disagree"):
        write(one, tmp_path / "1.zarr", Cell(1, 1))
    assert Cell(1, 1) in one.pending()
    write(other, tmp_path / "2.zarr", Cell(1, 1))  # its rows are no more there, nor here: it answers again
    assert Cell(1, 1) not in one.pending()


def test_claims_of_the_dead_are_believed_for_a_while(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dead, alive = machine(url, tmp_path / "1.zarr"), machine(url, tmp_path / "2.zarr")
    assert dead.reserve(Cell(0, 0))
    assert not alive.reserve(Cell(0, 0))
    assert alive.reserve(Cell(0, 1))
    alive.wait()
    assert "4 cells that other processes claimed did not come" in caplog.text
    assert alive.reserve(Cell(0, 0))


def test_the_last_word_is_said_once_and_by_the_next_when_that_one_was_killed(url: str, tmp_path: Path) -> None:
    folders = [tmp_path / f"{number}.zarr" for number in range(3)]
    writers = [machine(url, folder) for folder in folders]
    for cell in writers[0].pending():
        write(writers[0], folders[0], cell)
    with pytest.raises(StoreError, match="expected a finished teacher, found none"):
        copy_store(url, tmp_path / "early.zarr")
    writers[1].gather()  # and is killed
    finish(writers[2])  # after its patience
    machine(url, folders[1]).gather()
    for folder in folders[1:]:
        assert open_store(folder, allow_incomplete=True).teacher("a").complete
    copy_store(url, tmp_path / "back.zarr")
    assert verify_store(tmp_path / "back.zarr") == []
    left = [path for path in files_at(url) if "begun" in path or "claims" in path or "unfinished" in path]
    assert not left


def test_a_second_teacher_joins_a_store_that_is_there(url: str, tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr", ("b",))
    copy_store(store, url)
    folder = tmp_path / "1.zarr"
    address = Address(url, "a")
    address.begin(folder, begin)
    writer = ShippingWriter(begin(folder), address, folder)
    for cell in writer.pending():
        write(writer, folder, cell)
    assert copy_store(url, tmp_path / "early.zarr").teachers == ("b",)
    finish(writer)
    assert copy_store(url, tmp_path / "back.zarr").teachers == ("a", "b")


def test_places_that_hold_something_else_are_refused(url: str, tmp_path: Path) -> None:
    fs: Any = fsspec.filesystem("memory")
    fs.pipe_file(f"{url}/unfinished.txt", b"0" * 64)
    with pytest.raises(StoreError, match="holds an unfinished copy"):
        machine(url, tmp_path / "1.zarr")
    fs.rm_file(f"{url}/unfinished.txt")
    copy_store(make_store(tmp_path / "s.zarr", ("b",), labels=np.zeros(N, np.int64)), url)
    add_teacher(tmp_path / "s.zarr", "a", finish=False)
    with pytest.raises(StoreError, match="web server is read only"):
        Address("https://example.org/s.zarr", "a")
    with pytest.raises(StoreError, match="copy to a local .zarr.zip"):
        Address("s3://bucket/s.zarr.zip", "a")


def test_an_address_that_was_emptied_is_begun_anew(url: str, tmp_path: Path) -> None:
    folder, fs = tmp_path / "1.zarr", fsspec.filesystem("memory")
    writer = machine(url, folder)
    write(writer, folder, Cell(0, 0))
    fs.rm(url, recursive=True)
    assert not Address(url, "a").agrees(folder)
    assert len(machine(url, folder, seed=2).pending()) == 2 * V
    assert open_store(folder, allow_incomplete=True).attributes["description"] == "of 2"
