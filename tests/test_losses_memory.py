"""Losses that remember each example: their formula, and runs that go on with what they remembered.

Shapes: B batch, C classes, N examples.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy import special

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.train_student.folder import CHECKPOINT
from logitbank.pipeline.train_student.losses import ExactAnswer, Material, Step, parse_objective
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

N, C = 9, 4


@pytest.fixture(scope="module")
def store(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("memory")
    np.save(folder / "a.npy", 4 * np.eye(10, dtype=np.float32)[digits.labels])
    teacher = ArrayTeacher(folder / "a.npy", digits, Views())
    cache_teacher(teacher, folder / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=32))
    return open_store(folder / "s.zarr")


def test_what_is_remembered_is_a_running_mean_of_each_example() -> None:
    """A second time in numpy, example by example, over steps that show them in different orders."""
    objective = parse_objective("elr:2 + ce:1", {"keep": 0.6}).equipped(Material(num_classes=C, num_examples=N), 0)
    generator, mean = torch.Generator().manual_seed(0), np.zeros((N, C))
    for step, rows in enumerate(([0, 3, 5], [5, 1, 0], [8, 0, 5])):
        logits_BC = 2 * torch.randn(3, C, generator=generator)
        labels_B = torch.tensor([0, 1, 3])
        where = Step(step=step, steps_per_epoch=3, num_epochs=1, rows_B=torch.tensor(rows))
        loss_B = objective(logits_BC, ExactAnswer(torch.zeros(3, C)), labels_B, where)
        for row, logits, label, found in zip(rows, logits_BC.numpy(), labels_B.tolist(), loss_B.tolist(), strict=True):
            q = special.softmax(logits.astype(np.float64))
            mean[row] = 0.6 * mean[row] + 0.4 * q
            assert found == pytest.approx(2 * np.log(1 - mean[row] @ q) - np.log(q[label]), rel=1e-4)


def test_it_is_finite_and_pulls_towards_what_was_said_before() -> None:
    objective = parse_objective("elr:1").equipped(Material(num_classes=C, num_examples=N), 0)
    sure_BC = torch.tensor([[1e4, 0.0, 0.0, -1e4], [3.0, 0.0, 0.0, 0.0]])
    for step in range(2):
        where = Step(step=step, steps_per_epoch=2, num_epochs=1, rows_B=torch.tensor([0, 1]))
        student_BC = sure_BC.clone().requires_grad_()
        loss_B = objective(student_BC, ExactAnswer(torch.zeros(2, C)), torch.tensor([1, 1]), where)
        (gradient_BC,) = torch.autograd.grad(loss_B.sum(), student_BC)
        assert loss_B.isfinite().all()
        assert gradient_BC.isfinite().all()
    assert gradient_BC[1, 0] < 0 < gradient_BC[1, 1]  # a step against it raises the class that was said


def test_a_loss_that_remembers_asks_which_rows_it_sees() -> None:
    objective = parse_objective("elr").equipped(Material(num_classes=C, num_examples=N), 0)
    where = Step(step=0, steps_per_epoch=1, num_epochs=1)
    with pytest.raises(ValueError, match="elr remembers examples: pass their row numbers"):
        objective(torch.zeros(2, C), ExactAnswer(torch.zeros(2, C)), torch.tensor([0, 1]), where)


def test_a_stopped_run_goes_on_with_what_it_remembers(store: Store, digits: Split, tmp_path: Path) -> None:
    def stop(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    whole = train(store, digits, None, tmp_path / "whole", loss="elr", epochs=3)
    with pytest.raises(KeyboardInterrupt):
        train(store, digits, None, tmp_path / "r", loss="elr", epochs=3, on_epoch=stop)
    with safe_open(tmp_path / "r" / CHECKPOINT, framework="pt") as file:
        remembered = file.get_tensor("beside.elr.mean_NC")
    assert remembered.shape == (len(digits), 10)
    assert (remembered.sum(1) > 0.5).all()
    result = train(store, digits, None, tmp_path / "r", loss="elr", epochs=3)
    assert result["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 1.0}, "elr remembers examples, and --mixup shows two in one"),
        ({"student": "sklearn:DecisionTreeRegressor"}, "it serves .* not the .* of loss .elr"),
    ],
)
def test_what_it_cannot_remember_is_refused(
    store: Store, digits: Split, tmp_path: Path, settings: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(store, digits, None, tmp_path / "r", loss="elr", asked=settings)


def test_a_row_without_a_label_is_not_held_to_itself() -> None:
    """Else what a student says before it knows anything decides all that is not labelled."""
    objective = parse_objective("elr").equipped(Material(num_classes=C, num_examples=N), 0)
    where = Step(step=0, steps_per_epoch=1, num_epochs=1, rows_B=torch.tensor([2, 5]))
    student_BC = torch.randn(2, C, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss_B = objective(student_BC, ExactAnswer(torch.zeros(2, C)), torch.tensor([1, -1]), where)
    (gradient_BC,) = torch.autograd.grad(loss_B.sum(), student_BC)
    assert loss_B[1] == 0
    assert not gradient_BC[1].any()
    assert gradient_BC[0].any()
    remembered_NC = next(objective.modules.buffers())
    assert remembered_NC.any(dim=1).nonzero().flatten().tolist() == [2]
