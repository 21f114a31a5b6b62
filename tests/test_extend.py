"""More views of a store: the bytes of a store cached at once, the old store untouched, one line for what cannot be."""

import multiprocessing
import shutil
import signal
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.alignment import check_data, describe_examples
from logitbank.pipeline.cache_teacher.extend import extend_views
from logitbank.pipeline.cache_teacher.progress import Progress
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.recorded import recorded_teacher
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.views import Views
from logitbank.stores import StoreError, copy_store, open_store, verify_store
from logitbank.stores.format import layout
from logitbank.stores.locks import locked
from logitbank.stores.write.extend import extendable
from logitbank.stores.write.merge import merge_stores, subset_store
from tests.sharing import contents
from tests.test_cli import fails, run

ENCODINGS = {
    "topk": Encoding(kind="topk", num_classes=10, top_k=3),
    "dense": Encoding(kind="dense", num_classes=10, bits=32),
}
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


def cached(
    split: Split, weights: Path, out: Path, num_views: int = 2, kind: str = "topk", name: str = "teacher"
) -> Path:
    views = Views(transform="flip-crop", num_views=num_views, seed=3)
    answers = NetworkTeacher(split, load_teachers(split, "mlp:32", str(weights)), views)
    cache_teacher(answers, out, encoding=ENCODINGS[kind], block_rows=400, name=name)
    return out


def extended(split: Split, weights: Path, path: Path, out: Path, num_views: int = 4, rank: Rank | None = None) -> Path:
    store = open_store(path, allow_incomplete=True)
    again = recorded_teacher(store, store.teacher(), split, str(weights), architecture="mlp:32", num_views=num_views)
    extend_views(store, again, out, rank=rank)
    return out


def without_root(folder: Path) -> dict[str, bytes]:
    """All files but the store's own document, which says when it was made and of what."""
    return {name: data for name, data in contents(folder).items() if name != "zarr.json"}


@pytest.mark.parametrize("kind", ENCODINGS)
def test_the_same_bytes_as_at_once(digits: Split, fold_teachers: Path, tmp_path: Path, kind: str) -> None:
    path = cached(digits, fold_teachers, tmp_path / "two.zarr", kind=kind)
    before = contents(path)
    grown = extended(digits, fold_teachers, path, tmp_path / "four.zarr")
    assert without_root(grown) == without_root(cached(digits, fold_teachers, tmp_path / "once.zarr", 4, kind))
    assert contents(path) == before
    store = open_store(grown)
    assert verify_store(grown) == []
    check_data(store, digits)
    (step,) = store.attributes["lineage"]
    assert (step["operation"], step["num_views"]) == ("extend", [4, 2])
    row_files = [name for name in before if "/label_log_prob/c/" in name]
    assert row_files
    assert all((path / name).samefile(grown / name) for name in row_files)  # not copied
    shutil.rmtree(path)
    assert verify_store(grown) == []


