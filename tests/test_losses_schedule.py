"""Terms that count in a part of the run alone, and weights that rise or fall in it, step by step.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from logitbank.pipeline.train_student.losses import LOSSES, ExactAnswer, Objective, Step, parse_objective
from tests.test_losses_objective import batch

SWITCH = "kd?ends_at=0.5&temperature=1:1 + reverse_kl?starts_at=0.5:1"


def steps(num_steps: int, steps_per_epoch: int = 1) -> list[Step]:
    num_epochs = num_steps // steps_per_epoch
    return [Step(step=step, steps_per_epoch=steps_per_epoch, num_epochs=num_epochs) for step in range(num_steps)]


def factors(objective: Objective, num_steps: int) -> np.ndarray:
    return np.array([[term.factor(step) for term in objective.terms] for step in steps(num_steps)])


def test_forward_kl_for_the_first_half_and_then_reverse() -> None:
    student_BC, teacher_BC, labels_B = batch()
    objective = parse_objective(SWITCH)
    tensors = student_BC, teacher_BC, labels_B
    forward_B = LOSSES["kd"].fn(*tensors, temperature=1.0)
    reverse_B = LOSSES["reverse_kl"].fn(*tensors, **LOSSES["reverse_kl"].options)
    got = [objective(student_BC, ExactAnswer(teacher_BC), labels_B, step) for step in steps(10, steps_per_epoch=2)]
    assert all(torch.equal(loss_B, forward_B) for loss_B in got[:5])
    assert all(torch.equal(loss_B, reverse_B) for loss_B in got[5:])


@pytest.mark.parametrize("num_steps", [1, 2, 7, 30, 1000])
@pytest.mark.parametrize("bounds", [(0.5,), (0.1, 0.3), (1 / 3, 2 / 3), (0.07, 0.29, 0.58)])
def test_windows_that_meet_share_every_step_out(bounds: tuple[float, ...], num_steps: int) -> None:
    ends = (0.0, *bounds, 1.0)
    text = " + ".join(
        f"kd?temperature={place + 1}&starts_at={start!r}&ends_at={end!r}:2"
        for place, (start, end) in enumerate(itertools.pairwise(ends))
    )
    found = factors(parse_objective(text), num_steps)
    assert np.array_equal(np.sort(found, 1)[:, -1], np.full(num_steps, 2.0))
    assert np.array_equal((found > 0).sum(1), np.ones(num_steps))
    assert (np.diff(found.argmax(1)) >= 0).all()


def test_a_ramp_is_a_straight_line_from_the_first_step_of_its_window_to_the_last() -> None:
    objective = parse_objective("ce?ramp_to=0:2 + kd?starts_at=0.5&ramp_from=0.2&ramp_to=3:0.5")
    found = factors(objective, 12)
    np.testing.assert_allclose(found[:, 0], np.linspace(2.0, 0.0, 12), atol=1e-12)
    np.testing.assert_allclose(found[:, 1], np.concatenate([np.zeros(6), 0.5 * np.linspace(0.2, 3.0, 6)]))
    (alone,) = factors(objective, 1)
    np.testing.assert_allclose(alone, [2.0, 0.1])


def test_a_ramp_multiplies_the_warm_up_of_a_recipe() -> None:
    term = parse_objective("rld", {"ramp_from": 0.5, "warmup": 2}).terms[0]
    assert [term.factor(step) for step in steps(3)] == [0.25, 0.75, 1.0]


def test_a_schedule_is_in_the_settings_where_it_is_not_the_usual_one() -> None:
    first, second = parse_objective(SWITCH).settings["terms"]
    assert (first["ends_at"], second["starts_at"]) == (0.5, 0.5)
    assert not {"starts_at", "ramp_from", "ramp_to"} & set(first)
    plain = parse_objective("kd", {"starts_at": "0", "ends_at": 1.0})
    assert plain.settings == parse_objective("kd").settings
    late, ce = parse_objective("kd", {"starts_at": 0.25}).terms
    assert (late.schedule.starts_at, ce.schedule.starts_at) == (0.25, 0.0)


def test_a_step_whose_weights_are_all_0_has_a_gradient_of_0() -> None:
    student_BC, teacher_BC, labels_B = batch()
    student_BC.requires_grad_()
    first, last = steps(2)
    objective = parse_objective("kd?ramp_to=0:1")
    loss_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, last)
    (gradient_BC,) = torch.autograd.grad(loss_B.sum(), student_BC)
    assert torch.equal(gradient_BC, torch.zeros_like(student_BC))
    assert objective(student_BC, ExactAnswer(teacher_BC), labels_B, first).min() > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kd?ends_at=0.5:1", "no term counts from 0.5 of the steps on"),
        ("kd?starts_at=0.1:1", "no term counts from 0 of the steps on"),
        ("kd?ends_at=0.4:1 + ce?starts_at=0.6:1", r"no term counts from 0.4 .* NAME[?]starts_at=0.4:1"),
        ("kd?starts_at=0.6&ends_at=0.4:1 + ce:1", "expected starts_at below ends_at"),
        ("kd?ramp_from=2&ramp_to=2:1", "is no ramp; change its weight"),
        ("kd?ramp_from=0&ramp_to=0:1", "is no ramp"),
        ("kd?ends_at=0:1", r"in \(0, 1\]"),
        ("kd?starts_at=1:1", r"in \[0, 1\)"),
        ("kd?ramp_to=-1:1", r"in \[0, 1e6\]"),
        ("kd?start_at=0.5:1", "did you mean 'starts_at'"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_objective(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "num_steps", "said"),
    [
        ("kd?starts_at=0.99:1 + ce:1", 3, "kd counts in none of this run's 3 steps, by its starts_at=0.99"),
        ("kd?ends_at=0.1:1 + ce?starts_at=0.1:1", 3, "kd counts in none of this run's 3 steps, by its ends_at=0.1"),
        ("ce:1 + kd?starts_at=0.6&ramp_from=0:1", 2, "by its starts_at=0.6, ramp_from=0; let it count for a larger"),
        ("ce?ramp_to=0:1 + kd?starts_at=0.5:1", 2, None),
        ("kd?starts_at=0.99:1 + ce:1", 100, None),
    ],
)
def test_a_term_that_would_never_count_is_refused(text: str, num_steps: int, said: str | None) -> None:
    objective = parse_objective(text)
    counts = [bool(column.any()) for column in factors(objective, num_steps).T]
    never = [term for term, own in zip(objective.terms, counts, strict=True) if not own]
    assert [term.name for term in never] == ([] if said is None else ["kd"])
    for term in objective.terms:
        if term in never:
            with pytest.raises(ValueError, match=said):
                term.schedule.refuse_none(term.name, num_steps)
        else:
            term.schedule.refuse_none(term.name, num_steps)
