"""A slab is the same rows however it is held: mapped from a file, in the process's own memory, or block by block."""

import json
import os
import re
import resource
import signal as signals
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from logitbank.pipeline.answers.grouping import Grouping
from logitbank.pipeline.answers.slab import BlockedSlabs
from logitbank.pipeline.answers.slab_file import map_slab, remove_unused
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding, decode, finite
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.models.weights import load_state, weights_digest
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.folder import WEIGHTS
from logitbank.pipeline.train_student.losses import parse_objective
from logitbank.pipeline.train_student.order import order_warnings
from logitbank.pipeline.views import Views
from logitbank.stores import Store, StoreError, open_store
from tests.students import train

ROOT = Path(__file__).parents[1]
BLOCK = 200
ENCODINGS = {
    "dense32": Encoding(kind="dense", num_classes=10, bits=32),
    "dense8": Encoding(kind="dense", num_classes=10, bits=8),
    "topk": Encoding(kind="topk", num_classes=10, top_k=3),
    "topk16": Encoding(kind="topk", num_classes=10, top_k=3, bits=16),
    "tail": Encoding(kind="topk+tail", num_classes=10, top_k=3, tail_bits=2),
}


@pytest.fixture(scope="module")
def stores(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    """Two views in eight blocks, the last one short."""
    folder = tmp_path_factory.mktemp("stores")
    rng = np.random.default_rng(0)
    np.save(folder / "logits.npy", rng.normal(0, 4, (2, len(digits), 10)).astype(np.float32))
    views = Views(transform="flip-crop", num_views=2)
    for name, encoding in ENCODINGS.items():
        answers = ArrayTeacher(folder / "logits.npy", digits, views)
        cache_teacher(answers, folder / f"{name}.zarr", encoding=encoding, block_rows=BLOCK)
    return {name: open_store(folder / f"{name}.zarr") for name in ENCODINGS}


def budget(store: Store, num_blocks: int) -> int:
    """The least budget that mixes so many blocks."""
    answers = StoredAnswers(store)
    for size in range(1_000, 2_000_000, 1_000):
        try:
            grouping = answers._prepared.grouping(size, num_slabs=2)
        except StoreError:
            continue
        if grouping is None or grouping.num_blocks >= num_blocks:
            return size
    raise AssertionError("no such budget")


@pytest.mark.parametrize("tail", ["predicted", "uniform", "renormalise"])
@pytest.mark.parametrize("name", ENCODINGS)
def test_every_way_to_hold_a_slab_decodes_to_the_same_bits(
    stores: dict[str, Store], name: str, tail: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    store, encoding = stores[name], ENCODINGS[name]
    labels = torch.from_numpy(np.asarray(store.labels, np.int64))
    teacher = store.teacher()
    mapped, blocked = StoredAnswers(store, tail=tail), StoredAnswers(store, tail=tail, memory_budget=budget(store, 2))
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / "file"))  # no folder: nothing can be shared
    private = StoredAnswers(store, tail=tail)
    assert mapped.grouping is None
    assert blocked.grouping == Grouping(block_rows=BLOCK, num_blocks=2)
    predictor = TailPredictor.from_constants(teacher.constants())
    rows = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))[:300]
    for view in (1, 0):
        arrays = {key: torch.from_numpy(values) for key, values in teacher.slab(view).items()}
        whole = finite(decode(arrays, labels, encoding, predictor=predictor, tail=tail))
        torch.testing.assert_close(mapped.logits(rows, view), whole[rows], rtol=1e-5, atol=1e-5)
        for answers in (mapped, private, blocked):
            answer = answers.of(rows, view)
            assert torch.equal(answer.logits(whole[rows], 1.0), mapped.logits(rows, view))
            head = answer.order_known(whole[rows], 1.0)
            if head is not None:
                assert torch.equal(head, arrays["label_rank"][rows].long() <= encoding.top_k)
    for answers in (mapped, private, blocked):
        before = answers.logits(rows, 0)
        answers.close()
        assert torch.equal(answers.logits(rows, 0), before)
        answers.close()


