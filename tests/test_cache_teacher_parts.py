"""Stage one in several processes: killed, resumed, cut into other parts, and always the same bytes."""

import json
import subprocess
import sys
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.cache_teacher import begin
from logitbank.pipeline.cache_teacher.begin import begin_pass, is_finished
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.views import Views
from logitbank.stores import Cell, open_store, verify_store
from logitbank.stores.locks import locked
from tests.workers import PROCESSES, Telling

BLOCK_ROWS, NUM_VIEWS = 100, 2
TOP_K = Encoding(kind="topk", num_classes=10, top_k=3)
PROCESSES.set_forkserver_preload([__name__])


class Worker(Telling):
    """A process that writes its part."""

    def __init__(self, out: Path, weights: Path, part: str = "", **environment: str) -> None:
        super().__init__(_work, out, weights, part, environment)

    def listen(self, num_blocks: int) -> tuple[int, bool]:
        """How many blocks it wrote, up to so many, and whether it has ended."""
        for number in range(num_blocks):
            try:
                assert self.said.poll(120)
                if not isinstance(self.said.recv(), int):
                    return number, True
            except EOFError:
                return number, True
        return num_blocks, False


def _work(out: Path, weights: Path, part: str, environment: dict[str, str], say: Connection) -> None:
    torch.set_num_threads(1)
    answers = fold_answers(load_split("digits"), weights)
    summary = cache_teacher(
        answers,
        out,
        encoding=TOP_K,
        block_rows=BLOCK_ROWS,
        rank=Rank.find(part, environment),
        on_progress=lambda progress: say.send(progress.done) if progress.rows else None,  # of each block
    )
    say.send("finished" if summary else "left")


def fold_answers(split: Split, weights: Path) -> NetworkTeacher:
    teachers = load_teachers(split, "mlp:32", str(weights))
    return NetworkTeacher(
        split, teachers, Views(transform="flip-crop", num_views=NUM_VIEWS), compute=Compute(batch_size=32)
    )


