"""The laws that hold for every loss of the table, and each loss against its float64 reference.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logitbank.pipeline.train_student.losses import LOSSES, ExactAnswer, Step, parse_objective
from logitbank.pipeline.train_student.losses.standardise import standardised
from tests.loss_references import BATCH_REFERENCES, REFERENCES

FIRST = Step(step=0, steps_per_epoch=1, num_epochs=2)

NAMES = sorted(LOSSES)
EXACT: dict[str, dict[str, Any]] = {"dist": {"eps": 1e-15}}
"""Options under which a loss is its formula; DIST's published eps is visible where probabilities are small."""

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    *((name, {"temperature": 1.0}) for name in NAMES if "temperature" in LOSSES[name].options),
    *((name, {"temperature": 7.3}) for name in NAMES if "temperature" in LOSSES[name].options),
    ("redistill", {"lambda_": 2 / 3}),
    ("redistill", {"lambda_": 2 / 3, "orientation": "student_first"}),
    ("redistill", {"lambda_": 1.7}),
    ("redistill", {"lambda_": -0.3}),
    ("redistill", {"lambda_": -2.5}),
    ("alpha", {"ratio_clip": 0.0}),
    ("alpha", {"alpha_min": 1.6, "alpha_max": 1.6, "ratio_clip": 1.2}),
    ("abkd", {"alpha": 0.3, "beta": 0.7}),
    ("abkd", {"alpha": 1.2, "beta": -0.4}),
    ("abkd", {"alpha": -0.5, "beta": 1.1}),
    ("abkd", {"alpha": 0.0, "beta": 0.0}),
    ("abkd", {"alpha": 0.02, "beta": 0.9}),
    ("abkd", {"alpha": 0.9, "beta": -0.95}),
    ("redistill", {"lambda_": 0.04}),
    ("rld", {"same_t": False, "alpha_temperature": 1.5}),
    ("gjs", {"beta": 0.1}),
    ("taid", {"progress": 0.3}),
    ("ce", {"smoothing": 0.1}),
    ("gce", {"target": "teacher"}),
    ("gce", {"truncate": 0.2}),
    ("gce", {"truncate": 0.2, "progress": 0.2}),
    ("sce", {"target": "teacher"}),
    ("sel_corrected", {"scale": "probability", "smoothing": 0.1}),
    ("sel_corrected", {"c": 10.0}),
    ("ce_ortho", {"max_ratio": 1.0}),
    ("ce_ortho", {"smoothing": 0.1}),
    ("sel_ortho", {"smoothing": 0.1}),
    ("sel_slow", {"c": 10.0, "smoothing": 0.1}),
    ("sel_gamma", {"gamma": "one_minus_p"}),
    ("sel_gamma", {"smoothing": 0.1}),
    ("sel_minimax", {"uncertainty": "power", "mix": 0.3}),
    ("sel_minimax", {"uncertainty": "absolute", "width": 0.05, "smoothing": 0.1}),
    ("apl", {"passive": "mae", "a": 10.0}),
    ("akl", {"head": 0.9}),
    ("mlkd", {"instance": 0.0}),
    ("mlkd", {"instance": 0.0, "batch": 0.0}),
    ("mlkd", {"instance": 0.0, "classes": 0.0}),
]
"""Every loss at its defaults and at two more temperatures, and the branches that its options open."""

FOLLOWS_STUDENT = frozenset({"taid", "rc", "wsld", "akl"})
"""Part of the target or weight is the student's own, without gradient: test_detached_targets."""

CLIPPED = {("alpha", clip) for clip in (5.0, 1.2)}
"""Where the clip holds, the authors' gradient is not the derivative of the value: test_losses_special."""


def rows(
    num_rows: int, num_classes: int, scale: float = 2.0, seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor, Tensor]:
    """Student, teacher and labels; half of the rows have a teacher that is right."""
    generator = torch.Generator().manual_seed(seed)
    student_BC, teacher_BC = (
        torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64) * scale for _ in range(2)
    )
    labels_B = torch.randint(num_classes, (num_rows,), generator=generator)
    labels_B[::2] = teacher_BC.argmax(1)[::2]
    return student_BC.to(dtype), teacher_BC.to(dtype), labels_B


