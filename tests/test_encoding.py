"""Laws that hold for every encoding and every row of logits."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from logitbank.pipeline.answers.against_labels import best_classes
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.encoding import KINDS, TAIL_RULES, Encoding, decode, decode_log_prob, finite
from logitbank.pipeline.encoding.encode import encode
from logitbank.stores import StoreError, open_store
from tests.sharing import make_store
from tests.test_stores_hostile import edit

CLASSES = 12
ENCODINGS = [
    Encoding(kind="topk", num_classes=CLASSES, top_k=4),
    Encoding(kind="topk", num_classes=CLASSES, top_k=1),
    Encoding(kind="topk", num_classes=CLASSES, top_k=4, bits=16),
    Encoding(kind="topk", num_classes=CLASSES, top_k=CLASSES),
    Encoding(kind="dense", num_classes=CLASSES),
    Encoding(kind="dense", num_classes=CLASSES, bits=16),
    Encoding(kind="dense", num_classes=CLASSES, bits=32),
]
IDS = [f"{e.kind}-k{e.top_k}-b{e.bits}" for e in ENCODINGS]


def as_tensors(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def round_trip(logits_BC: Tensor, labels_B: Tensor, encoding: Encoding, **options: object) -> Tensor:
    arrays = as_tensors(encode(logits_BC, labels_B, encoding))
    return decode(arrays, labels_B, encoding, **options)  # type: ignore[arg-type]


LOGIT = st.one_of(
    st.floats(-30, 30, width=32),
    st.sampled_from([0.0, 1.0, 1e4, -1e4, -math.inf, 1e-6, 12.5]),
)


@st.composite
def rows(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """One to three rows with ties, masks and extremes, at least one finite logit each, and their labels."""
    num_rows = draw(st.integers(1, 3))
    values = [draw(st.lists(LOGIT, min_size=CLASSES, max_size=CLASSES)) for _ in range(num_rows)]
    logits_BC = torch.tensor(values, dtype=torch.float32)
    logits_BC[:, draw(st.integers(0, CLASSES - 1))] = draw(st.sampled_from([0.0, 3.0, 1e4, -1e4]))
    labels_B = torch.tensor([draw(st.integers(-1, CLASSES - 1)) for _ in range(num_rows)])
    return logits_BC, labels_B


@pytest.mark.parametrize("encoding", ENCODINGS, ids=IDS)
@pytest.mark.parametrize("tail", TAIL_RULES)
@settings(max_examples=40, deadline=None)
@given(case=rows())
def test_every_row_decodes_to_a_distribution(encoding: Encoding, tail: str, case: tuple[Tensor, Tensor]) -> None:
    logits_BC, labels_B = case
    student_BC = torch.linspace(-3, 3, CLASSES).expand_as(logits_BC)
    decoded_BC = round_trip(logits_BC, labels_B, encoding, tail=tail, student_BC=student_BC, temperature=2.0)
    assert decoded_BC.dtype == torch.float32
    assert not torch.isnan(decoded_BC).any()
    for temperature in (1.0, 4.0):
        prob_BC = decode_log_prob(finite(decoded_BC), temperature).exp()
        torch.testing.assert_close(prob_BC.sum(1), torch.ones(len(prob_BC)), rtol=0, atol=1e-5)
        assert (prob_BC >= 0).all()
    best_B1 = logits_BC.amax(1, keepdim=True)
    if tail != "bucket":
        winner_B = decoded_BC.argmax(1, keepdim=True)
        assert (logits_BC.gather(1, winner_B) == best_B1).all()


@pytest.mark.parametrize("encoding", ENCODINGS, ids=IDS)
@settings(max_examples=60, deadline=None)
@given(case=rows())
def test_classes_keep_their_side_of_the_label(encoding: Encoding, case: tuple[Tensor, Tensor]) -> None:
    logits_BC, labels_B = case
    decoded_BC = round_trip(logits_BC, labels_B, encoding)
    labels_B1 = labels_B.clamp(min=0)[:, None]
    above_BC = logits_BC >= logits_BC.gather(1, labels_B1)
    decoded_above_BC = decoded_BC >= decoded_BC.gather(1, labels_B1)
    stored_BC = torch.ones_like(above_BC)
    if encoding.has_tail:
        index_BK = torch.from_numpy(encode(logits_BC, labels_B, encoding)["index"].astype(np.int64))
        stored_BC = torch.zeros_like(above_BC).scatter_(1, index_BK, True)
    wrong_BC = (above_BC != decoded_above_BC) & stored_BC & (labels_B >= 0)[:, None]
    assert not wrong_BC.any()


@settings(max_examples=60, deadline=None)
@given(case=rows())
def test_tail_never_exceeds_the_kth_and_has_the_exact_mass(case: tuple[Tensor, Tensor]) -> None:
    logits_BC, labels_B = case
    encoding = ENCODINGS[0]
    arrays = as_tensors(encode(logits_BC, labels_B, encoding))
    decoded_BC = decode(arrays, labels_B, encoding)
    index_BK = arrays["index"].long()
    kth_B1 = decoded_BC.gather(1, index_BK[:, -1:])
    tail_BC = decoded_BC.scatter(1, index_BK, -math.inf)
    assert (tail_BC <= kth_B1).all()
    mass_B = (tail_BC.logsumexp(1) - decoded_BC.logsumexp(1)).exp()
    truth_B = arrays["log_tail_mass"].float().exp()
    torch.testing.assert_close(mass_B, truth_B, rtol=0.05, atol=0.003)


def test_dense_32_returns_the_very_bits() -> None:
    logits_BC = torch.randn(50, 30, generator=torch.Generator().manual_seed(0)) * 7
    encoding = Encoding(kind="dense", num_classes=30, bits=32)
    assert torch.equal(round_trip(logits_BC, torch.full((50,), -1), encoding), logits_BC)


def test_rank_and_label_log_prob_are_exact_outside_the_head() -> None:
    logits_BC = torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    labels_B = torch.arange(64) * 4
    labels_B[:3] = -1
    arrays = encode(logits_BC, labels_B, Encoding(kind="topk", num_classes=300, top_k=5))
    truth = torch.log_softmax(logits_BC, 1)[torch.arange(64), labels_B]
    outside_B = arrays["label_rank"][3:] > 5
    np.testing.assert_allclose(arrays["label_log_prob"][3:][outside_B], truth[3:][outside_B], rtol=1e-3)
    np.testing.assert_allclose(arrays["label_log_prob"][3:], truth[3:], rtol=0.02)
    assert np.isnan(arrays["label_log_prob"][:3]).all()
    assert (arrays["label_rank"][:3] == 0).all()
    rank = (logits_BC >= logits_BC[torch.arange(64), labels_B][:, None]).sum(1)
    np.testing.assert_array_equal(arrays["label_rank"][3:], rank[3:])
    assert arrays["label_rank"].dtype == np.uint16
    decoded_BC = round_trip(logits_BC, labels_B, Encoding(kind="topk", num_classes=300, top_k=5))
    decoded = torch.log_softmax(decoded_BC, 1)[torch.arange(64), labels_B]
    torch.testing.assert_close(decoded[3:], truth[3:], rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("num_classes", "dtype"),
    [(2, "uint8"), (256, "uint8"), (257, "uint16"), (65536, "uint16"), (65537, "uint32"), (2**31, "uint32")],
)
def test_class_ids_take_the_smallest_dtype(num_classes: int, dtype: str) -> None:
    encoding = Encoding(kind="topk", num_classes=num_classes, top_k=2)
    assert encoding.row_arrays()["index"].dtype == dtype


@pytest.mark.parametrize("encoding", ENCODINGS, ids=IDS)
def test_attributes_round_trip(encoding: Encoding) -> None:
    assert Encoding.from_attributes(encoding.attributes()) == encoding


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "sparse", "num_classes": 10},
        {"kind": "topk", "num_classes": 10, "top_k": 11},
        {"kind": "topk", "num_classes": 10},
        {"kind": "topk", "num_classes": 10, "top_k": 2, "tail_bits": 2},
        {"kind": "topk+tail", "num_classes": 10, "top_k": 2},
        {"kind": "topk+tail", "num_classes": 10, "top_k": 2, "tail_bits": 5},
        {"kind": "dense", "num_classes": 10, "bits": 4},
        {"kind": "dense", "num_classes": 10, "top_k": 3},
        {"kind": "dense", "num_classes": 1},
    ],
)
def test_impossible_encodings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"expected|leave out"):
        Encoding(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "wrong",
    [{}, {"kind": "topk"}, {"kind": "topk", "num_classes": 9, "top_k": "4"}, {"kind": "dense", "speed": 1}],
)
def test_attributes_of_something_else_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Encoding.from_attributes(wrong)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(value: float) -> None:
    logits_BC = torch.zeros(3, CLASSES)
    logits_BC[1, 2] = value
    for encoding in ENCODINGS:
        with pytest.raises(ValueError, match="row 1"):
            encode(logits_BC, torch.zeros(3, dtype=torch.long), encoding)


def test_every_kind_of_the_table_is_under_these_laws() -> None:
    tail = "topk+tail"  # needs a predictor: tests/test_tail_predictor.py
    assert {(e.kind, e.bits) for e in ENCODINGS} == {
        (name, bits) for name, kind in KINDS.items() if name != tail for bits in kind.codes
    }


@pytest.mark.parametrize("encoding", ENCODINGS, ids=IDS)
@settings(max_examples=40, deadline=None)
@given(case=rows())
def test_what_a_kind_says_of_its_rows_is_what_they_decode_to(encoding: Encoding, case: tuple[Tensor, Tensor]) -> None:
    logits_BC, labels_B = case
    stored = encode(logits_BC, labels_B, encoding)
    arrays = as_tensors(stored)
    kept_BC, decoded_BC = encoding.kept(arrays), decode(arrays, labels_B, encoding, tail="uniform")
    assert (kept_BC.sum(1) == (encoding.top_k if encoding.has_tail else CLASSES)).all()
    best_B = torch.from_numpy(encoding.best_class(stored[encoding.best_array]))
    assert (logits_BC.gather(1, best_B[:, None]) == logits_BC.amax(1, keepdim=True)).all()
    order = decoded_BC.masked_fill(~kept_BC, -math.inf).sort(1, descending=True).values
    log_prob = encoding.kept_log_prob(arrays).sort(1, descending=True).values
    known = order[:, : log_prob.shape[1]]
    torch.testing.assert_close(log_prob - log_prob[:, :1], known - known[:, :1], rtol=1e-5, atol=1e-3)
    zero = stored[encoding.code.array] == encoding.code.zero
    assert zero.any(1).tolist() == torch.isneginf(decoded_BC.masked_fill(~kept_BC, 0.0)).any(1).tolist()


def test_a_store_without_the_arrays_of_its_encoding_is_refused_in_a_line(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.zarr", ("t",), kind="dense-16")
    said = Encoding(kind="dense", num_classes=CLASSES).attributes()
    edit(path, lambda document: document["attributes"].update(encoding=said), "teachers/t")
    store = open_store(path)
    for use in (lambda: TeacherRows(store, store.teacher()), lambda: best_classes(store.teacher())):
        with pytest.raises(StoreError, match="no array log_prob_code, which its encoding"):
            use()
