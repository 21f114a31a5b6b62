"""stores/README.md is enough to read a store: a decoder in numpy, written from its sentences alone, reads them all."""

from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.datasets import load_split
from logitbank.stores import Store, open_store, verify_store
from tests.format_reader import Array, decode_row
from tests.golden.make_decoded import AT_POSITIONS, FOLDER, KINDS
from tests.positions import encodings, write_files, write_store


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
