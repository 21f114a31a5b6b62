"""Every measure against its library, on random answers: few and many classes, classes that do not occur, ties."""

import numpy as np
import pytest
import sklearn.metrics as reference
import torch
import torch.nn.functional as F
from scipy.stats import entropy
from torch import Tensor

from logitbank.pipeline import domains
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.metrics import (
    ECE_BINS,
    METRICS,
    accuracy_interval,
    confusion,
    measure,
    measure_agreement,
    measure_classes,
)

prepare_torchvision()  # torchmetrics imports it
from torchmetrics.functional.classification import (  # noqa: E402
    binary_auroc,
    multiclass_calibration_error,
    multiclass_f1_score,
)

# name -> classes, which of them occur, how sure the answers are
CASES = {
    "binary": (2, 2, 1.0),
    "ten": (10, 10, 2.0),
    "missing": (10, 6, 2.0),
    "many": (100, 80, 1.0),
    "sure": (5, 5, 30.0),
    "ties": (4, 3, 0.0),
}


def draw(case: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    classes, occur, sure = CASES[case]
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(0, occur, (500,), generator=generator)
    logits_NC = sure * (torch.randn(500, classes, generator=generator) + F.one_hot(labels_N, classes))
    return logits_NC, labels_N


@pytest.mark.parametrize("case", CASES)
def test_measures_are_the_libraries(case: str) -> None:
    logits_NC, labels_N = draw(case)
    found = measure(logits_NC, labels_N)
    assert list(found) == ["num_rows", *METRICS]
    labels, prob, predicted = labels_N.numpy(), logits_NC.double().softmax(1), logits_NC.argmax(1).numpy()
    classes = logits_NC.shape[1]
    every = np.arange(classes)
    expected = {
        "accuracy": reference.accuracy_score(labels, predicted),
        "balanced_accuracy": np.mean([(predicted == label)[labels == label].mean() for label in np.unique(labels)]),
        "f1": reference.f1_score(labels, predicted, average="macro", zero_division=0),
        "brier": reference.brier_score_loss(labels, prob.numpy(), labels=every, scale_by_half=False),
        "ece": float(multiclass_calibration_error(prob, labels_N, classes, n_bins=ECE_BINS)),
    }
    if set(predicted) <= set(labels):  # it warns of others
        expected["balanced_accuracy"] = reference.balanced_accuracy_score(labels, predicted)
    if case != "ties":
        expected["f1"] = float(multiclass_f1_score(logits_NC, labels_N, classes, average="macro"))
    if case != "sure":  # log loss clips
        expected["nll"] = reference.log_loss(labels, prob.numpy(), labels=every)
    if classes > 5 and case != "ties":
        expected["top5_accuracy"] = reference.top_k_accuracy_score(labels, logits_NC.numpy(), k=5, labels=every)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, abs=1e-6), name


@pytest.mark.parametrize("case", CASES)
def test_auc_is_the_libraries(case: str) -> None:
    logits_NC, labels_N = draw(case)
    labels, prob_NC = labels_N.numpy(), logits_NC.double().softmax(1)
    found, occur = measure(logits_NC, labels_N, ["auc"])["auc"], int(labels.max()) + 1
    one_by_one = [float(binary_auroc(prob_NC[:, label], (labels_N == label).long())) for label in range(occur)]
    assert found == pytest.approx(np.mean(one_by_one), abs=1e-6)
    if case == "binary":
        assert found == pytest.approx(reference.roc_auc_score(labels, prob_NC[:, 1].numpy()))
    elif occur == logits_NC.shape[1]:
        assert found == pytest.approx(reference.roc_auc_score(labels, prob_NC.numpy(), multi_class="ovr"))
    elif case == "ties":
        assert found == 0.5


def test_one_class_has_no_auc_and_fewer_classes_than_five_are_all_right() -> None:
    found = measure(torch.randn(20, 3), torch.ones(20, dtype=torch.int64))
    assert found["auc"] is None
    assert found["top5_accuracy"] == 1


def test_nll_of_what_is_sure_and_wrong_is_not_clipped() -> None:
    assert measure(torch.tensor([[1000.0, 0.0]]), torch.tensor([1]), ["nll"]) == {"num_rows": 1, "nll": 1000.0}


def test_classes_are_measured_each_by_itself() -> None:
    logits_NC, labels_N = draw("missing")
    by_class = measure_classes(logits_NC, labels_N)
    assert sorted(by_class) == list(range(6))
    recall_C = reference.recall_score(labels_N, logits_NC.argmax(1), labels=range(6), average=None)
    assert [row["accuracy"] for row in by_class.values()] == pytest.approx(list(recall_C))
    said = reference.precision_recall_fscore_support(labels_N, logits_NC.argmax(1), labels=range(6), zero_division=0)
    for name, want_C in zip(("precision", "accuracy", "f1", "num_rows"), said, strict=True):
        assert [row[name] for row in by_class.values()] == pytest.approx(list(want_C))
    mean = np.average([row["nll"] for row in by_class.values()], weights=[row["num_rows"] for row in by_class.values()])
    assert mean == pytest.approx(measure(logits_NC, labels_N)["nll"])


@pytest.mark.parametrize("case", CASES)
def test_confusion_is_scikit_learns_matrix_without_its_zeros(case: str) -> None:
    logits_NC, labels_N = draw(case)
    want_CC = reference.confusion_matrix(labels_N, logits_NC.argmax(1), labels=range(logits_NC.shape[1]))
    found_CC = np.zeros_like(want_CC)
    pairs = confusion(logits_NC, labels_N)
    for label, predicted, count in pairs:
        found_CC[label, predicted] = count
    assert (found_CC == want_CC).all()
    assert len(pairs) == (want_CC > 0).sum()


def test_agreement_and_kl_are_the_libraries() -> None:
    student_NC, labels_N = draw("ten")
    teacher_NC, _ = draw("ten", seed=1)
    found = measure_agreement(student_NC, teacher_NC, labels_N)
    p_NC, q_NC = (torch.softmax(logits.double(), 1).numpy() for logits in (teacher_NC, student_NC))
    assert found["kl"] == pytest.approx(entropy(p_NC, q_NC, axis=1).mean())
    assert found["agreement"] == reference.accuracy_score(teacher_NC.argmax(1), student_NC.argmax(1))
    assert found["student_accuracy"] == reference.accuracy_score(labels_N, student_NC.argmax(1))


def test_every_measure_says_which_way_is_better() -> None:
    assert list(domains.METRICS) == list(METRICS)
    worse, labels_N = draw("ten")
    better = worse + 6 * F.one_hot(labels_N, 10)
    good, bad = measure(better, labels_N), measure(worse, labels_N)
    for name, higher in domains.METRICS.items():
        assert (good[name] > bad[name]) == higher, name


@pytest.mark.parametrize(("right", "rows"), [(0, 1), (1, 1), (97, 97), (0, 30), (950, 1000), (3, 7)])
def test_intervals_of_an_accuracy_are_those_of_wilson(right: int, rows: int) -> None:
    low, high = accuracy_interval(right / rows, rows)
    z, p = 1.959963984540054, right / rows
    middle = (p + z**2 / (2 * rows)) / (1 + z**2 / rows)
    half = z / (1 + z**2 / rows) * np.sqrt(p * (1 - p) / rows + z**2 / (4 * rows**2))
    assert (low, high) == pytest.approx((middle - half, middle + half), abs=1e-9)
    assert 0 <= low <= p <= high <= 1
