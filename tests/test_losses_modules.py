"""What a loss keeps from step to step: trained beside the student, saved with it, and gone on with to the same bits.

Shapes: B batch, C classes.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.loop import fit
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.weights import weights_digest
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.losses import ExactAnswer, Loss, Material, Objective, Step, Term
from logitbank.pipeline.train_student.losses.labels import hard_cross_entropy
from logitbank.pipeline.views import Views

FIRST = Step(step=0, steps_per_epoch=1, num_epochs=1)


class Scale(nn.Module):
    """A learned factor, a number drawn at random, and the number of classes that it was made for."""

    def __init__(self, material: Material) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(()))
        self.offset_C = nn.Parameter(torch.randn(material.num_classes))


def scaled_cross_entropy(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, module: Scale) -> Tensor:
    return hard_cross_entropy(module.log_scale.exp() * student_BC + module.offset_C, teacher_BC, labels_B)


def objective() -> Objective:
    loss = Loss(fn=scaled_cross_entropy, paper="", use="", setting="", fits="labels", module=Scale)
    return Objective("scaled", (Term(name="scaled", kind="scaled", loss=loss, weight=1.0),))


def test_modules_are_drawn_from_the_seed_and_nothing_else_is() -> None:
    torch.manual_seed(5)
    first = objective().equipped(Material(num_classes=4), 1).modules["scaled"].state_dict()
    drawn = torch.rand(3)
    torch.manual_seed(5)
    torch.testing.assert_close(torch.rand(3), drawn)
    again, other = (
        objective().equipped(Material(num_classes=4), seed).modules["scaled"].state_dict() for seed in (1, 2)
    )
    assert torch.equal(first["offset_C"], again["offset_C"])
    assert not torch.equal(first["offset_C"], other["offset_C"])


def test_an_objective_without_its_modules_is_refused_and_equipped_learns() -> None:
    batch = torch.zeros(2, 4), ExactAnswer(torch.zeros(2, 4)), torch.tensor([0, 1]), FIRST
    with pytest.raises(ValueError, match="scaled learns while it is used: call equipped first"):
        objective()(*batch)
    equipped = objective().equipped(Material(num_classes=4), 0)
    gradients = torch.autograd.grad(equipped(*batch).sum(), list(equipped.modules.parameters()))
    assert all(bool(gradient.isfinite().all()) for gradient in gradients)
    assert gradients[1].abs().sum() > 0


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_stopped_run_goes_on_with_its_modules_to_the_same_bits(digits: Split, tmp_path: Path, optimizer: str) -> None:
    training = Training(epochs=3, optimizer=optimizer, lr=0.01, grad_clip=1.0, accumulate=2)

    def run(name: str, on_epoch: Callable[[EpochRecord], None] | None = None) -> tuple[str, str]:
        torch.manual_seed(0)
        model, equipped = build_model("mlp:8", digits), objective().equipped(Material(num_classes=10), 0)
        before = weights_digest(equipped.modules.state_dict())
        loss = DistillationLoss(equipped, Unasked(), digits, epochs=3)  # type: ignore[arg-type]
        checkpoint, scaling = Checkpoint(tmp_path / name, every=7), fit_preprocessing(digits)
        fit(
            model,
            digits,
            loss,
            training,
            views=Views(),
            preprocessing=scaling,
            checkpoint=checkpoint,
            on_epoch=on_epoch,
        )
        assert weights_digest(equipped.modules.state_dict()) != before
        return weights_digest(model.state_dict()), weights_digest(equipped.modules.state_dict())

    def stop(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    whole = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    with safe_open(tmp_path / "stopped", framework="pt") as file:
        assert {"beside.scaled.log_scale", "beside.scaled.offset_C"} <= set(file.keys())
    assert run("stopped") == whole


class Unasked:
    """Answers of a teacher that no loss asks."""

    def of(self, rows_B: Tensor, view: Any) -> ExactAnswer:
        return ExactAnswer(torch.zeros(len(rows_B), 10))