def test_on_another_disk_rows_are_copied(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    path = cached(digits, plain_teacher, tmp_path / "two.zarr")
    with tempfile.TemporaryDirectory(dir=shared_memory) as folder:
        grown = extended(digits, plain_teacher, path, Path(folder) / "four.zarr")
        assert without_root(grown) == without_root(cached(digits, plain_teacher, tmp_path / "once.zarr", 4))


def test_files_of_another_layout_are_written_anew(
    digits: Split, plain_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a store is that another release has written."""
    with monkeypatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 256)
        patch.setattr(layout, "CHUNK_BYTES", 256)
        path = cached(digits, plain_teacher, tmp_path / "two.zarr")
    grown = extended(digits, plain_teacher, path, tmp_path / "four.zarr")
    once = cached(digits, plain_teacher, tmp_path / "once.zarr", 4)
    rows = [name for name in contents(once) if "/log_prob_code/c/" in name]
    assert {name: contents(grown)[name] for name in rows} == {name: contents(once)[name] for name in rows}
    assert verify_store(grown) == []


def _work(path: Path, out: Path, weights: Path, say: Connection) -> None:
    torch.set_num_threads(1)
    split, store = load_split("digits"), open_store(path, allow_incomplete=True)
    again = recorded_teacher(store, store.teacher(), split, str(weights), architecture="mlp:32", num_views=4)

    def report(progress: Progress) -> None:
        if progress.rows:
            say.send(progress.done)

    extend_views(store, again, out, on_progress=report)


def test_killed_it_goes_on_to_the_same_bytes(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    path, out = cached(digits, plain_teacher, tmp_path / "two.zarr"), tmp_path / "four.zarr"
    heard, theirs = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_work, args=(path, out, plain_teacher, theirs))
    process.start()
    for _ in range(3):
        assert heard.poll(120)
        heard.recv()
    process.kill()
    process.join(10)
    assert process.exitcode == -signal.SIGKILL
    pending = open_store(out, allow_incomplete=True).teacher().uncommitted()
    assert pending
    assert {view for view, _ in pending} <= {2, 3}
    extended(digits, plain_teacher, path, out)
    assert without_root(out) == without_root(cached(digits, plain_teacher, tmp_path / "once.zarr", 4))


def test_several_processes_write_it_together(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    path, out = cached(digits, plain_teacher, tmp_path / "two.zarr"), tmp_path / "four.zarr"
    with locked(tmp_path / "four.zarr.teacher@3-1"):
        extended(digits, plain_teacher, path, out, rank=Rank(number=1, count=2))
        assert open_store(out, allow_incomplete=True).teacher().uncommitted() == [(3, 1)]
    extended(digits, plain_teacher, path, out, rank=Rank(number=0, count=2))
    assert without_root(out) == without_root(cached(digits, plain_teacher, tmp_path / "once.zarr", 4))


def test_a_part_of_the_examples_can_grow(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    """Its folds and its probed rows are not those that its own rows would give."""
    path = cached(digits, fold_teachers, tmp_path / "two.zarr")
    rows = np.sort(np.random.default_rng(0).permutation(1437)[:500])
    subset_store(path, tmp_path / "part.zarr", rows, describe=describe_examples)
    np.savez(tmp_path / "part.npz", x=digits.samples[rows], y=digits.labels[rows])
    split = load_split(f"npz:{tmp_path}/part.npz")
    grown = extended(split, fold_teachers, tmp_path / "part.zarr", tmp_path / "grown.zarr", 3)
    check_data(open_store(grown), split)
    whole = open_store(cached(digits, fold_teachers, tmp_path / "once.zarr", 3)).teacher().slab(2)
    part = open_store(grown).teacher().slab(2)
    assert (part["index"] == whole["index"][rows]).mean() > 0.999  # rounding differs with the batches


def test_one_more_teacher_and_then_more_views(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    path = cached(digits, plain_teacher, tmp_path / "s.zarr", kind="dense")
    before = contents(path)
    train_teachers(digits, "mlp:32", Training(epochs=1, seed=9), tmp_path / "w")
    cached(digits, tmp_path / "w", path, kind="dense", name="other")  # cache-teacher --teacher-name other
    store = open_store(path)
    assert store.teachers == ("other", "teacher")
    assert {name: contents(path)[name] for name in before} == before
    with pytest.raises(StoreError, match=r"2 teachers \(other, teacher\).*copy --teacher-name NAME"):
        extendable(open_store(path, allow_incomplete=True), 4)
    for name, weights in (("teacher", plain_teacher), ("other", tmp_path / "w")):
        copy_store(path, tmp_path / f"{name}.zarr", teachers=[name])
        extended(digits, weights, tmp_path / f"{name}.zarr", tmp_path / f"{name}-3.zarr", 3)
    both = [tmp_path / f"{name}-3.zarr" for name in ("teacher", "other")]
    merge_stores(both, tmp_path / "both.zarr", describe=describe_examples)
    assert open_store(tmp_path / "both.zarr").num_views == 3


def test_what_cannot_be(digits: Split, plain_teacher: Path, fold_teachers: Path, tmp_path: Path) -> None:
    path, out = cached(digits, plain_teacher, tmp_path / "s.zarr"), tmp_path / "out.zarr"
    for num_views in (1, 2):
        with pytest.raises(StoreError, match=f"has 2 views, {num_views} are wanted; ask for 3 or more"):
            extended(digits, plain_teacher, path, out, num_views)
    with pytest.raises(StoreError, match="is the store itself"):
        extended(digits, plain_teacher, path, path)
    with pytest.raises(StoreError, match="s3://bucket/s.zarr: stores are written into folders; write one here, then"):
        extended(digits, plain_teacher, path, Path("s3://bucket/s.zarr"))
    with pytest.raises(ValueError, match="gone.safetensors: no such weights"):
        extended(digits, tmp_path / "gone.safetensors", path, out)
    lone = fold_teachers / "fold0.safetensors"
    with pytest.raises(ValueError, match=r"weights_sha256 is \w{12}\.\.\. in the store and .* cache-teacher --out"):
        extended(digits, lone, path, out)
    assert not out.exists()
    cached(digits, plain_teacher, tmp_path / "other.zarr", kind="dense")
    with pytest.raises(StoreError, match="other.zarr was written for"):
        extended(digits, plain_teacher, path, tmp_path / "other.zarr")
    plain = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(plain, tmp_path / "plain.zarr", encoding=ENCODINGS["dense"])
    with pytest.raises(ValueError, match="transform none, which has one view"):
        extended(digits, plain_teacher, tmp_path / "plain.zarr", out)


def test_only_finished_and_sound_stores_grow(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    path = cached(digits, plain_teacher, tmp_path / "s.zarr")
    copy_store(path, tmp_path / "none.zarr")
    shutil.rmtree(tmp_path / "none.zarr" / "teachers" / "teacher")
    with pytest.raises(StoreError, match=r"has 0 teachers \(none\)"):
        extendable(open_store(tmp_path / "none.zarr", allow_incomplete=True), 4)
    half = tmp_path / "half.zarr"
    with locked(tmp_path / "half.zarr.teacher@2-0"):
        extended(digits, plain_teacher, path, half)
    with pytest.raises(StoreError, match="'teacher' is unfinished"):
        extended(digits, plain_teacher, half, tmp_path / "out.zarr", 5)
    file = path / "teachers" / "teacher" / "index" / "c" / "1" / "0" / "0"
    damaged = bytearray(file.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    file.write_bytes(bytes(damaged))
    with pytest.raises(StoreError, match="index"):
        extended(digits, plain_teacher, path, tmp_path / "out.zarr")
    assert not open_store(tmp_path / "out.zarr", allow_incomplete=True).teacher().committed()[1, 0]


def test_the_command(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    cached(digits, plain_teacher, tmp_path / "s.zarr")
    more = ("extend", "s.zarr", "--out", "o.zarr", "--weights", str(plain_teacher), "--teacher", "mlp:32")
    assert "needs a new pass: cli cache-teacher" in fails(*more, "--views", "3", "--top-k", "5", cwd=tmp_path)
    assert "pass --teacher mlp:32" in fails(*more[:-1], "mlp:8", "--views", "3", cwd=tmp_path)
    assert "digits train" in fails(*more, "--views", "3", "--data", "digits?split=test", cwd=tmp_path)
    assert not (tmp_path / "o.zarr").exists()
    done = run(*more, "--views", "3", "--top-k", "3", cwd=tmp_path)
    said = "wrote o.zarr: 1437 rows x 3 views, 2 of them taken over, accuracy"
    assert (done.returncode, done.stdout[: len(said)]) == (0, said), done