def call(name: str, *batch: Tensor, **options: Any) -> Tensor:
    return LOSSES[name].fn(*batch, **(dict(LOSSES[name].options) | options))


def gradient(name: str, student: Tensor, *others: Tensor, **options: Any) -> Tensor:
    student_BC = student.clone().requires_grad_()
    (grad_BC,) = torch.autograd.grad(call(name, student_BC, *others, **options).sum(), student_BC)
    return grad_BC


def reference(
    name: str, student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, **options: Any
) -> np.ndarray[Any, np.dtype[np.float64]]:
    given = dict(LOSSES[name].options) | options
    student, teacher, labels = (tensor.numpy().astype(np.float64) for tensor in (student_BC, teacher_BC, labels_B))
    labels = labels.astype(np.int64)
    if name in BATCH_REFERENCES:
        return BATCH_REFERENCES[name](student, teacher, labels, **given)
    fn = REFERENCES[name]
    return np.array([fn(s, z, int(y), **given) for s, z, y in zip(student, teacher, labels, strict=True)])


def test_every_loss_has_a_reference_and_no_reference_is_left_over() -> None:
    there = set(REFERENCES) | set(BATCH_REFERENCES)
    assert there == set(LOSSES), "write the formula of a new loss a second time, in tests/loss_references.py"


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_loss_is_its_formula(name: str, options: dict[str, Any], num_classes: int) -> None:
    batch = rows(8, num_classes, dtype=torch.float64)
    options = options | EXACT.get(name, {})
    want_B = reference(name, *batch, **options)
    np.testing.assert_allclose(call(name, *batch, **options).numpy(), want_B, rtol=1e-9, atol=1e-9)
    single_B = call(name, *(tensor.float() for tensor in batch[:2]), batch[2], **options)
    np.testing.assert_allclose(single_B.numpy(), want_B, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_many_classes(name: str) -> None:
    batch = rows(2, 21_841)
    np.testing.assert_allclose(call(name, *batch).numpy(), reference(name, *batch), rtol=2e-4, atol=2e-4)


def test_dist_at_many_classes() -> None:
    student_BC, teacher_BC, labels_B = rows(2, 21_841, dtype=torch.float64)
    want_B = reference("dist", student_BC, teacher_BC, labels_B, gamma=0.0)
    got_B = call("dist", student_BC.float(), teacher_BC.float(), labels_B, gamma=0.0)
    np.testing.assert_allclose(got_B.numpy(), want_B, rtol=1e-3)
    assert gradient("dist", student_BC.float(), teacher_BC.float(), labels_B).isfinite().all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, options)
        for name, options in VARIANTS
        if name not in FOLLOWS_STUDENT
        and (name, options.get("ratio_clip", LOSSES[name].options.get("ratio_clip"))) not in CLIPPED
    ],
)
def test_gradients_are_those_of_finite_differences(name: str, options: dict[str, Any]) -> None:
    student_BC, teacher_BC, labels_B = rows(4, 5, dtype=torch.float64, seed=3)
    student_BC.requires_grad_()
    assert torch.autograd.gradcheck(lambda s_BC: call(name, s_BC, teacher_BC, labels_B, **options), (student_BC,))