@settings(max_examples=60, deadline=None)
@given(
    num_rows=st.integers(1, 60),
    block_rows=st.integers(1, 20),
    num_blocks=st.integers(1, 5),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**31),
)
def test_a_grouping_shows_every_row_once_and_few_blocks_at_a_time(
    num_rows: int, block_rows: int, num_blocks: int, share: float, seed: int
) -> None:
    rows = torch.arange(num_rows)[torch.from_numpy(np.random.default_rng(seed).random(num_rows) <= share)]
    assume(len(rows) > 0)
    grouping = Grouping(block_rows=block_rows, num_blocks=num_blocks)
    groups = grouping.groups(rows, torch.Generator().manual_seed(seed))
    assert sorted(torch.cat(groups).tolist()) == rows.tolist()
    seen: set[int] = set()
    for group in groups:
        blocks = set((group // block_rows).tolist())
        assert 1 <= len(blocks) <= num_blocks
        assert not blocks & seen
        seen |= blocks


@settings(max_examples=60, deadline=None)
@given(
    block_rows=st.integers(1, 7),
    num_blocks=st.integers(1, 4),
    batch=st.integers(1, 30),
    seed=st.integers(0, 2**31),
    announced=st.booleans(),
)
def test_blocks_are_read_once_in_the_announced_order_and_never_too_many_are_held(
    block_rows: int, num_blocks: int, batch: int, seed: int, announced: bool
) -> None:
    values = np.arange(50, dtype=np.int64).view([("v", "<i8")])
    read: list[int] = []

    def block(view: int, number: int) -> np.ndarray:
        read.append(number)
        return values[number * block_rows : (number + 1) * block_rows]

    grouping = Grouping(block_rows=block_rows, num_blocks=num_blocks)
    slabs = BlockedSlabs(block, values.dtype, grouping)
    groups = grouping.groups(torch.arange(50), torch.Generator().manual_seed(seed))
    if announced:
        slabs.read_ahead(0, groups)
    for rows in torch.split(torch.cat(groups), batch):
        assert (slabs.take(0, rows.numpy())["v"] == rows.numpy()).all()
        blocks_of_batch = len(set((rows // block_rows).tolist()))
        assert len(slabs._held) + len(slabs._coming) <= 2 * num_blocks + blocks_of_batch
    if announced and batch <= block_rows:
        assert sorted(read) == list(range(-(-50 // block_rows)))


def test_a_student_within_a_budget_learns_resumes_and_is_told(
    stores: dict[str, Store], digits: Split, digits_test: Split, tmp_path: Path
) -> None:
    size = budget(stores["topk"], 2)

    def run(out: str, stop: int = 0, memory_budget: int = size) -> dict[str, Any]:
        def on_epoch(record: object) -> None:
            if getattr(record, "epoch", 0) == stop:
                raise KeyboardInterrupt

        asked = {"epochs": 3, "val_share": 0.1, "memory_budget": memory_budget / 1e9}
        return train(stores["topk"], digits, digits_test, tmp_path / out, on_epoch=on_epoch, asked=asked)

    result = run("whole")
    warnings = result["warnings"]
    assert isinstance(warnings, list)
    assert re.search(r"rows are .* shuffled in groups of 400 \(2 blocks\), since .* not fit the memory", warnings[0])
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop=1)
    assert "shuffled in groups of 400" in str(run("stopped", memory_budget=0)["warnings"])
    free = run("free", memory_budget=0)
    assert "memory budget" not in str(free["warnings"])
    with pytest.raises(KeyboardInterrupt):
        run("short", stop=2, memory_budget=0)
    assert "blocks are read again and again; raise --memory-budget" in str(run("short")["warnings"])
    for name, other in (("whole", 0), ("free", size)):  # a finished run is the same run with another budget
        before = (tmp_path / name / WEIGHTS).stat().st_mtime_ns
        assert run(name, memory_budget=other)["weights_sha256"]
        assert (tmp_path / name / WEIGHTS).stat().st_mtime_ns == before
    digests = [weights_digest(load_state(tmp_path / name / WEIGHTS)) for name in ("whole", "stopped", "free", "short")]
    assert digests[0] == digests[1] != digests[2] == digests[3]


def test_a_budget_too_small_for_two_blocks_says_how_much_it_takes(stores: dict[str, Store]) -> None:
    with pytest.raises(StoreError, match=r"--memory-budget is 1e-06 GB, but two blocks .* take .* GB; raise it"):
        StoredAnswers(stores["dense8"], memory_budget=1_000)


def test_data_sorted_by_label_is_told(stores: dict[str, Store]) -> None:
    answers = StoredAnswers(stores["dense8"], memory_budget=budget(stores["dense8"], 1))
    assert len(order_warnings(answers.grouping, answers)) == 1
    answers.labels = answers.labels.sort().values
    assert "shuffle=0" in order_warnings(answers.grouping, answers)[1]


def test_a_student_of_labels_sees_the_rows_in_the_order_of_the_others(stores: dict[str, Store], digits: Split) -> None:
    answers = StoredAnswers(stores["topk"], memory_budget=budget(stores["topk"], 2))
    orders = []
    for loss in ("ce", "kd"):
        batch = DistillationLoss(parse_objective(loss), answers, digits, epochs=2, grouping=answers.grouping)
        rows, generator = torch.arange(len(digits)), torch.Generator().manual_seed(3)
        orders.append(batch.order(rows, generator, view=0, next_view=1))
    assert torch.equal(*orders)


def pieces(*values: int) -> list[np.ndarray]:
    return [np.full(1000, value, np.uint8) for value in values]


def test_a_file_is_made_once_and_gone_when_nobody_maps_it(tmp_path: Path) -> None:
    first = map_slab(tmp_path, "a", 2000, lambda: pieces(1, 2))
    second = map_slab(tmp_path, "a", 2000, lambda: pytest.fail("it is there already"))
    assert (first == second).all()
    assert first.sum() == 3000
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 7
    del first
    remove_unused(tmp_path)
    assert [path.name for path in tmp_path.glob("*.slab")] == ["a.slab"]
    del second
    remove_unused(tmp_path)
    assert not list(tmp_path.glob("*.slab"))


@pytest.mark.parametrize("damage", ["flip", "cut", "checksum"])
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: str) -> None:
    map_slab(tmp_path, "a", 2000, lambda: pieces(1, 2))
    path = tmp_path / "a.slab"
    raw = bytearray(path.read_bytes())
    raw = raw[:-10] if damage == "cut" else raw
    raw[700 if damage == "flip" else -1] ^= 1
    path.write_bytes(raw)
    assert map_slab(tmp_path, "a", 2000, lambda: pieces(1, 2)).sum() == 3000


def test_a_full_disk_is_no_obstacle(stores: dict[str, Store], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file cannot grow beyond 10 kB, so the slab stays in the process's own memory."""
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signals.signal(signals.SIGXFSZ, signals.SIG_IGN)
    answers, rows = StoredAnswers(stores["dense32"]), torch.arange(50)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        own = answers.logits(rows, 0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signals.signal(signals.SIGXFSZ, handler)
    assert [path.name for path in (tmp_path / "slabs").iterdir()] == ["lock"]
    answers.close()
    assert torch.equal(answers.logits(rows, 0), own)
    assert len(list((tmp_path / "slabs").glob("*.slab"))) == 1
    answers.close()


def test_pieces_that_fail_leave_nothing_that_could_be_mapped(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield np.zeros(1000, np.uint8)
        raise StoreError("damaged")

    with pytest.raises(StoreError, match="damaged"):
        map_slab(tmp_path, "a", 2000, broken)
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]
    assert map_slab(tmp_path, "a", 2000, lambda: pieces(1, 2)).sum() == 3000


READER = """
import sys
import torch
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.stores import open_store
answers = StoredAnswers(open_store(sys.argv[1]))
answers.logits(torch.arange(4), 0)
print("loaded", flush=True)
sys.stdin.readline()
answers.close()
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs the system's account of memory")
def test_students_of_one_store_read_the_same_pages(stores: dict[str, Store], tmp_path: Path) -> None:
    """Two processes map one file and own none of its pages; one that is killed leaves nothing behind for long."""
    environment = {**os.environ, "LOGITBANK_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", READER, str(stores["dense32"].path)]
    readers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "loaded\n"
    files = list((tmp_path / "slabs").glob("*.slab"))
    assert len(files) == 1
    for reader in readers:
        account = Path(f"/proc/{reader.pid}/smaps").read_text()
        mapped = account[account.index(str(files[0])) :]
        assert int(re.findall(r"Rss: +(\d+) kB", mapped)[0]) * 1024 >= 0.9 * files[0].stat().st_size
        assert int(re.findall(r"Private_Dirty: +(\d+) kB", mapped)[0]) == 0
        assert int(re.findall(r"Shared_Clean: +(\d+) kB", mapped)[0]) + int(
            re.findall(r"Shared_Dirty: +(\d+) kB", mapped)[0]
        ) >= 0.9 * int(re.findall(r"Rss: +(\d+) kB", mapped)[0])
    readers[0].send_signal(signals.SIGKILL)
    readers[0].communicate()
    assert files[0].exists()
    readers[1].communicate("\n")
    assert readers[1].returncode == 0
    assert not files[0].exists()


FORKED = """
import os, sys, time
from pathlib import Path
import torch
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.slab_file import _lock
from logitbank.stores import open_store

answers, rows = StoredAnswers(open_store(sys.argv[1])), torch.arange(5)
with _lock(Path(os.environ["LOGITBANK_CACHE"]) / "slabs"):  # as a thread that reads ahead may hold it
    sleeper = os.fork()
    if not sleeper:
        time.sleep(60)
        os._exit(0)
answers.read_ahead(1)
if not (worker := os.fork()):
    answers.logits(rows, 1)
    os._exit(0)
assert os.waitpid(worker, 0)[1] == 0
print(answers.logits(rows, 1).tolist())
os.kill(sleeper, 9)
answers.close()
"""


def test_a_process_that_is_forked_keeps_nobody_waiting(stores: dict[str, Store], tmp_path: Path) -> None:
    """Locks that come along with a fork end when their owner's do, and a fork reads with threads of its own."""
    (tmp_path / "slabs").mkdir()
    environment = {**os.environ, "LOGITBANK_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", FORKED, str(stores["dense32"].path)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=50, check=True)
    expected = StoredAnswers(stores["dense32"]).logits(torch.arange(5), 1)
    assert torch.equal(torch.tensor(json.loads(done.stdout)), expected)
