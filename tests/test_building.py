"""One process at a time builds a target; only work on the same request is gone on with; links are never followed."""

import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.pipeline.alignment import describe_examples
from logitbank.stores import StoreError, copy_store, create_store, open_store, verify_store, waiting
from logitbank.stores.files import whole_file
from logitbank.stores.locks import locked, scratch
from logitbank.stores.write.building import build, build_files
from logitbank.stores.write.merge import merge_stores, subset_store
from tests.sharing import contents
from tests.test_merge import ALL, make

START = multiprocessing.get_context("fork")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(text: str) -> Any:
    return lambda built: built.write_text(text)


def test_the_same_is_there_already_and_something_else_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "out.txt"
    assert build(out, write("a"))
    assert not build(out, write("a"))
    with pytest.raises(StoreError, match=r"out.txt is there and is something else; remove it"):
        build(out, write("b"))
    assert not build(out, lambda built: 1 / 0, same=lambda there: there.read_text() == "a")
    assert build_files(tmp_path, ["x", "y"], lambda folder: [write("1")(folder / name) for name in ("x", "y")])
    (tmp_path / "y").write_text("2")
    with pytest.raises(StoreError, match="y is there"):
        build_files(tmp_path, ["x", "y"], lambda folder: [write("1")(folder / name) for name in ("x", "y")])
    assert names(tmp_path) == ["out.txt", "x", "y"]
    assert out.stat().st_mode & 0o777 == (tmp_path / "y").stat().st_mode & 0o777


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def fail(built: Path) -> None:
        built.mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match="cannot write .*out: No space left on device"):
        build(tmp_path / "out", fail, request={"a": 1})
    with pytest.raises(OSError, match="elsewhere"):
        build(tmp_path / "out", lambda built: Path("/elsewhere").read_text())
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["a b", "a\nb", "ä" * 100, "x" * 250, "[a-z]*", "-rf", ".lock", os.fsdecode(b"\xff")])
def test_any_name_that_the_disk_takes(tmp_path: Path, name: str) -> None:
    assert build(tmp_path / name, write("a"), request={"a": 1})
    with whole_file(tmp_path / f"{name[:-1]}_") as beside:
        beside.write_text("b")
    assert names(tmp_path) == sorted([name, f"{name[:-1]}_"])


def test_planted_links_are_not_followed(tmp_path: Path) -> None:
    others, here = tmp_path / "others", tmp_path / "here"
    others.mkdir()
    here.mkdir()
    (others / "file").write_text("precious")
    for name in (".out.lock", ".out.partial", f".out.{'0' * 16}.partial", f".out.{'0' * 12}-1-{'0' * 16}.partial"):
        (here / name).symlink_to(others)
    with pytest.raises(StoreError, match="cannot write"):
        build(here / "out", write("a"))
    (here / ".out.lock").unlink()
    assert build(here / "out", write("a"))
    with whole_file(here / "out") as beside:
        beside.write_text("b")
    for target in (here / "link", here / "dangling"):
        target.symlink_to(others / ("file" if target.name == "link" else "none"))
        for maker in (write("a"), lambda built: built.mkdir()):
            with pytest.raises(StoreError, match="is there and is something else"):
                build(target, maker)
    assert contents(others) == {"file": b"precious"}


def test_one_target_has_one_lock_whatever_leads_to_it(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with locked(tmp_path / "real" / "out"), locked(tmp_path / "link" / "out", wait=False) as held:
        assert not held
    with locked(tmp_path / "real" / "out"), locked(tmp_path / "real" / "out2", wait=False) as held:
        assert held
    assert names(tmp_path / "real") == []


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot write") as raised:
        build(tmp_path / "file" / "out", write("a"))
    assert "\n" not in str(raised.value)


def test_what_a_live_process_holds_is_kept_and_what_a_killed_one_held_is_not(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from logitbank.stores.write.building import build; from logitbank.stores.locks import scratch\n"
        "def stop(built):\n    built.mkdir()\n    with scratch() as place:\n        print(place, flush=True); input()\n"
        "build(Path(sys.argv[1]), stop)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "out")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    place = Path(process.stdout.readline().strip())
    with scratch():
        assert place.exists()
    with locked(tmp_path / "out", wait=False) as held:
        assert not held
    assert len(names(tmp_path)) == 2
    process.kill()
    process.communicate()
    with scratch():
        assert not place.exists()
    assert build(tmp_path / "out", write("a"))
    assert names(tmp_path) == ["out"]


def test_who_waits_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Soon, and then now and then, with what to do."""
    monkeypatch.setattr(waiting, "EVERY_SECONDS", 0.2)

    def hold(ready: Any) -> None:
        with locked(tmp_path / "out"):
            ready.set()
            time.sleep(1.6)

    ready = START.Event()
    process = START.Process(target=hold, args=(ready,))
    process.start()
    ready.wait()
    assert build(tmp_path / "out", write("a"))
    process.join()
    first, second, *_ = (record.getMessage() for record in caplog.records)
    assert first == f"waiting for another process that writes {tmp_path / 'out'}"
    assert second.startswith(f"{first}, for 0 min so far; one that is stopped keeps its lock")


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Path]:
    """Three teachers of the same examples, and a place that holds nothing else."""
    (tmp_path / "out").mkdir()
    return {name: make(tmp_path / name, ALL, name, offset=number) for number, name in enumerate("abc")}


def test_work_on_another_merge_is_not_gone_on_with(stores: dict[str, Path], tmp_path: Path) -> None:
    """A merge of a and b that is killed before its end leaves nothing in a merge of a and c."""
    out = tmp_path / "out" / "m"

    def merge(second: str) -> None:
        merge_stores([stores["a"], stores[second]], out, describe=describe_examples)

    def stopped() -> None:
        import logitbank.stores.write.building

        logitbank.stores.write.building._publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        merge("b")

    process = START.Process(target=stopped)
    process.start()
    process.join()
    assert len(names(tmp_path / "out")) == 2
    merge("c")
    assert open_store(out).teachers == ("a", "c")
    assert verify_store(out) == []
    assert names(tmp_path / "out") == ["m"]


def test_a_store_that_is_there_says_so_only_to_the_same_request(stores: dict[str, Path], tmp_path: Path) -> None:
    def subset(rows: np.ndarray, teacher: str = "a") -> bool:
        out = tmp_path / "out" / "s"
        return subset_store(stores[teacher], out, rows, describe=describe_examples).already_there

    assert [subset(ALL[:20]), subset(ALL[:20])] == [False, True]
    before = contents(tmp_path / "out")
    for rows, teacher in ((ALL[:21], "a"), (ALL[:20][::-1], "a"), (ALL[:20], "b")):
        with pytest.raises(StoreError, match="is there and is something else"):
            subset(rows, teacher)
    assert contents(tmp_path / "out") == before


def test_stores_are_not_written_into_a_folder_that_looks_like_a_zip_file(
    stores: dict[str, Path], tmp_path: Path
) -> None:
    out = tmp_path / "out" / "x.zarr.zip"
    with pytest.raises(StoreError, match="then copy it there"):
        subset_store(stores["a"], out, ALL, describe=describe_examples)
    with pytest.raises(StoreError, match="then copy it there"):
        create_store(out, dataset={}, views={}, keys=ALL, labels=ALL)
    copy_store(stores["a"], out)
    assert names(tmp_path / "out") == ["x.zarr.zip"]


def test_a_copy_leaves_the_temporary_folder_as_it_was(
    stores: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for _ in range(2):
        copy_store(stores["a"], tmp_path / "out" / "c.zarr.zip")
    assert names(tmp_path / "tmp") == []
