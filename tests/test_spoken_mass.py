"""Sparse answers as logits of all classes: the mass is exact and never negative, whatever float16 made of it."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from logitbank.pipeline.cache_teacher.teachers.sparse import from_probabilities, sparse_logits
from logitbank.pipeline.encoding import Encoding, decode
from logitbank.pipeline.encoding.encode import encode
from tests.realdata import DATA, needs


def saved(logits_BC: npt.NDArray[np.float64], top_k: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float16]]:
    """The top K as such caches hold them: probabilities in float16."""
    prob_BC = np.exp(logits_BC - np.logaddexp.reduce(logits_BC, axis=1)[:, None])
    index_BK = np.argsort(-prob_BC, axis=1)[:, :top_k]
    return index_BK.astype(np.uint16), np.take_along_axis(prob_BC, index_BK, 1).astype(np.float16)


@settings(max_examples=200, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    num_classes=st.integers(2, 400),
    share=st.floats(0, 1),
    scale=st.sampled_from([0.0, 0.1, 1.0, 3.0, 10.0, 100.0]),
)
def test_mass_is_exact_and_never_negative(seed: int, num_classes: int, share: float, scale: float) -> None:
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(16, num_classes)) * scale
    top_k = 1 + round(share * (num_classes - 1))
    index, prob = saved(logits, top_k)
    arrays = from_probabilities(index, prob, num_classes)
    dense = sparse_logits(arrays, torch.full((16,), -1), num_classes).double()
    decoded = dense.softmax(1).numpy()
    assert np.isfinite(dense.numpy()).all()
    assert (decoded >= 0).all()
    np.testing.assert_allclose(decoded.sum(1), 1, rtol=1e-12)
    head = np.take_along_axis(decoded, index.astype(int), 1)
    np.testing.assert_allclose(head, prob, rtol=4e-3, atol=2**-23)  # twice what float16 rounds, and its smallest
    tail = decoded.copy()
    np.put_along_axis(tail, index.astype(int), 0, 1)
    assert (tail.max(1) <= head.min(1) * (1 + 1e-5)).all()
    true = np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
    np.put_along_axis(true, index.astype(int), 0, 1)
    slack = np.spacing(prob).astype(np.float64).sum(1) + top_k * 2.0**-23 + 1e-6
    assert (np.abs(tail.sum(1) - true.sum(1)) <= slack).all()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 1.0, 5.0, 30.0]))
def test_a_store_of_them_decodes_to_them(seed: int, scale: float) -> None:
    num_classes, top_k = 100, 10
    index, prob = saved(np.random.default_rng(seed).normal(size=(16, num_classes)) * scale, top_k)
    dense = sparse_logits(from_probabilities(index, prob, num_classes), torch.full((16,), -1), num_classes)
    labels = torch.arange(16)
    encoding = Encoding(kind="topk", num_classes=num_classes, top_k=top_k, bits=16)
    stored = {name: torch.from_numpy(array) for name, array in encode(dense, labels, encoding).items()}
    again = decode(stored, labels, encoding)
    assert torch.isfinite(stored["log_tail_mass"]).all()
    expected, found = dense.softmax(1), again.softmax(1)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=needs(f"logits/{name}.npy"))
        for name in ("nips17_logits", "cifar100_test_logits_resnetsmall32", "cifar10_test_logits_resnet56")
    ],
)
@pytest.mark.parametrize("temperature", [2.0, 4.0])
def test_the_rest_is_chosen_well_on_real_logits(name: str, temperature: float) -> None:
    """Nearer to the teacher than 1 less the sum, cut off at the least that float16 knows, which others take."""
    assert DATA is not None
    logits = np.load(DATA / "logits" / f"{name}.npy").astype(np.float64)
    num_classes = logits.shape[1]
    index, prob = saved(logits, min(10, num_classes // 2))
    ours = sparse_logits(from_probabilities(index, prob, num_classes), torch.full((len(logits),), -1), num_classes)
    rest_N = np.clip(1 - prob.astype(np.float64).sum(1), 2.0**-24, None) / (num_classes - prob.shape[1])
    theirs = np.repeat(np.log(rest_N)[:, None], num_classes, 1)
    np.put_along_axis(theirs, index.astype(int), np.log(np.maximum(prob.astype(np.float64), 2.0**-24)), 1)

    def kl(decoded: torch.Tensor) -> float:
        teacher = torch.log_softmax(torch.from_numpy(logits) / temperature, 1)
        return float((teacher.exp() * (teacher - torch.log_softmax(decoded.double() / temperature, 1))).sum(1).mean())

    assert kl(ours) < kl(torch.from_numpy(theirs))


def test_sums_above_one_leave_a_rest_of_what_was_rounded() -> None:
    """0.7 and 0.3 rounded up: their sum is 1.0005."""
    prob = np.array([[np.nextafter(np.float16(0.7), np.float16(1)), np.float16(0.3)]], dtype=np.float16)
    assert prob.astype(np.float64).sum() > 1
    arrays = from_probabilities(np.array([[4, 2]]), prob, 10)
    mass = float(arrays["log_tail_mass"].exp()[0])
    assert 0 < mass < 2**-11
    assert float(arrays["log_prob"].double().exp().sum()) + mass == pytest.approx(1, abs=1e-6)


def test_all_classes_kept_leaves_nothing() -> None:
    arrays = from_probabilities(np.array([[1, 0]]), np.array([[0.75, 0.25]], np.float16), 2)
    assert float(arrays["log_tail_mass"][0]) == -np.inf
    dense = sparse_logits(arrays, torch.tensor([-1]), 2)
    torch.testing.assert_close(dense.softmax(1), torch.tensor([[0.25, 0.75]]))


@pytest.mark.parametrize(
    ("index", "prob", "message"),
    [
        ([3, 10], [0.5, 0.2], "class 10 of 10"),
        ([3, 3], [0.5, 0.2], "a class twice"),
        ([3, 4], [0.75, 0.5], "adds to 1.25"),
        ([3, 4], [0.5, -0.25], "runs from -0.25"),
        ([3, 4], [np.nan, 0.1], "runs from nan"),
        ([3, 4], [np.inf, 0.1], "to inf"),
        ([3, 4], [0.5, 0.001], "expected probabilities"),  # eight others of at most 0.001 cannot have the other half
        ([3, 4], [7.5, 3.5], "expected probabilities"),  # logits
    ],
)
def test_what_are_no_probabilities_is_refused(index: list[int], prob: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_probabilities(np.array([index]), np.array([prob], np.float16), 10)
