"""Stores of hostile values under sound checksums: every command succeeds or refuses in one line, and they agree."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from logitbank.cli import app
from logitbank.pipeline.cache_teacher.fidelity import fit_predictor
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.views import Views, probe
from logitbank.stores import RowArray, TeacherWriter, create_store, verify_store

DATA, N, C = "digits?limit=120", 120, 10
FLOATS = (np.nan, np.inf, -np.inf, 0.0, 1e30, -1e30, 65504.0, -65504.0, 1e-30, 5.0)
ENCODINGS = (
    Encoding(kind="topk", num_classes=C, top_k=3),
    Encoding(kind="topk", num_classes=C, top_k=3, bits=16),
    Encoding(kind="topk+tail", num_classes=C, top_k=3, tail_bits=1),
    Encoding(kind="dense", num_classes=C, bits=8),
    Encoding(kind="dense", num_classes=C, bits=16),
    Encoding(kind="dense", num_classes=C, bits=32),
)


def spoil(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One hostile value in some rows or everywhere, random bits, or the rows shuffled."""
    spoilt, how = array.copy(), int(rng.integers(4))
    if how == 3:
        return np.asarray(rng.permutation(spoilt))
    flat, rows = spoilt.reshape(len(spoilt), -1), rng.integers(0, len(spoilt), int(rng.choice([1, 3, len(spoilt)])))
    columns = slice(None) if how == 2 else int(rng.integers(flat.shape[1]))
    with np.errstate(all="ignore"):
        if array.dtype.kind == "f":
            flat[rows, columns] = np.float64(rng.choice(FLOATS)).astype(array.dtype)
        else:
            most = 2 if array.dtype.kind == "b" else int(np.iinfo(array.dtype).max) + 1
            flat[rows, columns] = rng.integers(0, most)
    return spoilt


def make(path: Path, rng: np.random.Generator, num_spoilt: int) -> Path:
    """A store of digits by a good teacher, some of whose arrays, constants or folds are spoilt."""
    split, encoding = load_split(DATA), ENCODINGS[int(rng.integers(len(ENCODINGS)))]
    folds = (np.arange(N) % 2).astype(np.uint16) if rng.random() < 0.4 else None
    logits = np.random.default_rng(0).normal(size=(N, C)).astype(np.float32)
    logits[np.arange(N), split.labels] += 3
    sample = torch.randn(2000, C, generator=torch.Generator().manual_seed(0))
    folds_N = None if folds is None else torch.arange(2000) % 2
    predictor = fit_predictor(sample, encoding, folds_N=folds_N, num_folds=1 if folds is None else 2)
    folds_B = None if folds is None else torch.from_numpy(folds.astype(np.int64))
    labels = torch.from_numpy(split.labels)
    arrays = encode(torch.from_numpy(logits), labels, encoding, predictor=predictor, folds_B=folds_B)
    specs = dict(encoding.row_arrays())
    if rng.random() < 0.3:
        arrays["mask"], specs["mask"] = rng.random(N) < 0.8, RowArray(dtype="bool")
    constants = {} if predictor is None else predictor.constants()
    for _ in range(num_spoilt):
        part = constants if constants and rng.random() < 0.4 else arrays
        name = str(rng.choice(sorted(part)))
        part[name] = spoil(part[name], rng)
        if folds is not None and rng.random() < 0.1:
            folds = rng.integers(0, 60_000, N).astype(np.uint16)
    create_store(
        path,
        dataset=split.describe(),
        views={**Views().attributes(), "versions": {}},
        keys=split.keys,
        labels=split.labels,
        folds=folds,
        probes=probe(split, Views()),
    )
    writer = TeacherWriter(
        path,
        "t",
        identity={"architecture": "x", "weights_sha256": ["0"]},
        encoding=encoding.attributes(),
        arrays=specs,
        folds=None if folds is None else {"num_folds": 2, "strategy": "kfold", "seed": 0, "proof": "declared"},
        constants=constants or None,
        block_rows=50,
    )
    for cell in writer.pending():
        writer.write(cell, {name: array[writer.rows(cell.block)] for name, array in arrays.items()})
    writer.finish(fidelity={}, summary={})
    return path


def check_hostile_stores(folder: Path, trials: range) -> None:
    sound = str(make(folder / "sound.zarr", np.random.default_rng(1), 0))
    assert verify_store(sound) == []
    for trial in trials:
        rng = np.random.default_rng(trial)
        path = str(make(folder / f"{trial}.zarr", rng, int(rng.integers(1, 4))))
        out = str(folder / f"{trial}-out")
        run = ["--data", DATA, "--eval-data", "digits?split=test", "--student", "mlp:4", "--epochs", "1", "--out", out]
        codes = {}
        for command in (
            ["verify", path, "--data", DATA],
            ["inspect", path],
            ["decode", path, "--out", f"{out}.npy"],
            ["diff", path, sound],
            ["export", path, "--out", f"{out}.npz", "--dense"],
            ["card", path, "--out", f"{out}.md"],
            ["train-student", "--store", path, "--loss", "kd", *run],
        ):
            error = CliRunner().invoke(app, command).exception
            assert error is None or isinstance(error, ValueError), (trial, command)
            codes[command[0]] = error is None
        assert codes["inspect"]
        if codes["verify"]:  # what verify calls sound, everything reads
            assert all(codes.values()), (trial, codes)


def test_hostile_values(tmp_path: Path) -> None:
    check_hostile_stores(tmp_path, range(5))


@pytest.mark.slow
def test_hostile_values_in_100_stores(tmp_path: Path) -> None:
    check_hostile_stores(tmp_path, range(100, 200))
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