def test_detached_targets() -> None:
    student_BC, teacher_BC, labels_B = rows(4, 5, dtype=torch.float64)
    own_BC = student_BC.clone()
    for progress in (0.0, 0.5, 1.0):
        target_BC = torch.lerp(own_BC, teacher_BC, 0.4 + 0.6 * progress)
        want_BC = gradient("kd", student_BC, target_BC, labels_B, temperature=1.0)
        got_BC = gradient("taid", student_BC, teacher_BC, labels_B, progress=progress)
        torch.testing.assert_close(got_BC, want_BC)
    revised_BC = own_BC.scatter_add(1, labels_B[:, None], own_BC.amax(1, keepdim=True))
    want_BC = gradient("kd", student_BC, teacher_BC, labels_B)
    want_BC = want_BC + 0.1 * gradient("kd", student_BC, revised_BC, labels_B)
    torch.testing.assert_close(gradient("rc", student_BC, teacher_BC, labels_B), want_BC)
    weight_B = call("wsld", student_BC, teacher_BC, labels_B) / call("kd", student_BC, teacher_BC, labels_B)
    want_BC = gradient("kd", student_BC, teacher_BC, labels_B) * weight_B[:, None]
    torch.testing.assert_close(gradient("wsld", student_BC, teacher_BC, labels_B), want_BC)
    forward_B, reverse_B, mixed_B = (
        call(name, student_BC, teacher_BC, labels_B, temperature=1.0) for name in ("kd", "reverse_kl", "akl")
    )
    share_B = (mixed_B - reverse_B) / (forward_B - reverse_B)
    of_forward_BC, of_reverse_BC = (
        gradient(name, student_BC, teacher_BC, labels_B, temperature=1.0) for name in ("kd", "reverse_kl")
    )
    want_BC = torch.lerp(of_reverse_BC, of_forward_BC, share_B[:, None])
    torch.testing.assert_close(gradient("akl", student_BC, teacher_BC, labels_B), want_BC)


@pytest.mark.parametrize("name", NAMES)
def test_one_number_per_row_and_the_rows_are_independent(name: str) -> None:
    batch = rows(6, 10)
    rows_B = call(name, *batch)
    assert rows_B.shape == (6,)
    assert rows_B.dtype == torch.float32
    if not LOSSES[name].couples_rows:
        torch.testing.assert_close(call(name, *(tensor[2:4] for tensor in batch)), rows_B[2:4])


@pytest.mark.parametrize("name", NAMES)
def test_the_order_of_the_classes_does_not_matter(name: str) -> None:
    student_BC, teacher_BC, labels_B = rows(6, 10, dtype=torch.float64)
    order_C = torch.randperm(10, generator=torch.Generator().manual_seed(1))
    permuted = (student_BC[:, order_C], teacher_BC[:, order_C], order_C.argsort()[labels_B])
    torch.testing.assert_close(call(name, *permuted), call(name, student_BC, teacher_BC, labels_B))
    grad_BC = gradient(name, student_BC, teacher_BC, labels_B)
    torch.testing.assert_close(gradient(name, *permuted), grad_BC[:, order_C])


