"""Exports of examples that are answered at many positions: plain arrays [V, N, L, ...], which become a store again."""

from pathlib import Path

import numpy as np
import pytest

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.exported import ExportTeacher
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.exchange import export_store
from logitbank.pipeline.exchange.decode import decode_to_file
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.exchange import read_plain
from tests.positions import encodings, write_files, write_store

N, C = 30, 12


@pytest.mark.parametrize("kind", encodings(C))
def test_plain_numpy_finds_what_the_store_says(kind: str, tmp_path: Path) -> None:
    """In blocks and ragged: positions that are not there are masked, and NaN."""
    length = 7
    data, _ = write_files(tmp_path, N, length, C, ragged=True)
    store = open_store(write_store(tmp_path, data, encodings(C)[kind], block_rows=11))
    export_store(store.path, tmp_path / "x.npz")
    export_store(store.path, tmp_path / "dense.npz", dense=True)
    few, dense = (read_plain(tmp_path / name) for name in ("x.npz", "dense.npz"))
    decode_to_file(store, tmp_path / "decoded.npy")
    np.testing.assert_allclose(dense["log_prob"][0], np.load(tmp_path / "decoded.npy"), atol=2e-6)
    np.testing.assert_array_equal(few["label"], store.labels)
    slab = store.teacher().slab(0)
    np.testing.assert_array_equal(few["mask"][0], slab["mask"])
    assert few["log_prob"].shape[:3] == (1, N, length)
    if "index" in few:
        there = few["mask"][0]
        for name in ("index", "label_rank", "logsumexp"):
            np.testing.assert_array_equal(few[name][0][there], slab[name][there])
        best = np.take_along_axis(dense["log_prob"][0][there], few["index"][0][there].astype(int), 1)
        np.testing.assert_allclose(few["log_prob"][0][there], best, atol=1e-2)


@pytest.mark.parametrize("kind", ["dense-32", "topk"])
def test_an_export_becomes_a_store_again(kind: str, tmp_path: Path) -> None:
    """By content key, in another order of examples: the same bits where no answer was lost."""
    data, _ = write_files(tmp_path, N, 7, C, ragged=True)
    first = open_store(write_store(tmp_path, data, encodings(C)[kind]))
    export_store(first.path, tmp_path / "x.npz")
    order = np.random.default_rng(3).permutation(N)
    with np.load(tmp_path / "data.npz") as arrays:
        moved = {name: array if name.endswith("_test") else array[order] for name, array in arrays.items()}
    np.savez(tmp_path / "data.npz", **moved)
    split = load_split(data)
    teacher = ExportTeacher(tmp_path / "x.npz", split, Views())
    cache_teacher(teacher, tmp_path / "again.zarr", encoding=encodings(C)[kind], predictor_rows=60)
    again = open_store(tmp_path / "again.zarr")
    np.testing.assert_array_equal(again.labels, first.labels[order])
    slabs = first.teacher().slab(0), again.teacher().slab(0)
    there = slabs[1]["mask"]
    np.testing.assert_array_equal(slabs[0]["mask"][order], there)
    for name in ("logit",) if kind == "dense-32" else ("index", "label_rank"):
        own, other = slabs[1][name][there], slabs[0][name][order][there]
        if name == "index":  # equal ones in any order
            own, other = np.sort(own, axis=1), np.sort(other, axis=1)
        np.testing.assert_array_equal(own, other)
    assert again.teacher().summary["accuracy"] == first.teacher().summary["accuracy"]


def test_an_export_that_lacks_positions_is_refused(tmp_path: Path) -> None:
    data, _ = write_files(tmp_path, N, 7, C, ragged=True)
    export_store(write_store(tmp_path, data, encodings(C)["topk"]), tmp_path / "x.npz")
    with np.load(tmp_path / "data.npz") as arrays:
        longer = {**arrays, "length": np.full(N, 7)}
    for name in ("x", "y"):
        longer[name] = np.load(tmp_path / "data.npz")[name]
    np.savez(tmp_path / "data.npz", **longer)
    with pytest.raises(ValueError, match="lacks|other labels"):
        ExportTeacher(tmp_path / "x.npz", load_split(data), Views())
    write_files(tmp_path, N, 5, C)
    with pytest.raises(ValueError, match="answers an example at 7 positions, the others are answered at 5"):
        ExportTeacher(tmp_path / "x.npz", load_split(f"npz:{tmp_path}/data.npz?positions=5&classes={C}"), Views())
