"""The store's everyday life: create, write, finish, open, read. Its helpers serve the other store tests."""

import json
import multiprocessing
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.stores import Cell, RowArray, Store, TeacherWriter, create_store, open_store, verify_store

N, V, C, K = 1500, 2, 100, 5
ARRAYS = {
    "index": RowArray(dtype="uint8", row_shape=(K,)),
    "log_prob": RowArray(dtype="float16", row_shape=(K,)),
    "logsumexp": RowArray(dtype="float32"),
}


def description(**changes: Any) -> dict[str, Any]:
    """Arguments of create_store for a toy dataset."""
    rng = np.random.default_rng(0)
    dataset = {"name": "toy", "split": "train", "num_examples": N, "num_classes": C, "fingerprint": "3f"}
    views = {"num_views": V, "transform": "none", "seed": 0, "versions": {}}
    return {
        "dataset": dataset,
        "views": views,
        "keys": rng.integers(0, 2**64, N, dtype=np.uint64),
        "labels": rng.integers(-1, C, N),
        **changes,
    }


def writer(path: Path, name: str = "t", **changes: Any) -> TeacherWriter:
    """A writer for the toy teacher."""
    arguments: dict[str, Any] = {
        "identity": {"architecture": "toy"},
        "encoding": {"kind": "topk", "top_k": K},
        "arrays": ARRAYS,
        "constants": {"tail_bias": np.arange(C, dtype=np.float32)},
        "block_rows": 512,
    }
    return TeacherWriter(path, name, **(arguments | changes))


def rows(teacher: TeacherWriter, cell: Cell, seed: int = 0) -> dict[str, np.ndarray]:
    """What the toy teacher answers in one cell."""
    rng = np.random.default_rng([seed, cell.view, cell.block])
    where = teacher.rows(cell.block)
    num = where.stop - where.start
    return {
        "index": rng.permuted(np.tile(np.arange(C, dtype=np.uint8), (num, 1)), axis=1)[:, :K],
        "log_prob": -np.sort(rng.exponential(size=(num, K)) + 2, axis=1).astype(np.float16),
        "logsumexp": rng.normal(size=num).astype(np.float32),
    }


def finished(path: Path, **changes: Any) -> Path:
    """A store with one finished teacher."""
    create_store(path, **description())
    teacher = writer(path, **changes)
    for cell in teacher.pending():
        teacher.write(cell, rows(teacher, cell))
    teacher.finish(fidelity={"1": 0.05}, summary={"top1": 0.7})
    return path


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    store = open_store(str(path))
    assert (store.num_examples, store.num_views, store.num_classes) == (N, V, C)
    np.testing.assert_array_equal(store.keys, description()["keys"])
    np.testing.assert_array_equal(store.labels, description()["labels"])
    assert store.labels.dtype == np.int32
    assert store.folds is None
    assert store.groups is None
    assert store.probes == {}
    assert store.teachers == ("t",)
    teacher, made = store.teacher(), writer(path)
    assert teacher.complete
    assert (teacher.fidelity, teacher.summary, teacher.folds) == ({"1": 0.05}, {"top1": 0.7}, None)
    assert teacher.identity == {"architecture": "toy"}
    np.testing.assert_array_equal(teacher.constants()["tail_bias"], np.arange(C))
    for view in range(V):
        slab = teacher.slab(view)
        assert list(slab) == ["index", "log_prob", "logsumexp"]
        for block in range(teacher.num_blocks):
            cell = rows(made, Cell(view, block))
            again = teacher.block(view, block)
            for name, values in cell.items():
                np.testing.assert_array_equal(slab[name][teacher.rows(block)], values)
                np.testing.assert_array_equal(again[name], values)
                assert slab[name].dtype == values.dtype
    assert list(teacher.slab(0, ["logsumexp"])) == ["logsumexp"]
    assert verify_store(path) == []
    on_disk = sum(file.stat().st_size for file in (path / "teachers" / "t").rglob("*") if file.is_file())
    assert teacher.bytes_on_disk() == on_disk


def test_optional_arrays_of_examples(tmp_path: Path) -> None:
    folds, groups = np.arange(N) % 3, np.arange(N, dtype=np.uint64)
    probes = {"pixels": np.arange(6, dtype=np.uint64).reshape(3, 2), "scale": np.float32(2.0)}
    more = {"folds": folds, "groups": groups, "probes": probes, "attributes": {"license": "CC0"}}
    create_store(tmp_path / "s.zarr", **description(**more))
    store = open_store(tmp_path / "s.zarr")
    assert store.folds is not None
    assert store.groups is not None
    assert store.folds.dtype == np.uint16
    np.testing.assert_array_equal(store.folds, folds)
    np.testing.assert_array_equal(store.groups, groups)
    np.testing.assert_array_equal(store.probes["pixels"], probes["pixels"])
    assert store.probes["scale"] == 2
    assert store.attributes["license"] == "CC0"
    assert store.teachers == ()


def test_plain_zarr_reads_and_explains_the_store(tmp_path: Path) -> None:
    group = zarr.open(str(finished(tmp_path / "s.zarr")), mode="r")
    assert isinstance(group, zarr.Group)
    assert group.attrs["format"] == "teacher-logit-store"
    arrays = {path: node for path, node in group.members(max_depth=None) if isinstance(node, zarr.Array)}
    assert len(arrays) == 8
    for node in arrays.values():
        assert node.attrs["unit"]
        assert node.attrs["doc"]
        assert node.metadata.to_dict()["dimension_names"]
    index = arrays["teachers/t/index"]
    assert index.metadata.to_dict()["dimension_names"] == ("view", "example", "kept")
    slab = open_store(tmp_path / "s.zarr").teacher().slab(1)["index"]
    np.testing.assert_array_equal(np.asarray(index[1])[:N], slab)
    assert np.all(np.asarray(arrays["teachers/t/committed"][:]) != 0)
    assert arrays["teachers/t/checksum"].shape == (V, 3, 3)