@pytest.mark.parametrize("name", [name for name in NAMES if LOSSES[name].zero_at_teacher])
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_zero_and_flat_where_the_student_is_the_teacher(name: str, num_classes: int) -> None:
    _, teacher_BC, labels_B = rows(6, num_classes)
    value_B = call(name, teacher_BC, teacher_BC, labels_B, **EXACT.get(name, {}))
    torch.testing.assert_close(value_B, torch.zeros(6), rtol=0, atol=1e-5)
    if name != "total_variation":  # its minimum is a kink
        exact_BC = teacher_BC.double()
        grad_BC = gradient(name, exact_BC, exact_BC, labels_B, **EXACT.get(name, {}))
        torch.testing.assert_close(grad_BC, torch.zeros_like(grad_BC), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_zero_only_where_it_is_true(name: str) -> None:
    if not LOSSES[name].zero_at_teacher:
        _, teacher_BC, labels_B = rows(6, 10)
        labels_B[1] = (teacher_BC.argmax(1)[1] + 1) % 10
        assert (call(name, teacher_BC, teacher_BC, labels_B).abs() > 1e-4).any()


EXTREME = [(1.0, -1.0), (-1.0, 1.0), (1.0, 1.0), (0.0, 1.0), (1.0, 0.0)]


@pytest.mark.parametrize("size", [1e4, 1e30])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_classes", [2, 7])
def test_extreme_logits_are_finite_in_value_and_gradient(name: str, num_classes: int, size: float) -> None:
    """One class of student and teacher at +-1e4 or +-1e30, the label that class or another one."""
    student_BC, teacher_BC, _ = rows(2 * len(EXTREME), num_classes)
    for row, (student, teacher) in enumerate(EXTREME * 2):
        student_BC[row, 0], teacher_BC[row, 0] = size * student, size * teacher
    labels_B = torch.tensor([0] * len(EXTREME) + [1] * len(EXTREME))
    for temperature in (0.5, 1.0, 4.0) if "temperature" in LOSSES[name].options else (None,):
        options = {} if temperature is None else {"temperature": temperature}
        assert call(name, student_BC, teacher_BC, labels_B, **options).isfinite().all()
        assert gradient(name, student_BC, teacher_BC, labels_B, **options).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("standardise", [False, True])
def test_whole_rows_at_1e30_are_finite(name: str, standardise: bool) -> None:
    student_BC, teacher_BC, labels_B = rows(6, 10)
    student_BC[::2] *= 1e30
    teacher_BC[::3] *= 1e30
    if standardise and LOSSES[name].fits != "teacher":
        return
    student_BC.requires_grad_()
    pair = (standardised(student_BC), standardised(teacher_BC)) if standardise else (student_BC, teacher_BC)
    value_B = call(name, *pair, labels_B)
    (grad_BC,) = torch.autograd.grad(value_B.sum(), student_BC)
    assert value_B.isfinite().all()
    assert grad_BC.isfinite().all()


def test_a_class_that_is_left_out_stays_out_beside_logits_of_minus_1e30() -> None:
    """The other classes all lie at -1e30: what remains is uniform over them, and the label has no part in it."""
    student_BC = torch.tensor([[0.0, -1e30, -1e30, -1e30]])
    teacher_BC = torch.tensor([[5.0, 1.0, 1.0, 1.0]])
    labels_B = torch.tensor([0])
    for name, options in (("dkd", {"alpha": 0.0}), ("rld", {"alpha": 0.0}), ("nkd", {})):
        options = {"temperature": 1.0, **options}
        want_B = call(name, student_BC.clamp(min=-60.0), teacher_BC, labels_B, **options)
        torch.testing.assert_close(call(name, student_BC, teacher_BC, labels_B, **options), want_B)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_vocabulary_of_152_thousand(name: str) -> None:
    batch = rows(2, 151_936)
    value_B = call(name, *batch)
    if name not in BATCH_REFERENCES:
        np.testing.assert_allclose(value_B.numpy(), reference(name, *batch), rtol=1e-3, atol=1e-3)
    assert value_B.isfinite().all()
    assert gradient(name, *batch).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_masked_classes_are_finite_and_change_nothing_elsewhere(name: str) -> None:
    """Classes that a teacher excludes stand at its row's best - 1e4, also where they are the label."""
    student_BC, teacher_BC, labels_B = rows(6, 10)
    teacher_BC[:, 7:] = teacher_BC.amax(1, keepdim=True) - 1e4
    labels_B[5] = 8
    for student in (student_BC, torch.cat([student_BC[:, :7], teacher_BC[:, 7:]], dim=1)):
        assert call(name, student, teacher_BC, labels_B).isfinite().all()
        assert gradient(name, student, teacher_BC, labels_B).isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_all_logits_equal(name: str) -> None:
    flat_BC = torch.zeros(4, 10)
    assert call(name, flat_BC, flat_BC, torch.arange(4)).isfinite().all()
    assert gradient(name, flat_BC, flat_BC, torch.arange(4)).isfinite().all()
    objective = parse_objective(f"{name}:1", {"standardise": 1} if LOSSES[name].fits == "teacher" else {})
    student_BC = flat_BC.clone().requires_grad_()
    objective(student_BC, ExactAnswer(flat_BC), torch.arange(4), FIRST).sum().backward()  # type: ignore[no-untyped-call]
    assert student_BC.grad is not None
    assert student_BC.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(name: str, dtype: torch.dtype) -> None:
    student_BC, teacher_BC, labels_B = rows(6, 10, dtype=dtype)
    rows_B = call(name, student_BC, teacher_BC, labels_B)
    assert rows_B.dtype == torch.float32
    torch.testing.assert_close(rows_B, call(name, student_BC.float(), teacher_BC.float(), labels_B))
    assert gradient(name, student_BC, teacher_BC, labels_B).dtype == dtype


@pytest.mark.parametrize("name", [name for name in NAMES if "temperature" in LOSSES[name].options])
def test_a_temperature_per_row_is_the_temperature_of_that_row(name: str) -> None:
    batch = rows(6, 10)
    temperature_B = torch.tensor([1.0, 4.0, 1.0, 2.5, 4.0, 1.0])
    alone: dict[str, dict[str, Any]] = {"dist": {"gamma": 0.0}, "mlkd": {"batch": 0.0, "classes": 0.0}}
    rows_only = alone.get(name, {})
    got_B = call(name, *batch, temperature=temperature_B, **rows_only)
    for row, temperature in enumerate(temperature_B.tolist()):
        one_row = (tensor[row : row + 1] for tensor in batch)
        alone_B = call(name, *one_row, temperature=temperature, **rows_only)
        torch.testing.assert_close(got_B[row : row + 1], alone_B, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in NAMES if LOSSES[name].fits == "teacher"])
