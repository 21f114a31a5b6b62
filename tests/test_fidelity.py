"""What `measure_fidelity` reports and what `choose_encoding` picks."""

import numpy as np
import pytest
import torch

from logitbank.pipeline.cache_teacher.fidelity import choose_encoding, fit_predictor, measure_fidelity
from logitbank.pipeline.encoding import Encoding, ladder
from tests.realdata import DATA, needs
from tests.test_tail_predictor import teacher_logits


def test_lossless_is_exact_and_reports_every_key() -> None:
    encoding = Encoding(kind="dense", num_classes=40, bits=32)
    measured = measure_fidelity(teacher_logits(3000), torch.arange(3000) % 40, encoding, temperatures=(1, 2.5))
    assert measured == {
        "1": 0.0,
        "2.5": 0.0,
        "tail_mass_1": 0.0,
        "tail_mass_2.5": 0.0,
        "top1_agreement": 1.0,
        "num_rows": 3000,
    }


def test_tail_mass_is_what_lies_outside_the_head() -> None:
    logits_NC = torch.log(torch.tensor([[0.5, 0.25, 0.125, 0.125]]))
    encoding = Encoding(kind="topk", num_classes=4, top_k=2)
    measured = measure_fidelity(logits_NC, torch.tensor([0]), encoding, temperatures=(1,))
    assert measured["tail_mass_1"] == pytest.approx(0.25)
    assert measured["1"] == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(ValueError, match="none"):
        measure_fidelity(logits_NC[:0], torch.tensor([]), encoding)


def test_a_tighter_budget_never_picks_a_smaller_encoding() -> None:
    logits_NC, labels_N = teacher_logits(2000), torch.arange(2000) % 40
    sizes = []
    for budget in (1.0, 0.1, 0.01, 1e-4, 1e-9):
        chosen = choose_encoding(logits_NC, labels_N, budget, (1.0, 4.0))
        sizes.append(chosen.row_bytes)
        predictor = fit_predictor(logits_NC, chosen)
        measured = measure_fidelity(teacher_logits(500, seed=3), labels_N[:500], chosen, predictor)
        assert max(measured["1"], measured["4"]) <= 1.3 * budget + 1e-12
    assert sizes == sorted(sizes)
    assert chosen == Encoding(kind="dense", num_classes=40, bits=32)


def test_ladder_is_sorted_and_fits_few_classes() -> None:
    for num_classes in (2, 10, 1000, 21_841):
        sizes = [encoding.row_bytes for encoding in ladder(num_classes)]
        assert sizes == sorted(sizes)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan")])
def test_impossible_budgets_are_refused(budget: float) -> None:
    with pytest.raises(ValueError, match="budget"):
        choose_encoding(teacher_logits(100), torch.zeros(100, dtype=torch.long), budget)


@needs("logits/cifar100_test_logits_resnetsmall32.npy")
def test_real_teacher_keeps_the_measured_order() -> None:
    """C = 100: prediction at least halves the KL at T = 4, one bit a class brings it under a tenth."""
    assert DATA is not None
    logits_NC = torch.from_numpy(np.load(DATA / "logits" / "cifar100_test_logits_resnetsmall32.npy"))
    order = torch.randperm(len(logits_NC), generator=torch.Generator().manual_seed(0))
    fit_NC, test_NC = logits_NC[order[:7000]], logits_NC[order[7000:]]
    labels_N = torch.full((len(test_NC),), -1)
    topk = Encoding(kind="topk", num_classes=100, top_k=10)
    tail = Encoding(kind="topk+tail", num_classes=100, top_k=10, tail_bits=1)
    uniform = measure_fidelity(test_NC, labels_N, topk)
    predicted = measure_fidelity(test_NC, labels_N, topk, fit_predictor(fit_NC, topk))
    coded = measure_fidelity(test_NC, labels_N, tail, fit_predictor(fit_NC, tail))
    assert predicted["1"] < 0.8 * uniform["1"]
    assert predicted["4"] < 0.5 * uniform["4"]
    assert coded["4"] < 0.1 * uniform["4"]
