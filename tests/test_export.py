"""Exports: what plain numpy, pyarrow and tarfile find in them, and what happens on the way."""

import gc
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.exchange import export_store, open_export, parquet, tar, values
from logitbank.pipeline.exchange.tar import write_shards
from logitbank.pipeline.exchange.values import Values
from logitbank.stores import StoreError, TeacherWriter, create_store, open_store
from tests.exchange import FLIPS, C, N, V, make_data, make_store, read_plain
from tests.golden.make_decoded import FOLDER, KINDS

ROOT = Path(__file__).parents[1]
FORMATS = (".npz", ".parquet", ".tar")
TOPK = Encoding(kind="topk", num_classes=C, top_k=3, bits=8)


@pytest.fixture(autouse=True)
def _pyarrow(request: pytest.FixtureRequest) -> None:
    if ".parquet" in str(getattr(request.node, "callspec", "")) or "parquet" in request.node.name:
        pytest.importorskip("pyarrow")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of N rows in three blocks, the top 3 of 10 classes in 8 bits."""
    folder = tmp_path_factory.mktemp("store")
    return make_store(folder, make_data(folder / "d.npz"), TOPK)


def same(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert first.keys() == second.keys()
    for name in first:
        if name != "store":
            assert first[name].dtype == second[name].dtype or name in ("label", "fold"), name
            np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    assert first["store"] == second["store"]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("ending", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_plain_readers_find_what_golden_stores_mean(kind: str, ending: str, dense: bool, tmp_path: Path) -> None:
    """Every encoding, against the logits that the store is known to decode to."""
    export_store(FOLDER / f"{kind}.zarr", tmp_path / f"x{ending}", dense=dense)
    found = read_plain(tmp_path / f"x{ending}")
    logits = np.load(FOLDER / f"{kind}.npy").astype(np.float64)
    logsumexp = np.logaddexp.reduce(logits, axis=1)
    expected = logits - logsumexp[:, None]
    golden = open_store(FOLDER / f"{kind}.zarr")
    for name, known in (("key", golden.keys), ("label", golden.labels), ("fold", golden.folds)):
        np.testing.assert_array_equal(found[name], known)
    np.testing.assert_allclose(found["logsumexp"][0], logsumexp, atol=0.01)
    if dense or not KINDS[kind].has_tail:
        assert set(found) - {"logit"} == {"store", "key", "label", "fold", "log_prob", "logsumexp"}
        np.testing.assert_allclose(found["log_prob"][0], expected, atol=2e-6)
        assert ("logit" in found) == (kind == "dense-32")
        if kind == "dense-32":
            np.testing.assert_array_equal(found["logit"][0], np.load(FOLDER / f"{kind}.npy"))
        return
    best = np.take_along_axis(logits, found["index"][0].astype(int), 1)  # equal ones in any order
    np.testing.assert_array_equal(best, -np.sort(-logits, axis=1)[:, :3])
    np.testing.assert_allclose(found["log_prob"][0], best - logsumexp[:, None], atol=0.01)
    mass = np.exp(found["log_prob"][0]).sum(1) + np.exp(found["log_tail_mass"][0])
    np.testing.assert_allclose(mass, 1, atol=2e-3)
    labelled = golden.labels >= 0
    own = np.take_along_axis(expected, np.maximum(golden.labels, 0)[:, None].astype(int), 1)[:, 0]
    outside = labelled & ~(found["index"][0] == golden.labels[:, None]).any(1)
    assert np.isnan(found["label_log_prob"][0][~labelled]).all()
    np.testing.assert_allclose(found["label_log_prob"][0][outside], own[outside], atol=0.02)
    assert ((found["label_rank"][0] == 0) == ~labelled).all()
    assert (found["label_rank"][0][outside] > 3).all()


@pytest.mark.parametrize("dense", [False, True])
def test_all_formats_say_the_same(store: Path, tmp_path: Path, dense: bool) -> None:
    """Of several views and blocks; an example that is there twice has two samples."""
    pytest.importorskip("pyarrow")
    for name in ("x.npz", "x.parquet", "x.tar", "shards"):
        export_store(store, tmp_path / name, to="webdataset" if name == "shards" else "", dense=dense)
    plain = read_plain(tmp_path / "x.npz")
    assert plain["log_prob"].shape == (V, N, C if dense else 3)
    for name in ("x.parquet", "x.tar", "shards"):
        same(plain, read_plain(tmp_path / name))
    assert json.loads((tmp_path / "shards" / "store.json").read_text()) == plain["store"]
    rows = np.random.default_rng(0).permutation(N)[:50]
    export = open_export(tmp_path / "x.npz")
    for view in range(V):
        for array, found in export.rows(view, rows).items():
            np.testing.assert_array_equal(found, plain[array][view][rows])


def test_the_document_says_whose_answers_these_are(store: Path, tmp_path: Path) -> None:
    export_store(store, tmp_path / "x.npz", num_views=1)
    said: Any = read_plain(tmp_path / "x.npz")["store"]
    opened = open_store(store)
    assert said["dataset"] == opened.dataset
    assert said["views"] == {**opened.views, "num_views": 1}
    assert said["identity"] == opened.teacher().identity
    assert said["encoding"] == TOPK.attributes()
    assert [len(said["probes"]["digest"]), said["teacher"], said["folds"]] == [1, "teacher", None]
    assert said["lineage"][-1]["digest"] == opened.attributes["digest"]
    assert said["arrays"]["index"]["dtype"] == "uint8"


@pytest.mark.parametrize("ending", FORMATS)
def test_the_same_store_gives_the_same_bytes(store: Path, tmp_path: Path, ending: str) -> None:
    for name in ("a", "b"):
        export_store(store, tmp_path / f"{name}{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("ending", [".npz", ".tar"])
def test_small_chunks_give_the_same_bytes(
    store: Path, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    export_store(store, tmp_path / f"a{ending}")
    monkeypatch.setattr(values, "CHUNK_BYTES", 100)
    monkeypatch.setattr(values, "HELD_BYTES", 300)
    export_store(store, tmp_path / f"b{ending}")
    assert (tmp_path / f"a{ending}").read_bytes() == (tmp_path / f"b{ending}").read_bytes()


@pytest.mark.parametrize("ending", FORMATS)
def test_memory_is_that_of_a_block(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """32 MB of log-probabilities pass through a few."""
    num_examples, num_classes = 2_000, 2_000
    encoding = Encoding(kind="dense", num_classes=num_classes, bits=8)
    create_store(
        tmp_path / "s.zarr",
        dataset={
            "name": "d",
            "split": "train",
            "num_examples": num_examples,
            "num_classes": num_classes,
            "fingerprint": "0",
        },
        views={"num_views": 2, "transform": "none", "seed": 0},
        keys=np.arange(num_examples, dtype=np.uint64),
        labels=np.zeros(num_examples, np.int32),
    )
    writer = TeacherWriter(
        tmp_path / "s.zarr",
        "t",
        identity={"architecture": "none", "weights_sha256": []},
        encoding=encoding.attributes(),
        arrays=encoding.row_arrays(),
        block_rows=128,
    )
    for cell in writer.pending():
        rows = writer.rows(cell.block)
        labels = torch.zeros(rows.stop - rows.start, dtype=torch.long)
        writer.write(cell, encode(torch.zeros(len(labels), num_classes), labels, encoding))
    writer.finish(fidelity={}, summary={})
    monkeypatch.setattr(values, "CHUNK_BYTES", 2**19)
    monkeypatch.setattr(values, "HELD_BYTES", 2**20)
    if ending == ".parquet":
        monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 2**20)
    export_store(FOLDER / "dense-8.zarr", tmp_path / f"y{ending}")  # what is imported takes memory, too
    tracemalloc.start()
    try:
        export_store(tmp_path / "s.zarr", tmp_path / f"x{ending}")
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def test_shards_are_bounded_and_whole(store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    chosen = Values(open_store(store))
    export_store(store, tmp_path / "x.tar")
    document = json.dumps(read_plain(tmp_path / "x.tar")["store"], sort_keys=True)
    write_shards(chosen, document, folder, shard_bytes=51_200)
    shards = sorted(folder.glob("*.tar"))
    assert [path.name for path in shards[:2]] == ["000000.tar", "000001.tar"]
    assert len(shards) > 5
    assert max(path.stat().st_size for path in shards) <= 51_200
    same(read_plain(folder), read_plain(tmp_path / "x.tar"))
    with tarfile.open(shards[1]) as file:
        for member in file.getmembers():
            assert (member.mtime, member.uid, member.gid, member.uname, member.isreg()) == (0, 0, 0, "", True)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it leaves its file to be collected
def test_the_webdataset_library_reads_it(store: Path, tmp_path: Path) -> None:
    import webdataset

    export_store(store, tmp_path / "x.tar")
    plain = read_plain(tmp_path / "x.tar")
    samples = list(webdataset.WebDataset(str(tmp_path / "x.tar"), shardshuffle=False).decode())
    assert len(samples) == N
    for row, sample in enumerate(samples):
        assert int(sample["__key__"][:16], 16) == plain["key"][row]
        np.testing.assert_array_equal(sample["log_prob.npy"], plain["log_prob"][:, row])
    gc.collect()


@pytest.mark.parametrize("ending", FORMATS)
def test_rows_without_an_answer_are_no_numbers(tmp_path: Path, ending: str) -> None:
    readable = np.arange(N) % 40 != 5
    split = replace(make_data(tmp_path / "d.npz"), readable=readable)
    path = make_store(tmp_path, split, TOPK)
    export_store(path, tmp_path / f"x{ending}")
    found = read_plain(tmp_path / f"x{ending}")
    assert (found["mask"] == readable).all()
    assert np.isfinite(found["log_prob"][:, readable]).all()
    assert not np.isfinite(found["log_prob"][:, ~readable]).any()
    if ending == ".npz":
        assert (open_export(tmp_path / "x.npz").served == readable).all()


def test_a_damaged_store_leaves_nothing_behind(store: Path, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "s.zarr")
    chunk = tmp_path / "s.zarr" / "teachers" / "teacher" / "log_prob_code" / "c" / "1" / "2" / "0"
    content = bytearray(chunk.read_bytes())
    content[-8] ^= 1
    chunk.write_bytes(content)
    for name in ("x.npz", "x.tar", "shards"):
        with pytest.raises(StoreError):
            export_store(tmp_path / "s.zarr", tmp_path / name, to="webdataset" if name == "shards" else "")
    assert [path.name for path in tmp_path.iterdir()] == ["s.zarr"]


@pytest.mark.parametrize("name", ["x.npz", "shards"])
def test_a_killed_export_shows_nothing_and_the_next_one_tidies_up(store: Path, tmp_path: Path, name: str) -> None:
    to = "" if "." in name else "webdataset"
    program = f"""
