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

from logitbank.pipeline.train_student.losses.row_weights import (
    ROW_WEIGHTS,
    TEMPERATURE_RULES,
    difficulty_temperature,
    entropy_gate,
    label_noise,
    paced,
    row_temperatures,
    row_weights,
    teacher_confidence,
)
from tests.test_losses import rows

NAMES = sorted(ROW_WEIGHTS)


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"row_weight_floor": 0.2}])
def test_weights_are_positive_without_gradient_and_1_on_average(name: str, options: dict[str, Any]) -> None:
    student_BC, teacher_BC, labels_B = rows(16, 10)
    student_BC.requires_grad_()
    weight_B = row_weights(name, student_BC, teacher_BC, labels_B, options)
    assert not weight_B.requires_grad
    assert weight_B.shape == (16,)
    assert (weight_B > 0).all()
    torch.testing.assert_close(weight_B.mean(), torch.tensor(1.0))
    raw_B = row_weights(name, student_BC, teacher_BC, labels_B, options | {"row_weight_mean_one": False})
    assert raw_B.min() >= options.get("row_weight_floor", 0.01)
    torch.testing.assert_close(weight_B, raw_B / raw_B.mean())


@pytest.mark.parametrize("name", NAMES)
def test_unlabelled_rows_weigh_1_where_the_rule_needs_a_label(name: str) -> None:
    student_BC, teacher_BC, labels_B = rows(16, 10)
    labels_B[3:7] = -1
    weight_B = row_weights(name, student_BC, teacher_BC, labels_B, {})
    if "labels" in ROW_WEIGHTS[name].needs:
        assert torch.equal(weight_B[3:7], torch.ones(4))
        kept = labels_B >= 0
        alone_B = row_weights(name, student_BC[kept], teacher_BC[kept], labels_B[kept], {})
        torch.testing.assert_close(weight_B[kept], alone_B)
    none_B = row_weights(name, student_BC, teacher_BC, torch.full_like(labels_B, -1), {})
    assert none_B.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_finite_at_extremes(name: str) -> None:
    student_BC, teacher_BC, labels_B = rows(16, 10)
    student_BC[::2, 0], teacher_BC[::4, 0], teacher_BC[1::4, 1] = 1e4, -1e4, 1e4
    labels_B[:8] = 0
    for options in ({}, {"row_weight_mean_one": False}):
        assert row_weights(name, student_BC, teacher_BC, labels_B, options).isfinite().all()


@pytest.mark.parametrize("name", sorted(TEMPERATURE_RULES))
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
