"""An example that is answered at L positions is stored, checked and decoded as L examples are."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.encoding.decode import decode
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.folds import FoldPlan
from logitbank.stores import TeacherWriter, create_store, open_store, verify_store
from tests.positions import LENGTHS, encodings, make_logits, write_files, write_store

C = 12


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("kind", encodings(C))
def test_a_store_with_positions_decodes_to_what_one_of_its_answers_does(kind: str, length: int, tmp_path: Path) -> None:
    """Ragged lengths included, with folds and their predictors; encoded to the rounding of sums over other batches."""
    num_examples, encoding = max(8, 600 // length), encodings(C)[kind]
    data, _ = write_files(tmp_path, num_examples, length, C, ragged=length == 7)
    split, plan = load_split(data), FoldPlan(num_folds=2, strategy="group", seed=0)
    path = write_store(tmp_path, split, encoding, plan=plan, block_rows=num_examples // 3)
    assert verify_store(path) == []
    store = open_store(path)
    teacher = store.teacher()
    assert store.folds is not None
    assert store.positions == teacher.positions == length
    assert store.labels.shape == (num_examples, length)
    flat = num_examples * length

    plain = tmp_path / "flat.zarr"
    create_store(
        plain,
        dataset={**{k: v for k, v in store.dataset.items() if k != "num_positions"}, "num_examples": flat},
        views=store.views,
        keys=np.arange(flat, dtype=np.uint64),
        labels=store.labels.reshape(-1),
        folds=np.repeat(store.folds, length),
    )
    writer = TeacherWriter(
        plain,
        "teacher",
        identity=teacher.identity,
        encoding=teacher.encoding,
        arrays={
            **encoding.row_arrays(shifted="tail_shift" in teacher.arrays),
            **({"mask": teacher.row_arrays["mask"].__class__(dtype="bool")} if "mask" in teacher.arrays else {}),
        },
        folds=teacher.folds,
        constants=teacher.constants(),
    )
    logits = np.nan_to_num(np.load(tmp_path / "logits.npy")).reshape(-1, C)
    predictor = TailPredictor.from_constants(teacher.constants())
    folds_P = torch.from_numpy(np.repeat(store.folds, length).astype(np.int64))
    encoded = encode(
        torch.from_numpy(logits),
        torch.from_numpy(store.labels.reshape(-1).astype(np.int64)),
        encoding,
        predictor=predictor,
        folds_B=folds_P,
        shifted="tail_shift" in teacher.arrays,
    )
    if split.readable is not None:
        encoded["mask"] = split.readable.reshape(-1)
    slab = teacher.slab(0)
    for name, array in encoded.items():
        if name == "tail_shift":
            np.testing.assert_allclose(slab[name].reshape(array.shape), array, rtol=1e-5, atol=1e-6)
        else:
            np.testing.assert_array_equal(slab[name].reshape(array.shape), array)
    encoded = {name: slab[name].reshape(array.shape) for name, array in encoded.items()}
    for cell in writer.cells():
        writer.write(cell, {name: array[writer.rows(cell.block)] for name, array in encoded.items()})
    writer.finish(fidelity={})

    at_positions, one_by_one = StoredAnswers(store), StoredAnswers(open_store(plain))
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(num_examples)[: num_examples // 2])
    each = (chosen[:, None] * length + torch.arange(length)).reshape(-1)
    batch, other = at_positions.of(chosen, 0), one_by_one.of(each, 0)
    assert batch.shape == (len(chosen), length)
    student = torch.randn(len(each), C, generator=torch.Generator().manual_seed(0))
    assert torch.equal(batch.logits(student, 1.0), other.logits(student, 1.0))
    for one, two in (
        (batch.served(), other.served()),
        (batch.order_known(student, 1.0), other.order_known(student, 1.0)),
    ):
        assert (one is None) == (two is None)
        assert one is None or two is None or torch.equal(one, two)
    assert torch.equal(batch.stored_BC(), other.stored_BC())
    at_positions.close()
    one_by_one.close()


@pytest.mark.parametrize("length", LENGTHS)
def test_answers_come_by_example(length: int, tmp_path: Path) -> None:
    data, _ = write_files(tmp_path, 20, length, C, ragged=length == 7)
    split = load_split(data)
    store = open_store(write_store(tmp_path, split, encodings(C)["dense-32"]))
    with closing(open_answers(store)) as answers:
        served = [True] * 20 if split.readable is None else split.readable.any(axis=1).tolist()
        assert answers.served(0).tolist() == served
        rows = torch.from_numpy(np.flatnonzero(answers.served(0)))
        logits = answers.logits(rows, 0)
        assert logits.shape == (len(rows), length, C)
        expected = torch.from_numpy(np.load(tmp_path / "logits.npy"))[rows]
        there = ~expected.isnan()
        assert torch.equal(logits[there], expected[there])
    if split.readable is not None and not split.readable.any(axis=1).all():
        with pytest.raises(ValueError, match="does not serve"):
            open_answers(store).logits(torch.arange(20), 0)


@pytest.mark.parametrize("kind", encodings(C))
def test_encoding_and_decoding_keep_the_shape(kind: str) -> None:
    logits, labels = make_logits(9, 7, C)
    arrays = encode(torch.from_numpy(logits), torch.from_numpy(labels), encodings(C)["dense-8"])
    assert {array.shape[:2] for array in arrays.values()} == {(9, 7)}
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    assert decode(tensors, torch.from_numpy(labels), encodings(C)["dense-8"]).shape == (9, 7, C)
    with pytest.raises(ValueError, match=r"expected logits \[9, 7, 12\]"):
        encode(torch.from_numpy(logits[:, :6]), torch.from_numpy(labels), encodings(C)["dense-8"])
