"""stores/README.md is enough to read a store: a decoder in numpy, written from its sentences alone."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.datasets import load_split
from logitbank.stores import Store, open_store, verify_store
from tests.golden.make_decoded import AT_POSITIONS, FOLDER, KINDS
from tests.positions import encodings, write_files, write_store

Array = npt.NDArray[Any]


def logsumexp(x: Array) -> float:
    best = float(x.max(initial=-math.inf))
    if not np.isfinite(best):
        return -math.inf
    return best + math.log(float(np.exp(x - best).sum()))


def step(code: int) -> float:
    if code in (0, 255):
        return -math.inf if code else 0.0
    return -max(round(0.2 * math.expm1(0.07 * code) * 1024), 1) / 1024


def tail_shape(row: dict[str, Array], constants: dict[str, Array], fold: int, head: Array) -> Array:
    """What a row's head, and its code, say of the tail, up to a constant."""
    a, b, m = constants["tail_gauge"]
    x = np.clip(head - a * head[-1] + b if a or b else head, -m, m)
    inner = x @ constants["tail_matrix"][fold].astype(np.float32)[row["index"].astype(int)]
    if "tail_factor" in constants:
        inner = inner @ constants["tail_factor"][fold].astype(np.float32)
    shape: Array = inner + constants["tail_bias"][fold]
    if "tail_code" in row:
        bits, start = np.unpackbits(row["tail_code"], bitorder="little"), 0
        for j, width in enumerate(constants["tail_width"][fold].astype(int)):
            if width:
                number = int(sum(int(bit) << i for i, bit in enumerate(bits[start : start + width])))
                level = constants["tail_levels"][2**width - 2 + number]
                shape = shape + level * constants["tail_scale"][fold][j] * constants["tail_basis"][fold][j].astype(
                    float
                )
                start += width
    return shape


def decode_row(row: dict[str, Array], label: int, fold: int, constants: dict[str, Array], num_classes: int) -> Array:
    if "logit" in row:
        return row["logit"]
    total = float(row["logsumexp"])
    if "log_prob_floor" in row:
        codes = row["log_prob_code"].astype(np.float32)
        return np.where(codes == 0, -np.inf, row["log_prob_floor"] + codes * row["log_prob_scale"] + total)
    if "index" not in row:
        return row["log_prob"].astype(np.float32) + total
    if "log_prob" in row:
        head = row["log_prob"].astype(np.float32) + total
    else:
        r = np.cumsum([0.0, *(step(int(code)) for code in row["log_prob_code"][1:])])
        head = r + np.log1p(-np.exp(float(row["log_tail_mass"]))) - logsumexp(r) + total
    out = np.full(num_classes, -np.inf)
    index = row["index"].astype(int)
    tail = np.setdiff1d(np.arange(num_classes), index)
    mass = np.exp(float(row["log_tail_mass"]))
    if label >= 0 and label not in index:
        out[label] = min(float(row["label_log_prob"]) + total, head[-1])
        tail = tail[tail != label]
        mass -= np.exp(out[label] - total)
    shape = tail_shape(row, constants, fold, head)[tail] if constants else np.zeros(len(tail))
    shift = float(row["tail_shift"]) if "tail_shift" in row else shift_of(shape, head[-1], total, mass)
    out[tail] = np.minimum(shape + shift, head[-1])
    out[index] = head
    return out


def shift_of(shape: Array, highest: float, total: float, mass: float) -> float:
    """The shift that gives the tail its mass, by bisection."""
    low, high = -100.0, 100.0
    for _ in range(200):
        shift = (low + high) / 2
        if np.exp(logsumexp(np.minimum(shape + shift, highest)) - total) < mass:
            low = shift
        else:
            high = shift
    return low


def decode_store(store: Store) -> Array:
    """The logits of the first view, [N, C], or [N, L, C]."""
    teacher = store.teacher()
    slab, constants, labels = teacher.slab(0), teacher.constants(), store.labels
    folds = np.zeros(len(labels), int) if store.folds is None else store.folds.astype(int)
    decoded = np.empty((*labels.shape, store.num_classes))
    for place in np.ndindex(*labels.shape):  # an example, and a position of it where there are positions
        row = {name: array[place] for name, array in slab.items()}
        decoded[place] = decode_row(row, int(labels[place]), int(folds[place[0]]), constants, store.num_classes)
    return decoded


@pytest.mark.parametrize("length", [1, 7])
@pytest.mark.parametrize("kind", encodings(12))
def test_the_prose_is_enough_at_positions(kind: str, length: int, tmp_path: Path) -> None:
    data, _ = write_files(tmp_path, 140 // length, length, 12, ragged=length == 7)
    split = load_split(data)
    store = open_store(write_store(tmp_path, split, encodings(12)[kind], predictor_rows=90))
    there = np.ones(store.labels.shape, bool) if split.readable is None else split.readable
    assert ("mask" in store.teacher().arrays) == (split.readable is not None)
    expected = StoredAnswers(store).of(torch.arange(len(split)), 0).logits(torch.empty(0), 1.0)
    decoded = decode_store(store)
    np.testing.assert_allclose(decoded[there], expected.numpy().reshape(decoded.shape)[there], rtol=0, atol=1e-2)


@pytest.mark.parametrize("kind", [*KINDS, *AT_POSITIONS])
def test_the_prose_is_enough(kind: str) -> None:
    decoded = decode_store(open_store(FOLDER / f"{kind}.zarr"))
    np.testing.assert_allclose(
        decoded, np.load(FOLDER / f"{kind}.npy"), rtol=0, atol=1e-2
    )  # this program sums tails in float16


@pytest.mark.parametrize("kind", [*KINDS, *AT_POSITIONS])
def test_golden_stores_decode_to_what_they_always_did(kind: str) -> None:
    path: Path = FOLDER / f"{kind}.zarr"
    assert verify_store(path) == []
    stored = StoredAnswers(open_store(path))
    expected = torch.from_numpy(np.load(FOLDER / f"{kind}.npy"))
    finite = torch.isfinite(expected)
    decoded = stored.logits(torch.arange(len(stored)), 0)
    torch.testing.assert_close(decoded[finite], expected[finite], rtol=0, atol=1e-4)
    assert (decoded[~finite] < expected[finite].min() - 1000).all()
