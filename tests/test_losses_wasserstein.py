"""WKD-L: the distances of classes, the cost of moving probabilities between them, and students that are trained by it.

Shapes: B batch, C classes, K features, N rows.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import optimize, special
from torch import Tensor

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.train_student.losses import Material, StoredFeatures
from logitbank.pipeline.train_student.losses.wasserstein import ClassDistance, wasserstein_distance
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.students import train

C, K = 6, 5


def distances(*, with_head: bool = True, num_folds: int = 1) -> tuple[ClassDistance, StoredFeatures]:
    generator = torch.Generator().manual_seed(0)
    stored = StoredFeatures(
        values_NK=torch.randn(80, K, generator=generator),
        fold_N=torch.arange(80) % num_folds,
        class_N=torch.arange(80) % (C - 1),  # the last has no example
        head_FCK=torch.randn(num_folds, C, K, generator=generator) if with_head else None,
        num_folds=num_folds,
    )
    return ClassDistance(Material(num_classes=C, teacher=stored)), stored


def rows(number: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    student_BC, teacher_BC = 2 * torch.randn(2, number, C, generator=generator)
    return student_BC, teacher_BC, torch.arange(number) % C


def reference(student: np.ndarray, teacher: np.ndarray, label: int, cost: np.ndarray, blur: float) -> float:
    """One row in float64, with the class of the label cut out, not masked."""
    others = np.arange(C) != label
    q, p = special.softmax(student[others] / 2), special.softmax(teacher[others] / 2)
    cost = (1 - np.exp(-cost))[np.ix_(others, others)] + 1e-8
    kernel = np.exp(-cost / blur)
    left = np.full(C - 1, 1 / (C - 1))
    for _ in range(10):
        right = p / (kernel.T @ left + 1e-8)
        left = q / (kernel @ right + 1e-8)
    moved = (left[:, None] * kernel * right[None] * cost).sum()
    return float(-special.softmax(teacher)[label] * special.log_softmax(student)[label] + 30 * moved)


@pytest.mark.parametrize("blur", [0.05, 0.5])
def test_it_is_what_a_loop_finds(blur: float) -> None:
    module, _ = distances()
    student_BC, teacher_BC, labels_B = rows()
    found_B = wasserstein_distance(student_BC, teacher_BC, labels_B, module=module, blur=blur)
    each = zip(student_BC.numpy(), teacher_BC.numpy(), labels_B.tolist(), strict=True)
    cost = module.cost_CC.double().numpy()
    expected = [reference(s.astype(float), z.astype(float), y, cost, blur) for s, z, y in each]
    np.testing.assert_allclose(found_B.numpy(), expected, rtol=2e-4)


def test_it_comes_near_to_the_exact_distance() -> None:
    """That of a linear program over all plans, of the classes beside the label."""
    module, _ = distances()
    student_BC, teacher_BC, labels_B = rows(1)
    found = wasserstein_distance(student_BC, teacher_BC, labels_B, module=module, transport=1.0, blur=0.05)
    without = wasserstein_distance(student_BC, teacher_BC, labels_B, module=module, transport=0.0)
    q, p = (special.softmax(logits[0, 1:].double().numpy() / 2) for logits in (student_BC, teacher_BC))
    cost = 1 - np.exp(-module.cost_CC[1:, 1:].double().numpy())
    leaves, arrives = np.kron(np.eye(C - 1), np.ones(C - 1)), np.kron(np.ones(C - 1), np.eye(C - 1))
    exact = optimize.linprog(cost.ravel(), A_eq=np.vstack([leaves, arrives]), b_eq=np.concatenate([q, p])).fun
    assert float(found - without) == pytest.approx(exact, abs=0.05)
    assert float(found - without) > 0.5 * exact > 0


def test_extremes_stay_finite_and_rows_do_not_know_each_other() -> None:
    module, _ = distances()
    sure_BC = torch.full((2, C), -1e4)
    sure_BC[:, 1] = 1e4
    for student_BC, teacher_BC in ((sure_BC, sure_BC.roll(2, 1)), (sure_BC, sure_BC), (0 * sure_BC, sure_BC)):
        student_BC = student_BC.clone().requires_grad_()
        loss_B = wasserstein_distance(student_BC, teacher_BC, torch.tensor([0, 1]), module=module)
        (gradient_BC,) = torch.autograd.grad(loss_B.sum(), student_BC)
        assert loss_B.isfinite().all()
        assert gradient_BC.isfinite().all()
    batch = rows()
    whole_B = wasserstein_distance(*batch, module=module)
    alone_B = torch.cat([wasserstein_distance(*(part[i : i + 1] for part in batch), module=module) for i in range(7)])
    torch.testing.assert_close(whole_B, alone_B)


def test_classes_are_as_far_as_their_weights_or_their_examples() -> None:
    module, stored = distances(num_folds=2)
    assert stored.head_FCK is not None
    heads = stored.head_FCK.numpy()
    cosines = [h @ h.T / np.outer(np.linalg.norm(h, axis=1), np.linalg.norm(h, axis=1)) for h in heads]
    np.testing.assert_allclose(module.cost_CC.numpy(), np.maximum(1 - np.mean(cosines, axis=0), 0), atol=1e-6)
    module, stored = distances(with_head=False)
    values, labels = stored.values_NK.numpy(), stored.class_N.numpy()
    a, b = (values[labels == label].mean(0) - values.mean(0) for label in (0, 3))
    assert float(module.cost_CC[0, 3]) == pytest.approx(1 - a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert float(module.cost_CC[0, 5]) == 1.0  # nothing is known of a class without examples


def test_a_student_is_trained_by_it_from_a_store(
    digits: Split, digits_test: Split, plain_teacher: Path, tmp_path: Path
) -> None:
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    encoding = Encoding(kind="dense", num_classes=10, bits=8)
    cache_teacher(
        NetworkTeacher(digits, teachers, Views(), embedding="penultimate"), tmp_path / "s.zarr", encoding=encoding
    )
    result = train(open_store(tmp_path / "s.zarr"), digits, digits_test, tmp_path / "r", loss="wkd", epochs=4)
    assert result["accuracy"] > 0.8