def rows_on_disk(path: Path) -> dict[str, bytes]:
    """Every file of the store but the documents, which hold the time of creation and what derives from it."""
    files = (file for file in path.rglob("*") if file.is_file() and file.name != "zarr.json")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def undisturbed(digits: Split, fold_teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "s.zarr"
    cache_teacher(fold_answers(digits, fold_teachers), out, encoding=TOP_K, block_rows=BLOCK_ROWS)
    return out


def finished(path: Path) -> bool:
    return path.exists() and is_finished(path, "teacher")


def check_same(path: Path, undisturbed: Path) -> None:
    assert verify_store(path) == []
    assert rows_on_disk(path) == rows_on_disk(undisturbed)
    mine, other = open_store(path).teacher(), open_store(undisturbed).teacher()
    assert mine.summary == other.summary
    assert mine.fidelity == other.fidelity


def test_two_processes_write_what_one_writes(undisturbed: Path, fold_teachers: Path, tmp_path: Path) -> None:
    """Both start at once: the store, the teacher's constants and the last word are raced for."""
    out = tmp_path / "s.zarr"
    workers = [Worker(out, fold_teachers, f"{number}/2") for number in range(2)]
    said = [worker.wait() for worker in workers]
    assert "finished" in {lines[-1] for lines in said}
    assert sum(len(lines) - 1 for lines in said) == NUM_VIEWS * -(-1437 // BLOCK_ROWS)
    check_same(out, undisturbed)


def test_ranks_of_torchrun_are_parts(undisturbed: Path, fold_teachers: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    ranks = [Worker(out, fold_teachers, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank)) for rank in range(2)]
    assert "finished" in {rank.wait()[-1] for rank in ranks}
    check_same(out, undisturbed)


@pytest.mark.slow
def test_two_launchers_of_torchrun_write_one_store(tmp_path: Path) -> None:
    """Four processes, of which the two of a launcher know of each other alone; no cell is answered twice."""
    call = ["logitbank", "cache-teacher", "--teacher", "cnn", "--weights", "random-init", "--threads", "1"]
    call += ["--transform", "flip-crop", "--views", "6", "--log-json", "--out"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", *call]

    def start(*words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-m", *words], cwd=tmp_path, stdout=-1, stderr=-1, text=True)

    launchers = [start(*torchrun, "s.zarr") for _ in range(2)]
    ended = [launcher.communicate() for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], ended
    events = [json.loads(line) for said, _ in ended for line in said.splitlines() if '"rows"' in line]
    assert len(events) == 4
    assert sum(event["rows"] for event in events) == 6 * 1437
    alone = start(*call, "alone.zarr")
    assert "finished" in alone.communicate()[0]
    check_same(tmp_path / "s.zarr", tmp_path / "alone.zarr")


def test_killed_and_resumed_by_others(undisturbed: Path, fold_teachers: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of a pass; then one that thinks itself one of three, killed too; then one for the rest."""
    out = tmp_path / "s.zarr"
    for part, num_blocks in (("0/2", 4), ("2/3", 2)):
        Worker(out, fold_teachers, part).kill(num_blocks)
    half = open_store(out, allow_incomplete=True)
    committed = half.teacher().committed() != 0
    assert not half.teacher().complete
    assert 6 <= committed.sum() < committed.size
    said = Worker(out, fold_teachers, "1/2").wait()
    assert said[-1] == "finished"
    assert len(said) - 1 == committed.size - committed.sum()
    check_same(out, undisturbed)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 50))])
def test_processes_come_and_go(seed: int, undisturbed: Path, fold_teachers: Path, tmp_path: Path) -> None:
    """Three at a time, each killed after some blocks and followed by another one, until one of them finishes."""
    random, out, answered, killed = np.random.default_rng(seed), tmp_path / "s.zarr", 0, 0
    workers = [Worker(out, fold_teachers, f"{number}/3") for number in range(3)]
    while not finished(out):
        number, num_blocks = int(random.integers(3)), int(random.integers(1, 6))
        if not killed:  # whoever is first to write: the others might end before a slower one begins
            ready = wait([worker.said for worker in workers])
            number, num_blocks = next(n for n, worker in enumerate(workers) if worker.said in ready), 1
        heard, ended = workers[number].listen(num_blocks)
        answered += heard
        if not ended and (not killed or random.random() < 0.7):
            workers[number].process.kill()
            killed += 1
            ended = True
        if ended:
            workers[number].process.join(10)
            answered += workers[number].listen(99)[0]
            workers[number] = Worker(out, fold_teachers, f"{number}/3")
    answered += sum(worker.listen(99)[0] for worker in workers)
    assert killed
    cells = open_store(out).teacher().committed().size
    assert cells - killed <= answered <= cells  # one may be written at a kill, and not yet said
    check_same(out, undisturbed)
    assert {path.name for path in tmp_path.iterdir()} == {"s.zarr"}


def test_a_pass_that_somebody_else_runs(undisturbed: Path, digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    """In any order, every cell again, and by two objects that know nothing of each other."""
    out = tmp_path / "s.zarr"
    first, second = (
        begin_pass(fold_answers(digits, fold_teachers), out, encoding=TOP_K, block_rows=BLOCK_ROWS) for _ in range(2)
    )
    cells = first.cells()
    for cell in [*cells[20:], *cells[:3]]:
        first.write(cell)
    assert first.finish() == {}
    for cell in reversed(cells):
        second.write(cell)
    assert first.cells() == second.cells() == []
    assert first.finish() == second.finish() == open_store(out).teacher().summary
    check_same(out, undisturbed)


def test_the_claim_of_a_cell_is_no_other_teachers_last_word(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.zarr"
    begun = begin_pass(fold_answers(digits, fold_teachers), out, encoding=TOP_K, block_rows=BLOCK_ROWS, name="t")
    with locked(tmp_path / "s.zarr.t.0-1"):
        claim = begun.claim(Cell(0, 1))
        assert claim is not None
        claim.close()


def test_blocks_are_those_of_the_process_that_began(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    """Cut for the writers that it knows of; whoever comes later takes them over."""
    out = tmp_path / "s.zarr"
    for count, rank in ((100, Rank(number=3, count=100)), (1, Rank()), (9, Rank(number=1, count=9))):
        begun = begin_pass(fold_answers(digits, fold_teachers), out, encoding=TOP_K, rank=rank)
        assert (count, begun.writer.block_rows) == (count, 256)
    alone = begin_pass(fold_answers(digits, fold_teachers), tmp_path / "alone.zarr", encoding=TOP_K)
    assert alone.writer.block_rows == 1024


def test_who_waits_for_the_first_rank_says_so(
    fold_teachers: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(begin, "SETUP_SECONDS", 1.5)
    answers = fold_answers(load_split("digits"), fold_teachers)
    begin_pass(answers, tmp_path / "s.zarr", encoding=TOP_K, rank=Rank(number=1, count=2, together=True))
    assert f"waiting for rank 0, which measures the teacher and begins {tmp_path / 's.zarr'}" in caplog.text


def test_claims_that_cannot_be_had(undisturbed: Path, digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    """As on a disk without locks: everybody answers everything."""
    out = tmp_path / "s.zarr"
    for name in ("teacher", *(f"teacher@{view}-{block}" for view in range(NUM_VIEWS) for block in range(15))):
        (tmp_path / f".s.zarr.{name}.lock").mkdir()
    workers = [Worker(out, fold_teachers, f"{number}/2") for number in range(2)]
    assert [worker.wait()[-1] for worker in workers] == ["finished"] * 2
    check_same(out, undisturbed)


def test_a_finished_store_is_left_alone(undisturbed: Path, digits: Split, fold_teachers: Path) -> None:
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in undisturbed.rglob("*") if path.is_file()}
    answers = fold_answers(digits, fold_teachers)
    for number in range(2):
        part = Rank(number=number, count=2)
        summary = cache_teacher(answers, undisturbed, encoding=TOP_K, rank=part)
        assert summary["kind"] == "out-of-fold"
    after = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in undisturbed.rglob("*") if path.is_file()}
    assert after == before


def test_parts_are_spelled_or_come_from_torchrun() -> None:
    assert Rank.find("", {}) == Rank()
    assert Rank.find("1/4", {"RANK": "0", "WORLD_SIZE": "2"}) == Rank(number=1, count=4)
    ranked = Rank.find("", {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"})
    assert ranked == Rank(number=3, count=4, together=True, local=1)


@pytest.mark.parametrize("name", ["RANK", "WORLD_SIZE", "LOCAL_RANK"])
@pytest.mark.parametrize("value", ["", "a", "-1"])
def test_an_environment_that_is_not_torchruns_is_named(name: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"the environment has {name}="):
        Rank.find("", {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", name: value})


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "0/0"])
def test_impossible_parts(text: str) -> None:
    with pytest.raises(ValueError, match="expected i/n"):
        Rank.find(text, {})


def test_answers_do_not_depend_on_readers(digits: Split, fold_teachers: Path) -> None:
    teachers = load_teachers(digits, "mlp:32", str(fold_teachers))
    views = Views(transform="flip-crop", num_views=1)
    found = [
        NetworkTeacher(digits, teachers, views, compute=Compute(batch_size=50, workers=workers))(
            np.arange(len(digits)), 0
        ).numpy()
        for workers in (0, 1, 3)
    ]
    assert all(np.array_equal(found[0], other) for other in found[1:])
