"""What objectives learn, and what they find by feedback: CTKD's temperature, Kendall's weights, AdaKD's selection.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models.weights import load_state, weights_digest
from logitbank.pipeline.train_student.folder import CHECKPOINT, WEIGHTS
from logitbank.pipeline.train_student.losses import LOSSES, ExactAnswer, Material, Objective, Step, parse_objective
from logitbank.pipeline.train_student.losses.feedback import Feedback
from logitbank.pipeline.train_student.losses.learned import LearnedTemperature
from logitbank.pipeline.train_student.losses.own import own_loss
from logitbank.pipeline.train_student.losses.table import EVERY_LOSS
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train
from tests.test_losses_objective import batch

Settings = dict[str, str | float]
MATERIAL = Material(num_classes=10)


def at(step: int, num_steps: int = 100, steps_per_epoch: int = 1) -> Step:
    return Step(step=step, steps_per_epoch=steps_per_epoch, num_epochs=num_steps // steps_per_epoch)


def equipped(text: str, settings: Settings) -> Objective:
    return parse_objective(text, settings).equipped(MATERIAL, 0)


@pytest.mark.parametrize(("epoch", "turned"), [(1, 0.0244717), (5, 0.5), (10, 1.0), (40, 1.0)])
def test_a_learned_temperature_climbs_the_loss_more_and_more(epoch: int, turned: float) -> None:
    student_BC, teacher_BC, labels_B = (part.double() if part.is_floating_point() else part for part in batch())
    objective = equipped("kd:1", {"temperature_rule": "learned", "temperature": 4})
    assert objective.learned == {"temperature of kd": pytest.approx(4.0)}
    theta = next(objective.modules.parameters())
    loss_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, at(epoch - 1))
    plain_B = LOSSES["kd"].fn(student_BC, teacher_BC, labels_B, temperature=4.0)
    torch.testing.assert_close(loss_B, plain_B, rtol=1e-5, atol=1e-5)
    (found,) = torch.autograd.grad(loss_B.sum(), theta)
    eps, share = 1e-3, 3.0 / 20.0
    above, below = (
        float(LOSSES["kd"].fn(student_BC, teacher_BC, labels_B, temperature=4.0 + way).sum()) for way in (eps, -eps)
    )
    slope = (above - below) / (2 * eps) * 20.0 * share * (1 - share)  # dT / dtheta
    assert float(found) == pytest.approx(-turned * slope, rel=1e-3)


def test_the_authors_temperature_starts_at_theta_1() -> None:
    module = LearnedTemperature(1 + 20 / (1 + math.exp(-1)), lowest=1.0, width=20.0, epochs=10.0)
    assert float(module.theta.detach()) == pytest.approx(1.0, abs=1e-5)
    with pytest.raises(ValueError, match=r"temperature=1; expected it between learned_lowest=1 and 21"):
        equipped("kd", {"temperature_rule": "learned", "temperature": 1})
    wide = equipped("kd", {"temperature_rule": "learned", "learned_lowest": 0.5, "learned_width": 4, "temperature": 2})
    assert wide.learned["temperature of kd"] == pytest.approx(2.0)


def test_learned_weights_are_kendalls() -> None:
    student_BC, teacher_BC, labels_B = batch()
    objective = equipped("kd:2 + ce:0.5", {"learned_weights": 1})
    variance = next(objective.modules.parameters())
    with torch.no_grad():
        variance.copy_(torch.tensor([0.7, -1.2]))
    got_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, at(0))
    kd_B = 2 * LOSSES["kd"].fn(student_BC, teacher_BC, labels_B, temperature=4.0)
    ce_B = 0.5 * LOSSES["ce"].fn(student_BC, teacher_BC, labels_B)
    torch.testing.assert_close(got_B, math.exp(-0.7) * kd_B + 0.35 + math.exp(1.2) * ce_B - 0.6)
    (gradient,) = torch.autograd.grad(got_B.mean(), variance)
    want = [0.5 - math.exp(-0.7) * float(kd_B.mean()), 0.5 - math.exp(1.2) * float(ce_B.mean())]
    torch.testing.assert_close(gradient, torch.tensor(want))
    assert objective.learned == {
        "weight of kd": pytest.approx(math.exp(-0.7)),
        "weight of ce": pytest.approx(math.exp(1.2)),
    }
    with torch.no_grad():
        variance.fill_(-50.0)
    assert objective(student_BC, ExactAnswer(teacher_BC), labels_B, at(0)).isfinite().all()


@pytest.mark.parametrize("name", [name for name, loss in EVERY_LOSS.items() if loss.below_zero])
def test_weights_are_not_learned_of_a_loss_that_may_be_negative(name: str) -> None:
    """Such a weight would grow to its bound, and nothing else would be learned."""
    with pytest.raises(ValueError, match=f"lowers the weight of a loss that is large, and {name} may be negative"):
        parse_objective(f"ce:1 + {name}:1", {"learned_weights": 1})


def test_weights_are_not_learned_of_a_negative_loss_of_ones_own() -> None:
    def agreement(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
        return -(student_BC.softmax(1) * teacher_BC.softmax(1)).sum(1)

    own = {"agreement": own_loss(agreement)}
    assert parse_objective("ce:1 + agreement:1", own=own).terms[1].loss.below_zero
    with pytest.raises(ValueError, match="and agreement may be negative"):
        parse_objective("ce:1 + agreement:1", {"learned_weights": 1}, own=own)


def test_what_learns_is_refused_where_it_does_nothing_or_was_not_made() -> None:
    with pytest.raises(ValueError, match="learned_weights=1 weighs terms against each other, and 'kd:1' is one"):
        parse_objective("kd:1", {"learned_weights": 1})
    assert "learned_weights" not in parse_objective("kd", {"learned_weights": 0}).settings
    assert parse_objective("kd", {"learned_weights": 1}).settings["learned_weights"] is True
    settings: list[Settings] = [{"learned_weights": 1}, {"temperature_rule": "learned"}, {"row_weight": "hardest"}]
    student_BC, teacher_BC, labels_B = batch()
    for each in settings:
        with pytest.raises(ValueError, match="call equipped first"):
            parse_objective("kd", each)(student_BC, ExactAnswer(teacher_BC), labels_B, at(0))


def simulated(
    losses: np.ndarray, memory: float, epsilon: float, delta: float, warmup: int, least: float
) -> list[float]:
    """Algorithm 1 of AdaKD, as it is written: the share of each step."""
    kept, average, reference, found = 1.0, None, 0.0, []
    for step, loss in enumerate(losses):
        found.append(kept)
        average = loss if average is None else memory * average + (1 - memory) * loss
        if step < max(warmup, 1):
            reference = average
            continue
        before = kept
        if average < reference * (1 - epsilon):
            kept = max(kept * (1 - delta), least)
        elif average > reference * (1 + epsilon):
            kept = min(kept * (1 + delta), 1.0)
        if kept != before:
            reference = average
    return found


@pytest.mark.parametrize("warmup", [0.0, 0.1])
@pytest.mark.parametrize("least", [0.1, 0.6])
def test_feedback_is_the_papers_algorithm(warmup: float, least: float) -> None:
    generator = np.random.default_rng(0)
    trend = np.concatenate([np.linspace(4, 1, 100), np.linspace(1, 3, 100)])
    losses = trend * generator.uniform(0.8, 1.2, 200)
    options = {"memory": 0.8, "epsilon": 0.05, "delta": 0.1, "least": least}
    feedback, found = Feedback(**options, warmup=warmup), []
    for step, loss in enumerate(losses):
        for _ in range(2):  # passes of one step
            share = feedback.share(at(step, 200))
            feedback.observe(torch.tensor(loss * 3), torch.tensor(3.0))
        found.append(share)
    want = simulated(losses, **options, warmup=round(warmup * 200))
    np.testing.assert_allclose(found, want, rtol=1e-4)
    assert min(want) < 0.7
    assert len(set(want)) >= 8


def test_the_hardest_rows_are_kept_and_the_mean_is_theirs() -> None:
    student_BC, teacher_BC, labels_B = batch(10)
    student_BC.requires_grad_()
    settings: Settings = {"row_weight": "hardest", "row_weight_floor": 0}
    objective = equipped("reverse_kl:1", settings)
    feedback = next(module for module in objective.modules.values() if isinstance(module, Feedback))
    feedback.kept.fill_(0.35)
    got_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, at(50))
    p_BC, q_BC = (part.detach().double().softmax(1) for part in (teacher_BC, student_BC))
    distance_B = (p_BC.sqrt() - q_BC.sqrt()).square().sum(1)
    hard_B = distance_B.argsort(descending=True)[:4]  # a share of 0.35 of 10 rows, rounded up
    plain_B = LOSSES["reverse_kl"].fn(student_BC, teacher_BC, labels_B, temperature=1.0)
    assert set(got_B.detach().nonzero().flatten().tolist()) == set(hard_B.tolist())
    torch.testing.assert_close(got_B.mean(), plain_B[hard_B].mean())
    torch.testing.assert_close(feedback.total / feedback.count, plain_B[hard_B].mean().detach())
    with torch.no_grad():  # who only measures feeds nothing back
        before = float(feedback.total)
        objective(student_BC.detach(), ExactAnswer(teacher_BC), labels_B, at(50))
    assert float(feedback.total) == before


@pytest.fixture(scope="module")
def store(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("learned")
    logits = np.random.default_rng(5).normal(size=(len(digits), 10)) + 4 * np.eye(10)[digits.labels]
    np.save(folder / "l.npy", logits.astype(np.float32))
    answers = ArrayTeacher(folder / "l.npy", digits, Views())
    cache_teacher(answers, folder / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=16))
    return open_store(folder / "s.zarr")


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_goes_on_to_the_same_bits_with_all_it_has_learned(
    store: Store, digits: Split, tmp_path: Path, optimizer: str
) -> None:
    settings = {
        **{"temperature_rule": "learned", "row_weight": "hardest", "learned_weights": "1"},
        **{"feedback_memory": "0.5", "feedback_delta": "0.1", "learned_epochs": "2"},
    }
    run = {"loss": "kd", "settings": settings, "epochs": 3, "optimizer": optimizer, "lr": 0.02, "accumulate": 2}

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    whole = train(store, digits, None, tmp_path / "whole", asked=run)
    with pytest.raises(KeyboardInterrupt):
        train(store, digits, None, tmp_path / "stopped", asked=run | {"checkpoint_every": 13}, on_epoch=stop)
    with safe_open(tmp_path / "stopped" / CHECKPOINT, framework="pt") as file:
        assert {"beside.rows of kd.kept", "beside.temperature of kd.theta"} <= set(file.keys())
    again = train(store, digits, None, tmp_path / "stopped", asked=run | {"checkpoint_every": 13})
    assert weights_digest(load_state(tmp_path / "whole" / WEIGHTS)) == weights_digest(
        load_state(tmp_path / "stopped" / WEIGHTS)
    )
    assert again["learned"] == whole["learned"]
    assert set(whole["learned"]) == {"kept rows of kd", "temperature of kd", "weight of kd", "weight of ce"}
    assert 0.1 <= whole["learned"]["kept rows of kd"] < 1
    assert whole["learned"]["temperature of kd"] != pytest.approx(4.0, abs=1e-3)
    assert whole["learned"]["weight of kd"] != pytest.approx(1.0, abs=1e-3)


def test_a_run_that_learns_nothing_beside_says_nothing_of_it(store: Store, digits: Split, tmp_path: Path) -> None:
    assert "learned" not in train(store, digits, None, tmp_path, asked={"epochs": 1})


def test_gradients_of_a_temperature_reach_the_student_as_those_of_a_fixed_one() -> None:
    student_BC, teacher_BC, labels_B = batch()
    grads: list[Tensor] = []
    for settings in ({"temperature_rule": "learned"}, {}):
        asked: Settings = {"temperature": 4, **settings}
        followed_BC = student_BC.clone().requires_grad_()
        loss_B = equipped("kd:1", asked)(followed_BC, ExactAnswer(teacher_BC), labels_B, at(0))
        grads += torch.autograd.grad(loss_B.sum(), followed_BC)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-6)