def test_large_blocks_are_sharded(tmp_path: Path) -> None:
    num_examples, num_classes = 5000, 1000
    dataset = description()["dataset"] | {"num_examples": num_examples, "num_classes": num_classes}
    zeros = np.zeros(num_examples)
    wide = description(dataset=dataset, keys=zeros.astype(np.uint64), labels=zeros.astype(int))
    create_store(tmp_path / "s.zarr", **wide)
    arrays = {"logit": RowArray(dtype="float32", row_shape=(num_classes,))}
    teacher = writer(tmp_path / "s.zarr", arrays=arrays, encoding={"kind": "dense"}, block_rows=2560)
    rng = np.random.default_rng(0)
    made = {}
    for cell in teacher.pending():
        where = teacher.rows(cell.block)
        values = rng.normal(size=(where.stop - where.start, num_classes)).astype(np.float32)
        values[: len(values) // 2] = 0  # a piece that equals the fill value must be there too
        made[cell] = values
        teacher.write(cell, {"logit": values})
    teacher.finish(fidelity={})
    document = json.loads((tmp_path / "s.zarr/teachers/t/logit/zarr.json").read_text())
    assert document["codecs"][0]["name"] == "sharding_indexed"
    read = open_store(tmp_path / "s.zarr").teacher()
    plain = zarr.open_array(str(tmp_path / "s.zarr/teachers/t/logit"), mode="r")
    np.testing.assert_array_equal(np.asarray(plain[1, :num_examples]), read.slab(1)["logit"])
    for cell, values in made.items():
        np.testing.assert_array_equal(read.block(*cell)["logit"], values)
        np.testing.assert_array_equal(read.slab(cell.view)["logit"][read.rows(cell.block)], values)
    assert verify_store(tmp_path / "s.zarr") == []
    file = tmp_path / "s.zarr/teachers/t/logit/c/1/1/0"
    good = file.read_bytes()
    for at in (0, len(good) // 2, -1, -5, -20, -36):
        bad = bytearray(good)
        bad[at] ^= 4
        for data in (bytes(bad), good[: len(good) // 2], good[:3], b""):
            file.write_bytes(data)
            (problem,) = verify_store(tmp_path / "s.zarr")
            assert (problem.array, problem.view, problem.block) == ("teachers/t/logit", 1, 1)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    data=st.data(),
    num_examples=st.integers(1, 300),
    num_views=st.integers(1, 3),
    top_k=st.integers(1, 4),
    dtype=st.sampled_from(["uint8", "uint16", "uint32"]),
)
def test_any_bits_survive(
    data: st.DataObject,
    num_examples: int,
    num_views: int,
    top_k: int,
    dtype: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    block_rows = data.draw(st.integers(num_examples // 6 + 1, num_examples))
    path = tmp_path_factory.mktemp("any") / "s.zarr"
    dataset = {"num_examples": num_examples, "num_classes": 2**31, "name": "π\n", "fingerprint": None}
    keys, labels = np.arange(num_examples, dtype=np.uint64), np.full(num_examples, -1)
    create_store(path, dataset=dataset, views={"num_views": num_views}, keys=keys, labels=labels)
    arrays = {
        "index": RowArray(dtype=dtype, row_shape=(top_k,)),
        "log_prob": RowArray(dtype="float32", row_shape=(top_k,)),
        "mask": RowArray(dtype="bool"),
    }
    teacher = TeacherWriter(path, "a", identity={}, encoding={}, arrays=arrays, block_rows=block_rows)
    rng = np.random.default_rng(data.draw(st.integers(0, 100)))
    made: dict[Cell, dict[str, np.ndarray]] = {}
    for cell in teacher.pending():
        num = teacher.rows(cell.block).stop - teacher.rows(cell.block).start
        raw = rng.integers(0, 256, (num, top_k * 4), dtype=np.uint8)  # NaNs of every kind among them
        index = rng.integers(0, 256, (num, top_k * np.dtype(dtype).itemsize), dtype=np.uint8)
        mask = rng.integers(0, 2, num).astype(bool)
        made[cell] = {"index": index.view(dtype), "log_prob": raw.view(np.float32), "mask": mask}
        teacher.write(cell, made[cell])
    teacher.finish(fidelity={})
    read = open_store(path).teacher()
    for cell, arrays_made in made.items():
        slab = read.slab(cell.view)
        for name, values in arrays_made.items():
            assert slab[name][read.rows(cell.block)].tobytes() == values.tobytes()
    assert verify_store(path, rows=False) == []


def test_a_store_travels_between_processes(tmp_path: Path) -> None:
    store = open_store(finished(tmp_path / "s.zarr"))
    store.teacher().slab(0)
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        there = pool.submit(_index, store).result()
    np.testing.assert_array_equal(there, store.teacher().slab(1)["index"])


def _index(store: Store) -> np.ndarray:
    return store.teacher().slab(1)["index"]


def test_import_is_light() -> None:
    code = "import sys, time, numpy, zarr; t = time.time(); import stores; "
    code += "print(time.time() - t, 'torch' in sys.modules)"
    best = 9.0
    for _ in range(3):
        started = time.time()
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        assert out[1] == "False"
        best = min(best, float(out[0]))
        if time.time() - started > 30:
            break
    assert best < 0.5
