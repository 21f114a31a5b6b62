"""Row weights and temperature rules: each against its formula, and the laws that hold for all of them.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.utils.class_weight import compute_sample_weight

from logitbank.pipeline.train_student.losses import ExactAnswer, RatedAnswer, Step, parse_objective
from logitbank.pipeline.train_student.losses.class_weights import effective_number, inverse_frequency
from logitbank.pipeline.train_student.losses.row_rules import (
    ROW_WEIGHTS,
    TEMPERATURE_RULES,
    row_temperatures,
    row_weights,
)
from logitbank.pipeline.train_student.losses.row_weights import (
    difficulty_temperature,
    entropy_gap,
    entropy_gate,
    label_noise,
    paced,
    teacher_ahead,
    teacher_confidence,
)
from tests.test_losses import rows

NAMES = sorted(ROW_WEIGHTS)
COUNTS = (500, 100, 50, 20, 10, 5, 2, 1, 1, 0)


def test_confidence_is_the_largest_probability_to_a_power() -> None:
    batch = rows(8, 10, dtype=torch.float64)
    top_B = torch.softmax(batch[1], 1).amax(1)
    torch.testing.assert_close(teacher_confidence(*batch), top_B)
    torch.testing.assert_close(teacher_confidence(*batch, confidence_power=-2.0), top_B**-2)


def test_the_entropy_gate_is_soft_or_hard() -> None:
    batch = rows(8, 10, dtype=torch.float64)
    share_B = torch.from_numpy(np.asarray(entropy(torch.softmax(batch[1], 1).numpy(), axis=1))) / math.log(10)
    torch.testing.assert_close(entropy_gate(*batch), 1 - share_B)
    torch.testing.assert_close(entropy_gate(*batch, entropy_keep="uncertain"), share_B)
    hard_B = entropy_gate(*batch, entropy_threshold=0.5)
    assert torch.equal(hard_B, (share_B <= 0.5).double())
    assert 0 < int(hard_B.sum()) < 8


def test_paced_peaks_at_the_edge_of_competence() -> None:
    student_BC, teacher_BC, labels_B = rows(8, 10, dtype=torch.float64)
    p_B = torch.softmax(student_BC, 1).gather(1, labels_B[:, None])[:, 0]
    torch.testing.assert_close(paced(student_BC, teacher_BC, labels_B), p_B * (1 - p_B))
    got_B = paced(student_BC, teacher_BC, labels_B, paced_a=2.0, paced_b=0.5)
    torch.testing.assert_close(got_B, p_B**2 * (1 - p_B) ** 0.5)
    by_teacher_B = paced(student_BC, teacher_BC, labels_B, paced_by="teacher")
    torch.testing.assert_close(by_teacher_B, paced(teacher_BC, student_BC, labels_B))


def test_paced_by_views_goes_by_how_often_teachers_are_right() -> None:
    batch, rate_B = rows(8, 10, dtype=torch.float64), torch.tensor([0, 0.25, 0.5, 0.75, 1, 1, math.nan, 0.5])
    weight_B = paced(*batch, paced_by="views", paced_a=2.0, paced_b=0.5, rate_B=rate_B)
    p_B = rate_B.double().nan_to_num(0.5)
    torch.testing.assert_close(weight_B, p_B**2 * (1 - p_B) ** 0.5)
    student_BC, teacher_BC, labels_B = rows(8, 10)
    objective = parse_objective("kd", {"row_weight": "paced", "paced_by": "views"})
    assert {"out_of_fold", "labels"} <= objective.needs
    step, answer = Step(step=0, steps_per_epoch=1, num_epochs=1), ExactAnswer(teacher_BC, out_of_fold=True)
    got_B = objective(student_BC, RatedAnswer(answer, rate_B), labels_B, step)
    plain_B = parse_objective("kd")(student_BC, answer, labels_B, step)
    want_B = row_weights("paced", student_BC, teacher_BC, labels_B, {"paced_by": "views"}, rate_B=rate_B)
    torch.testing.assert_close(got_B, plain_B * want_B)
    with pytest.raises(ValueError, match="pass a RatedAnswer"):
        objective(student_BC, answer, labels_B, step)


def test_the_entropy_gap_prefers_rows_of_which_the_teacher_is_surer() -> None:
    student_BC, teacher_BC, labels_B = rows(8, 10, dtype=torch.float64)
    of_teacher_B, of_student_B = (
        np.asarray(entropy(torch.softmax(part, 1).numpy(), axis=1)) for part in (teacher_BC, student_BC)
    )
    want_B = 1 / (1 + np.exp(of_teacher_B - of_student_B))
    torch.testing.assert_close(entropy_gap(student_BC, teacher_BC, labels_B), torch.from_numpy(want_B))


def test_the_teacher_is_ahead_where_it_gives_the_label_more() -> None:
    student_BC, teacher_BC, labels_B = rows(8, 10, dtype=torch.float64)
    p_B, q_B = (torch.softmax(part, 1).gather(1, labels_B[:, None])[:, 0].numpy() for part in (teacher_BC, student_BC))
    want_B = np.where(p_B > q_B, np.log(p_B / q_B), 0.0)
    torch.testing.assert_close(teacher_ahead(student_BC, teacher_BC, labels_B), torch.from_numpy(want_B))
    assert 0 < (want_B == 0).sum() < 8


def test_label_noise_is_1_where_the_teacher_agrees_and_small_where_it_does_not() -> None:
    batch = rows(8, 10, dtype=torch.float64)
    p_BC = torch.softmax(batch[1], 1)
    ratio_B = p_BC.gather(1, batch[2][:, None])[:, 0] / p_BC.amax(1)
    weight_B = label_noise(*batch, noise_power=2.0)
    torch.testing.assert_close(weight_B, ratio_B**2)
    assert torch.equal(weight_B == 1.0, batch[1].argmax(1) == batch[2])


def test_the_difficulty_temperature_is_sharp_on_hard_rows() -> None:
    student_BC, teacher_BC, _ = rows(9, 10, dtype=torch.float64)
    p_BC, q_BC = torch.softmax(teacher_BC, 1), torch.softmax(student_BC, 1)
    distance_B = ((p_BC.sqrt() - q_BC.sqrt()).square().sum(1) / 2).sqrt()
    want_B = 4.0 * torch.exp(-0.7 * torch.tanh(torch.log(distance_B / distance_B.median())))
    got_B = difficulty_temperature(student_BC, teacher_BC, temperature=4.0, difficulty_c=0.7)
    torch.testing.assert_close(got_B, want_B)
    assert torch.equal(got_B.argsort(), distance_B.argsort(descending=True))
    assert got_B.min() >= 4.0 * math.exp(-0.7)
    assert got_B.max() <= 4.0 * math.exp(0.7)


def test_inverse_frequency_balances_the_classes() -> None:
    student_BC, teacher_BC, labels_B = rows(200, 4, dtype=torch.float64)
    labels_B = labels_B.clamp(max=2)  # a class that does not occur
    counts_C = torch.bincount(labels_B, minlength=4).double()
    weight_B = inverse_frequency(student_BC, teacher_BC, labels_B, class_counts_C=counts_C)
    want_B = compute_sample_weight("balanced", labels_B.numpy())
    torch.testing.assert_close(weight_B, torch.from_numpy(want_B))
    half_B = inverse_frequency(student_BC, teacher_BC, labels_B, class_counts_C=counts_C, class_power=0.5)
    torch.testing.assert_close(half_B / half_B[0], (weight_B / weight_B[0]).sqrt())


def test_the_effective_number_is_cuis_and_lies_between_none_and_inverse_frequency() -> None:
    student_BC, teacher_BC, _ = rows(50, 3, dtype=torch.float64)
    counts_C = torch.tensor([10.0, 200.0, 5000.0], dtype=torch.float64)

    def weights(beta: float) -> torch.Tensor:
        labels_B = torch.tensor([0, 1, 2]).repeat(17)[:50]
        return effective_number(student_BC, teacher_BC, labels_B, class_counts_C=counts_C, class_beta=beta)[:3]

    raw_C = (1 - 0.99) / (1 - np.power(0.99, counts_C.numpy()))
    want_C = raw_C * counts_C.sum().item() / (raw_C * counts_C.numpy()).sum()
    torch.testing.assert_close(weights(0.99), torch.from_numpy(want_C))
    inverse_C = counts_C.sum() / (3 * counts_C)
    torch.testing.assert_close(weights(1 - 1e-9), inverse_C, rtol=1e-4, atol=0)
    torch.testing.assert_close(weights(1e-9), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("name", [name for name in NAMES if ROW_WEIGHTS[name].counts])
def test_a_class_without_a_label_is_the_teachers(name: str) -> None:
    student_BC, teacher_BC, labels_B = rows(16, 10)
    said_B = torch.where(torch.arange(16) < 8, labels_B, -1)
    told_B = torch.where(torch.arange(16) < 8, labels_B, teacher_BC.argmax(1))
    weight_B = row_weights(name, student_BC, teacher_BC, said_B, {}, COUNTS)
    assert torch.equal(weight_B, row_weights(name, student_BC, teacher_BC, told_B, {}, COUNTS))
    with pytest.raises(ValueError, match=r"found 0 of 10 counts; pass objective\.with_class_counts"):
        row_weights(name, student_BC, teacher_BC, labels_B, {})


def test_a_term_of_labels_weighs_by_labels_alone() -> None:
    """Rows without a label have no part in it, and its weights do not hang on them; no teacher is asked."""
    student_BC, teacher_BC, labels_B = rows(16, 10)
    said_B = torch.where(torch.arange(16) < 8, labels_B, -1)
    objective = parse_objective("ce", {"row_weight": "inverse_frequency"}).with_class_counts(COUNTS)
    assert not objective.uses_teacher
    step = Step(step=0, steps_per_epoch=1, num_epochs=1)
    both_B = objective(student_BC, ExactAnswer(teacher_BC), said_B, step)
    alone_B = objective(student_BC[:8], ExactAnswer(teacher_BC[:8]), labels_B[:8], step)
    torch.testing.assert_close(both_B, torch.cat([alone_B, torch.zeros(8)]))
    assert parse_objective("kd", {"row_weight": "inverse_frequency"}).uses_teacher


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"row_weight_floor": 0.2}])
def test_weights_are_positive_without_gradient_and_1_on_average(name: str, options: dict[str, Any]) -> None:
    student_BC, teacher_BC, labels_B = rows(16, 10)
    student_BC.requires_grad_()
    weight_B = row_weights(name, student_BC, teacher_BC, labels_B, options, COUNTS)
    assert not weight_B.requires_grad
    assert weight_B.shape == (16,)
    assert (weight_B > 0).all()
    torch.testing.assert_close(weight_B.mean(), torch.tensor(1.0))
    raw_B = row_weights(name, student_BC, teacher_BC, labels_B, options | {"row_weight_mean_one": False}, COUNTS)
    assert raw_B.min() >= options.get("row_weight_floor", 0.01)
    torch.testing.assert_close(weight_B, raw_B / raw_B.mean())


@pytest.mark.parametrize("name", NAMES)
def test_unlabelled_rows_weigh_1_where_the_rule_needs_a_label(name: str) -> None:
    student_BC, teacher_BC, labels_B = rows(16, 10)
    labels_B[3:7] = -1
    weight_B = row_weights(name, student_BC, teacher_BC, labels_B, {}, COUNTS)
    if "labels" in ROW_WEIGHTS[name].needs:
        assert torch.equal(weight_B[3:7], torch.ones(4))
        kept = labels_B >= 0
        alone_B = row_weights(name, student_BC[kept], teacher_BC[kept], labels_B[kept], {}, COUNTS)
        torch.testing.assert_close(weight_B[kept], alone_B)
    none_B = row_weights(name, student_BC, teacher_BC, torch.full_like(labels_B, -1), {}, COUNTS)
    assert none_B.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_finite_at_extremes(name: str) -> None:
    student_BC, teacher_BC, labels_B = rows(16, 10)
    student_BC[::2, 0], teacher_BC[::4, 0], teacher_BC[1::4, 1] = 1e4, -1e4, 1e4
    labels_B[:8] = 0
    for options in ({}, {"row_weight_mean_one": False}):
        assert row_weights(name, student_BC, teacher_BC, labels_B, options, COUNTS).isfinite().all()


@pytest.mark.parametrize("name", sorted(name for name, rule in TEMPERATURE_RULES.items() if not rule.learns))
def test_temperatures_are_positive_finite_and_without_gradient(name: str) -> None:
    student_BC, teacher_BC, _ = rows(16, 10)
    student_BC[::2, 0], teacher_BC[::4, 0] = 1e4, -1e4
    teacher_BC[3] = student_BC[3]
    student_BC.requires_grad_()
    temperature_B = row_temperatures(name, student_BC, teacher_BC, 4.0, {})
    assert temperature_B.shape == (16,)
    assert temperature_B.isfinite().all()
    assert (temperature_B > 0).all()
    assert not temperature_B.requires_grad