def test_standardisation_is_a_wrapper_that_forgets_shift_and_scale(name: str) -> None:
    student_BC, teacher_BC, labels_B = rows(6, 10, dtype=torch.float64)
    objective = parse_objective(f"{name}:1", {"standardise": 1})
    plain_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, FIRST)
    moved_B = objective(5.0 * student_BC - 3.0, ExactAnswer(0.2 * teacher_BC + 1.0), labels_B, FIRST)
    torch.testing.assert_close(moved_B, plain_B, rtol=1e-5, atol=1e-5)
    scores_BC = (teacher_BC - teacher_BC.mean(1, keepdim=True)) / teacher_BC.std(1, keepdim=True)
    own_BC = (student_BC - student_BC.mean(1, keepdim=True)) / student_BC.std(1, keepdim=True)
    first_epoch = {"progress": 0.0} if name == "taid" else {}
    want_B = call(name, own_BC, scores_BC, labels_B, **first_epoch)
    torch.testing.assert_close(plain_B, want_B, rtol=1e-5, atol=1e-5)


COMPILING = pytest.mark.filterwarnings("ignore::DeprecationWarning")
"""torch.compile warns about its own use of autograd.Function and torch.jit."""


def run_compiled(cases: list[tuple[str, dict[str, Any]]], backend: str) -> None:
    batch = rows(4, 10)
    for name, options in cases:
        torch.compiler.reset()
        compiled = torch.compile(LOSSES[name].fn, fullgraph=True, backend=backend)
        student_BC = batch[0].clone().requires_grad_()
        rows_B = compiled(student_BC, *batch[1:], **(LOSSES[name].options | options))
        torch.testing.assert_close(rows_B, call(name, *batch, **options), rtol=1e-5, atol=1e-5)
        (grad_BC,) = torch.autograd.grad(rows_B.sum(), student_BC)
        torch.testing.assert_close(grad_BC, gradient(name, *batch, **options), rtol=1e-4, atol=1e-5)


@COMPILING
def test_the_main_losses_compile_without_graph_breaks() -> None:
    run_compiled([(name, {}) for name in ("kd", "redistill", "rld", "dist", "sel_corrected")], "aot_eager")


@pytest.mark.slow
@COMPILING
def test_every_loss_compiles_without_graph_breaks() -> None:
    run_compiled(VARIANTS, "aot_eager")


@pytest.mark.slow
@COMPILING
def test_the_main_losses_compile_to_machine_code() -> None:
    names = ("kd", "redistill", "rld", "dkd", "dist", "gjs", "sel_corrected")
    run_compiled([(name, {}) for name in names], "inductor")


def test_bounded_losses_keep_their_bound() -> None:
    student_BC, teacher_BC, labels_B = rows(200, 10, scale=20.0)
    for name, bound in (
        ("gjs", math.log(2)),
        ("total_variation", 1.0),
        ("skew_kl", -math.log(0.1)),
        ("hellinger", 1.0),
    ):
        rows_B = call(name, student_BC, teacher_BC, labels_B, temperature=1.0)
        assert rows_B.min() >= -1e-6
        assert rows_B.max() <= bound + 1e-5


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_a_loss_that_falls_below_zero_says_so(name: str, options: dict[str, Any]) -> None:
    """Weights that are learned go by it."""
    lowest = min(float(call(name, *rows(64, 10, scale, seed=3), **options).min()) for scale in (0.5, 2.0, 6.0))
    assert lowest > -1e-3 or LOSSES[name].below_zero, lowest