import os, signal
from pathlib import Path
from logitbank.pipeline.exchange import export_store
calls = []
def die(rows):
    calls.append(rows)
    if len(calls) == 5:
        os.kill(os.getpid(), signal.SIGKILL)
export_store(Path({str(store)!r}), Path({str(tmp_path / name)!r}), to={to!r}, on_rows=die)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    left = sorted(path.name for path in tmp_path.iterdir())
    assert [path.startswith(f".{name}.") for path in left] == [True, True]
    export_store(store, tmp_path / name, to=to)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(read_plain(tmp_path / name)["key"]) == N


@pytest.mark.parametrize(
    ("out", "options", "message"),
    [
        ("x.txt", {}, "its ending names no format"),
        ("x", {"to": "parquet"}, "--format parquet writes .parquet files"),
        ("x.npz", {"to": "webdataset"}, "--format webdataset writes .tar files"),
        ("x.npz", {"to": "npy"}, "did you mean 'npz'"),
        ("x.npz", {"num_views": 3}, "asks for 3"),
        ("x.npz", {"teacher": "nobody"}, "no teacher 'nobody'"),
        ("there.npz", {}, "is there and is something else"),
    ],
)
def test_mistakes(store: Path, tmp_path: Path, out: str, options: dict[str, Any], message: str) -> None:
    (tmp_path / "there.npz").write_bytes(b"")
    with pytest.raises(ValueError, match=message):
        export_store(store, tmp_path / out, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["there.npz"]


@pytest.mark.parametrize("name", ["x.npz", "x.parquet", "x.tar", "shards"])
def test_an_export_is_there_already_or_is_another(store: Path, tmp_path: Path, name: str) -> None:
    to = "" if "." in name else "webdataset"
    assert export_store(store, tmp_path / name, to=to)[1]
    rows: list[int] = []
    assert not export_store(store, tmp_path / name, to=to, on_rows=rows.append)[1]
    assert rows == []  # nothing is decoded to find that out
    for options in ({"num_views": 1}, {"dense": True}):
        with pytest.raises(StoreError, match="is there and is something else"):
            export_store(store, tmp_path / name, to=to, **options)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    for path in [tmp_path / name] if to == "" else sorted((tmp_path / name).glob("*.tar")):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(StoreError, match="is there and is something else"):
        export_store(store, tmp_path / name, to=to)


def test_a_teacher_without_folds_in_a_store_with_folds_has_none(tmp_path: Path) -> None:
    """A fold column says that the teacher of a row has not seen it."""
    create_store(
        tmp_path / "s.zarr",
        dataset={"name": "d", "split": "train", "num_examples": 4, "num_classes": 2, "fingerprint": "0"},
        views={"num_views": 1, "transform": "none", "seed": 0},
        keys=np.arange(4, dtype=np.uint64),
        labels=np.zeros(4, np.int32),
        folds=np.arange(4, dtype=np.uint16) % 2,
    )
    encoding = Encoding(kind="dense", num_classes=2, bits=32)
    for name, folds in (("plain", None), ("folded", {"num_folds": 2})):
        writer = TeacherWriter(
            tmp_path / "s.zarr",
            name,
            identity={"architecture": name, "weights_sha256": []},
            encoding=encoding.attributes(),
            arrays=encoding.row_arrays(),
            folds=folds,
        )
        writer.write(writer.pending()[0], encode(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), encoding))
        writer.finish(fidelity={}, summary={})
        export_store(tmp_path / "s.zarr", tmp_path / f"{name}.npz", teacher=name)
        assert ("fold" in read_plain(tmp_path / f"{name}.npz")) == (name == "folded")


def test_samples_are_named_by_their_content(store: Path, tmp_path: Path) -> None:
    export_store(store, tmp_path / "x.tar")
    with tarfile.open(tmp_path / "x.tar") as file:
        names = [name.partition(".")[0] for name in file.getnames() if name.endswith(".json")]
    keys = [f"{int(key):016x}" for key in open_store(store).keys]
    assert names[17] == f"{keys[7]}-1"  # the same image for the second time
    assert [name for row, name in enumerate(names) if row != 17] == keys[:17] + keys[18:]
    assert tar.DOCUMENT not in names
    assert FLIPS.num_views == V
