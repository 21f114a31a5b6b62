"""What the papers' mathematics says about single losses: special cases, limits and identities.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import decimal
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from logitbank.pipeline.train_student.losses import (
    LOSSES,
    ExactAnswer,
    Step,
    describe_loss,
    describe_losses,
    parse_objective,
)
from logitbank.pipeline.train_student.losses.divergences import power_divergence
from logitbank.pipeline.train_student.losses.kernel import alpha_beta_rows
from logitbank.pipeline.train_student.losses.numerics import MAX_EXPONENT, bounded_exp, log_probs
from tests.test_losses import call, gradient, rows


def batch(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return rows(8, 12, dtype=torch.float64, seed=seed)


def divergence(tensors: tuple[Tensor, Tensor, Tensor], alpha: float, beta: float, temperature: float) -> Tensor:
    log_q_BC, log_p_BC = (log_probs(tensor, temperature) for tensor in tensors[:2])
    return alpha_beta_rows(log_p_BC, log_q_BC, alpha, beta)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(
    ("name", "options", "alpha", "beta", "factor"),
    [
        ("kd", {}, 1.0, 0.0, 1.0),
        ("reverse_kl", {}, 0.0, 1.0, 1.0),
        ("pearson", {}, 2.0, -1.0, 2.0),
        ("neyman", {}, -1.0, 2.0, 2.0),
        ("hellinger", {}, 0.5, 0.5, 0.25),
        ("redistill", {}, 0.5, 0.5, 1.0),
        ("redistill", {"lambda_": 2 / 3}, 5 / 3, -2 / 3, 1.0),
        ("redistill", {"lambda_": 2 / 3, "orientation": "student_first"}, -2 / 3, 5 / 3, 1.0),
        ("alpha", {"alpha_min": 0.3, "alpha_max": 0.3, "ratio_clip": 0.0}, 0.3, 0.7, 1.0),
    ],
)
def test_the_family_is_one_kernel(
    name: str, options: dict[str, Any], alpha: float, beta: float, factor: float, temperature: float
) -> None:
    tensors = batch()
    want_B = factor * temperature**2 * divergence(tensors, alpha, beta, temperature)
    torch.testing.assert_close(call(name, *tensors, temperature=temperature, **options), want_B)
    abkd_B = call("abkd", *tensors, alpha=alpha, beta=beta, temperature=temperature)
    torch.testing.assert_close(factor * temperature**2 * abkd_B, want_B)


@pytest.mark.parametrize("lambda_", [-2.2, -1.3, -0.5, 0.4, 2 / 3, 1.0])
def test_orientation_is_lambda_to_minus_one_minus_lambda(lambda_: float) -> None:
    tensors = batch()
    student_first_B = power_divergence(*tensors, lambda_=lambda_, orientation="student_first")
    torch.testing.assert_close(student_first_B, power_divergence(*tensors, lambda_=-1 - lambda_))
    swapped_B = power_divergence(tensors[1], tensors[0], tensors[2], lambda_=lambda_)
    torch.testing.assert_close(student_first_B, swapped_B)


@pytest.mark.parametrize(("limit", "name"), [(0.0, "kd"), (-1.0, "reverse_kl")])
def test_the_power_divergence_goes_over_into_its_limits(limit: float, name: str) -> None:
    tensors = batch()
    want_B, want_BC = call(name, *tensors, temperature=1.0), gradient(name, *tensors, temperature=1.0)
    for step in (1e-3, -1e-3, 1e-6, 0.0):
        options: dict[str, Any] = {"lambda_": limit + step, "temperature": 1.0}
        torch.testing.assert_close(call("redistill", *tensors, **options), want_B, rtol=2e-2, atol=1e-8)
        torch.testing.assert_close(gradient("redistill", *tensors, **options), want_BC, rtol=5e-2, atol=5e-3)


@pytest.mark.parametrize(("alpha", "beta"), [(0.7, 0.0), (0.0, 0.6), (0.5, -0.5), (1.0, 0.0), (0.0, 1.0)])
def test_alpha_beta_is_continuous_where_an_exponent_vanishes(alpha: float, beta: float) -> None:
    tensors = batch()
    for da, db in ((1e-3, 0.0), (0.0, 1e-3), (-1e-3, 1e-3)):
        near_B = divergence(tensors, alpha + da, beta + db, 1.0)
        torch.testing.assert_close(near_B, divergence(tensors, alpha, beta, 1.0), rtol=3e-2, atol=3e-3)


def test_the_gradient_of_the_power_divergence_as_derived() -> None:
    student_BC, teacher_BC, labels_B = batch()
    temperature, lambda_ = 3.0, 2 / 3
    p_BC, q_BC = (torch.softmax(logits_BC / temperature, 1) for logits_BC in (teacher_BC, student_BC))
    weight_BC = p_BC * (p_BC / q_BC) ** lambda_
    want_BC = temperature / (1 + lambda_) * (q_BC * weight_BC.sum(1, keepdim=True) - weight_BC)
    options = {"temperature": temperature, "lambda_": lambda_}
    got_BC = gradient("redistill", student_BC, teacher_BC, labels_B, **options)
    torch.testing.assert_close(got_BC, want_BC)


def test_near_the_teacher_every_power_divergence_is_half_chi_squared() -> None:
    _, teacher_BC, labels_B = batch()
    student_BC = teacher_BC + 1e-4 * torch.randn(teacher_BC.shape, generator=torch.Generator().manual_seed(5))
    half_B = 0.5 * call("pearson", student_BC, teacher_BC, labels_B, temperature=1.0)
    for lambda_ in (-2.0, -1.0, -0.5, 0.0, 2 / 3, 3.0):
        got_B = power_divergence(student_BC, teacher_BC, labels_B, lambda_=lambda_)
        torch.testing.assert_close(got_B, half_B, rtol=2e-3, atol=0)


def test_a_ratio_clip_holds_the_weight_of_a_class_and_nothing_else() -> None:
    student_BC, teacher_BC, labels_B = batch()
    p_BC, q_BC = torch.softmax(teacher_BC, 1), torch.softmax(student_BC, 1)
    weight_BC = p_BC * (p_BC / q_BC).clamp(max=2.0) ** (2 / 3)
    want_BC = 0.6 * (q_BC * weight_BC.sum(1, keepdim=True) - weight_BC)
    got_BC = gradient("redistill", student_BC, teacher_BC, labels_B, temperature=1.0, lambda_=2 / 3, ratio_clip=2.0)
    torch.testing.assert_close(got_BC, want_BC)


@pytest.mark.parametrize("clip", [0.0, 1.5, 5.0])
def test_the_adaptive_divergence_clips_as_its_authors_do(clip: float) -> None:
    """They take d/d log q = -q w / a with w = (p/q)^a clipped, of the order whose clipped value is larger."""
    student_BC, teacher_BC, labels_B = rows(12, 12, scale=1.0, dtype=torch.float64)
    p_BC, q_BC = torch.softmax(teacher_BC, 1), torch.softmax(student_BC, 1)
    weight_BC = (q_BC / p_BC).clamp(max=clip or math.inf)
    reverse_B, forward_B = 0.5 * ((q_BC * weight_BC).sum(1) - 1), (p_BC * (p_BC / q_BC).log()).sum(1)
    torch.testing.assert_close(
        call("alpha", student_BC, teacher_BC, labels_B, ratio_clip=clip), torch.maximum(reverse_B, forward_B)
    )
    pull_BC = q_BC * weight_BC
    reverse_BC = pull_BC - q_BC * pull_BC.sum(1, keepdim=True)
    taken_B1 = (reverse_B > forward_B)[:, None]
    assert 0 < int(taken_B1.sum()) < 12 or clip != 5.0
    want_BC = torch.where(taken_B1, reverse_BC, q_BC - p_BC)
    torch.testing.assert_close(gradient("alpha", student_BC, teacher_BC, labels_B, ratio_clip=clip), want_BC)


def test_the_adaptive_divergence_on_three_classes() -> None:
    teacher_BC = torch.tensor([[0.9, 0.09, 0.01]], dtype=torch.float64).log()
    student_BC = torch.tensor([[0.3, 0.2, 0.5]], dtype=torch.float64).log()
    got_BC = gradient("alpha", student_BC, teacher_BC, torch.tensor([0]))
    want_BC = torch.tensor([[-0.81333, -0.16444, 0.97778]], dtype=torch.float64)
    torch.testing.assert_close(got_BC, want_BC, rtol=0, atol=1e-5)


def exactly(log_p: list[float], log_q: list[float], alpha: float, beta: float) -> float:
    """One row of the alpha-beta divergence in 60 digits, at exponents 1e-25 away from those given."""
    with decimal.localcontext(prec=60):
        a, b = decimal.Decimal(alpha) + decimal.Decimal("1e-25"), decimal.Decimal(beta) + decimal.Decimal("2e-25")
        sum_ = decimal.Decimal(0)
        for x, y in zip(map(decimal.Decimal, log_p), map(decimal.Decimal, log_q), strict=True):
            own = a * ((a + b) * x).exp() + b * ((a + b) * y).exp()
            sum_ += own / (a + b) - (a * x + b * y).exp()
        return float(sum_ / (a * b))


@pytest.mark.parametrize("alpha", [0.0, 1e-9, -1e-4, 0.0999, 0.1001, 0.6, -0.6, 1.0, -3.0])
@pytest.mark.parametrize("beta", [0.0, 1e-12, 1e-5, -0.02, 0.6, -0.6, 1.0, 1.0 - 1e-7, 3.0])
def test_alpha_beta_is_exact_on_and_near_the_lines_where_an_exponent_vanishes(alpha: float, beta: float) -> None:
    log_q_BC, log_p_BC = (log_probs(tensor) for tensor in batch(seed=4)[:2])
    want_B = [exactly(p, q, alpha, beta) for p, q in zip(log_p_BC.tolist(), log_q_BC.tolist(), strict=True)]
    wide_B = alpha_beta_rows(log_p_BC, log_q_BC, alpha, beta)
    torch.testing.assert_close(wide_B, torch.tensor(want_B, dtype=torch.float64), rtol=1e-10, atol=0)
    single_B = alpha_beta_rows(log_p_BC.float(), log_q_BC.float(), alpha, beta)
    torch.testing.assert_close(single_B, torch.tensor(want_B), rtol=2e-5, atol=0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (1e-7, 0.0), (0.5, -0.5), (0.02, 0.4), (0.7, -1e-6)])
def test_the_gradient_of_alpha_beta_near_its_limits(alpha: float, beta: float) -> None:
    log_q_BC, log_p_BC = (log_probs(tensor) for tensor in batch(seed=4)[:2])
    log_q_BC[0] = log_p_BC[0]
    log_q_BC.requires_grad_()
    assert torch.autograd.gradcheck(lambda log_q_BC: alpha_beta_rows(log_p_BC, log_q_BC, alpha, beta), (log_q_BC,))


def test_bounded_exp_is_exp_and_then_its_tangent() -> None:
    x = torch.tensor([-1e5, -3.0, 0.0, MAX_EXPONENT, MAX_EXPONENT + 1, 1e5], requires_grad=True)
    values = bounded_exp(x)
    torch.testing.assert_close(values[:4], x[:4].exp())
    (slope,) = torch.autograd.grad(values.sum(), x)
    assert values.isfinite().all()
    torch.testing.assert_close(slope[4:], torch.full((2,), MAX_EXPONENT).exp(), rtol=1e-3, atol=0)
    torch.testing.assert_close(values[4], 2 * torch.tensor(MAX_EXPONENT).exp())


def test_rld_is_dkd_where_the_teacher_is_right_and_only_there() -> None:
    student_BC, teacher_BC, labels_B = batch()
    right_B = teacher_BC.argmax(1) == labels_B
    assert 0 < int(right_B.sum()) < len(right_B)
    rld_B, dkd_B = (call(name, student_BC, teacher_BC, labels_B) for name in ("rld", "dkd"))
    torch.testing.assert_close(rld_B[right_B], dkd_B[right_B])
    assert ((rld_B - dkd_B).abs() > 1e-3)[~right_B].all()
    grads = [gradient(name, student_BC, teacher_BC, labels_B) for name in ("rld", "dkd")]
    torch.testing.assert_close(grads[0][right_B], grads[1][right_B])


def test_rld_leaves_out_ties_and_answers_0_where_nothing_is_left() -> None:
    student_BC = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    teacher_BC = torch.tensor([[3.0, 1.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0]])
    labels_B = torch.tensor([1, 3])
    rows_B = call("rld", student_BC, teacher_BC, labels_B, alpha=0.0, temperature=1.0)
    torch.testing.assert_close(rows_B, torch.zeros(2))  # one class below the label; none below it
    grad_BC = gradient("rld", student_BC, teacher_BC, labels_B, alpha=0.0)
    torch.testing.assert_close(grad_BC, torch.zeros(2, 4))


def test_dkd_with_the_teachers_own_weights_is_kd() -> None:
    student_BC, teacher_BC, labels_B = batch()
    for row in range(len(labels_B)):
        one = (student_BC[row : row + 1], teacher_BC[row : row + 1], labels_B[row : row + 1])
        others = 1.0 - float(torch.softmax(one[1] / 4.0, 1)[0, labels_B[row]])
        torch.testing.assert_close(call("dkd", *one, alpha=1.0, beta=others), call("kd", *one))


def test_dkd_keeps_its_digits_on_rows_of_which_the_teacher_is_sure() -> None:
    """1 - p of a sure row is far below what 1 - p keeps in float32."""
    teacher_BC = torch.tensor([[30.0, 0.0, 1.0], [60.0, 2.0, 0.0]])
    student_BC = torch.tensor([[25.0, 1.0, 0.0], [70.0, 0.0, 1.0]])
    labels_B = torch.tensor([0, 0])
    for name in ("dkd", "rld"):
        single_BC = gradient(name, student_BC, teacher_BC, labels_B, temperature=1.0)
        double_BC = gradient(name, student_BC.double(), teacher_BC.double(), labels_B, temperature=1.0)
        torch.testing.assert_close(single_BC.double(), double_BC, rtol=1e-4, atol=1e-12)


def test_the_orthogonal_cross_entropy_is_a_mixture_of_soft_and_hard() -> None:
    student_BC, teacher_BC, labels_B = batch()
    temperature = 4.0
    log_q_BC = torch.log_softmax(student_BC / temperature, 1)
    w_BC, label_B1 = torch.softmax(teacher_BC / temperature, 1), labels_B[:, None]
    label_p_B1 = torch.softmax(teacher_BC, 1).gather(1, label_B1).clamp(min=1e-2)
    share_B = (w_BC.gather(1, label_B1) / label_p_B1 / temperature)[:, 0]
    soft_B, hard_B = -(w_BC * log_q_BC).sum(1), -log_q_BC.gather(1, label_B1)[:, 0]
    entropy_B = -(w_BC * w_BC.log()).sum(1)
    want_B = temperature**2 * ((1 - share_B) * soft_B + share_B * hard_B - entropy_B)
    torch.testing.assert_close(call("ce_ortho", student_BC, teacher_BC, labels_B), want_B)


def test_the_orthogonal_cross_entropy_at_temperature_1_is_cross_entropy_above_the_floor() -> None:
    student_BC, teacher_BC, labels_B = batch()
    label_p_B = torch.softmax(teacher_BC, 1).gather(1, labels_B[:, None])[:, 0]
    above_B = label_p_B >= 0.05
    assert 0 < int(above_B.sum()) < 8
    got_BC = gradient("ce_ortho", student_BC, teacher_BC, labels_B, temperature=1.0, floor=0.05)
    want_BC = gradient("ce", student_BC, teacher_BC, labels_B)
    torch.testing.assert_close(got_BC[above_B], want_BC[above_B])
    assert ((got_BC - want_BC).abs().amax(1) > 1e-3)[~above_B].all()


def test_gamma_goes_from_the_teacher_to_the_orthogonal_loss() -> None:
    tensors = batch()
    torch.testing.assert_close(call("sel_corrected", *tensors, c=1e-12), call("sel", *tensors), rtol=1e-5, atol=1e-5)
    far_B = call("sel_corrected", *tensors, c=1e9, floor=1e-12)
    torch.testing.assert_close(far_B, call("sel_ortho", *tensors, floor=1e-12), rtol=1e-5, atol=1e-5)


def test_gamma_minimises_the_bound_it_comes_from() -> None:
    p, y, c = 0.2, 1.0, 0.03
    student_BC = torch.zeros(1, 2, dtype=torch.float64)
    teacher_BC = torch.tensor([[p, 1 - p]], dtype=torch.float64).log()
    row_B = call("sel_corrected", student_BC, teacher_BC, torch.tensor([0]), c=c)
    gammas = torch.linspace(0.0, 8.0, 800_001, dtype=torch.float64)

    def best(p_j: float, y_j: float) -> float:
        return float(gammas[((y_j - p_j) ** 2 * gammas**2 + c * (gammas - 1 / p_j) ** 2).argmin()])

    targets = [teacher_BC[0, 0] + best(p, y) * (y - p), teacher_BC[0, 1] + best(1 - p, 0.0) * (p - 1)]
    torch.testing.assert_close(row_B[0], 0.5 * (targets[0] ** 2 + targets[1] ** 2), rtol=1e-4, atol=1e-4)


def test_the_slow_bound_goes_from_the_teacher_to_the_orthogonal_loss() -> None:
    tensors = batch()
    torch.testing.assert_close(
        call("sel_slow", *tensors, c=1e-9, floor=0.2), call("sel", *tensors), rtol=1e-2, atol=1e-2
    )
    far_B = call("sel_slow", *tensors, c=1e9, floor=1e-6)
    torch.testing.assert_close(far_B, call("sel_ortho", *tensors, floor=1e-6), rtol=5e-3, atol=5e-3)


def test_the_slow_bound_keeps_its_precision_in_float32() -> None:
    """Where the label surprises and c is small, the correction is a small difference of two large numbers."""
    student_BC, teacher_BC, labels_B = batch()
    teacher_BC[:, 0] -= 12.0
    for c in (1e-6, 1e-2, 1e3):
        exact_B = call("sel_slow", student_BC, teacher_BC, labels_B, c=c, floor=1e-6)
        single_B = call("sel_slow", student_BC.float(), teacher_BC.float(), labels_B, c=c, floor=1e-6)
        torch.testing.assert_close(single_B.double(), exact_B, rtol=1e-3, atol=1e-3)


def test_fixed_corrections_lie_between_the_teacher_and_the_orthogonal_loss() -> None:
    """At gamma = 1 the target moves by y - p; of a certain teacher that is right it does not move."""
    _, teacher_BC, labels_B = batch()
    p_BC = torch.softmax(teacher_BC, 1)
    one_hot_BC = torch.nn.functional.one_hot(labels_B, p_BC.shape[1])
    moved_BC = teacher_BC + one_hot_BC - p_BC
    assert call("sel_gamma", moved_BC, teacher_BC, labels_B).abs().max() < 1e-12
    less_BC = teacher_BC + (1 - p_BC) * (one_hot_BC - p_BC)
    assert call("sel_gamma", less_BC, teacher_BC, labels_B, gamma="one_minus_p").abs().max() < 1e-12


def test_adaptive_kl_takes_the_side_on_which_the_student_is_wrong() -> None:
    teacher_BC = torch.tensor([[0.4, 0.3, 0.2, 0.1]]).log()
    label_B = torch.tensor([0])
    wrong_tail_BC = torch.tensor([[0.4, 0.3, 0.1, 0.2]]).log()  # the head, 0.4 of at most 0.5, is right
    torch.testing.assert_close(
        call("akl", wrong_tail_BC, teacher_BC, label_B), call("reverse_kl", wrong_tail_BC, teacher_BC, label_B)
    )
    wrong_head_BC = torch.tensor([[0.3, 0.4, 0.2, 0.1]]).log()
    torch.testing.assert_close(
        call("akl", wrong_head_BC, teacher_BC, label_B, head=0.75),
        call("kd", wrong_head_BC, teacher_BC, label_B, temperature=1.0),
    )


def test_multi_level_alignment_needs_no_matrix_of_the_classes() -> None:
    """152 thousand classes, whose Gram matrix would take 92 GB; alone, a row's batch terms are those of its own."""
    student_BC, teacher_BC = torch.randn(2, 2, 151_936, generator=torch.Generator().manual_seed(0)).unbind(0)
    labels_B = torch.zeros(2, dtype=torch.int64)
    assert call("mlkd", student_BC, teacher_BC, labels_B).isfinite().all()
    assert (call("mlkd", teacher_BC, teacher_BC, labels_B) == 0).all()


def test_normkd_is_kd_on_standardised_logits_times_the_teachers_variance() -> None:
    student_BC, teacher_BC, labels_B = batch()
    plain_B = parse_objective("kd:1", {"standardise": 1, "temperature": 2})(
        student_BC, ExactAnswer(teacher_BC), labels_B, Step(step=0, steps_per_epoch=1, num_epochs=1)
    )
    torch.testing.assert_close(call("normkd", student_BC, teacher_BC, labels_B), plain_B * teacher_BC.var(1))


def test_normalised_cross_entropy_of_all_labels_adds_up_to_one() -> None:
    """Which makes it robust to labels that are wrong at random."""
    student_BC, teacher_BC, labels_B = batch()
    every = [
        call("apl", student_BC, teacher_BC, torch.full_like(labels_B, c), b=0.0) for c in range(student_BC.shape[1])
    ]
    torch.testing.assert_close(torch.stack(every).sum(0), torch.ones_like(every[0]))


def test_jensen_shannon_and_skewed_kl_go_over_into_kl() -> None:
    tensors = batch()
    forward_B, reverse_B = (call(name, *tensors, temperature=1.0) for name in ("kd", "reverse_kl"))
    assert torch.equal(call("gjs", *tensors, beta=0.0), forward_B)
    assert torch.equal(call("gjs", *tensors, beta=1.0), reverse_B)
    torch.testing.assert_close(call("gjs", *tensors, beta=1e-4) / 1e-4, forward_B, rtol=0.05, atol=0.0)
    torch.testing.assert_close(call("skew_kl", *tensors, skew=0.0), forward_B)
    torch.testing.assert_close(call("skew_reverse_kl", *tensors, skew=0.0), reverse_B)
    swapped_B = call("gjs", tensors[1], tensors[0], tensors[2])
    torch.testing.assert_close(call("gjs", *tensors), swapped_B)


def test_generalised_cross_entropy_lies_between_cross_entropy_and_absolute_error() -> None:
    tensors = batch()
    torch.testing.assert_close(call("gce", *tensors, q=1e-7), call("ce", *tensors), rtol=1e-5, atol=1e-5)
    absolute_B = 1.0 - torch.softmax(tensors[0], 1).gather(1, tensors[2][:, None])[:, 0]
    torch.testing.assert_close(call("gce", *tensors, q=1.0), absolute_B)


def test_soft_cross_entropy_has_the_gradient_of_kl() -> None:
    tensors = batch()
    torch.testing.assert_close(
        gradient("soft_ce", *tensors, temperature=4.0), gradient("kd", *tensors, temperature=4.0)
    )


def test_the_rank_loss_rewards_the_teachers_order_and_not_its_opposite() -> None:
    """TSD-KD's code adds over the classes before instead of behind, and so has it the other way round."""
    teacher_BC = torch.tensor([[3.0, 2.0, 1.0]])
    agreeing_BC, opposite_BC = torch.tensor([[6.0, 3.0, 0.0]]), torch.tensor([[0.0, 3.0, 6.0]])
    labels_B = torch.zeros(1, dtype=torch.int64)
    agreeing, opposite = (float(LOSSES["listmle"].fn(s, teacher_BC, labels_B)) for s in (agreeing_BC, opposite_BC))
    assert agreeing == pytest.approx(0.1, abs=0.01)
    assert opposite == pytest.approx(9.1, abs=0.01)
    many_BC = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    teacher_BC = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    outside = many_BC.scatter(1, many_BC.topk(10, 1).indices, 0.0) - 1.0  # classes beyond the ten best have no part
    loss_B = LOSSES["listmle"].fn(many_BC, teacher_BC, labels_B)
    changed_BC = torch.where(many_BC < many_BC.topk(10, 1).values[:, -1:], outside, many_BC)
    torch.testing.assert_close(LOSSES["listmle"].fn(changed_BC, teacher_BC, labels_B), loss_B)


def test_wttm_weighs_ttm_by_the_teachers_smoothness() -> None:
    tensors = batch()
    for temperature, weight_B in (
        (1.0, torch.ones(8, dtype=torch.float64)),
        (4.0, (torch.softmax(tensors[1], 1) ** 0.25).sum(1)),
    ):
        want_B = weight_B * call("ttm", *tensors, temperature=temperature)
        torch.testing.assert_close(call("wttm", *tensors, temperature=temperature), want_B)


def test_swap_and_lr_put_the_label_first() -> None:
    student_BC, teacher_BC, labels_B = batch()
    right_B = teacher_BC.argmax(1) == labels_B
    kd_B, swap_B = (call(name, student_BC, teacher_BC, labels_B) for name in ("kd", "swap"))
    torch.testing.assert_close(swap_B[right_B], kd_B[right_B])
    assert ((swap_B - kd_B).abs() > 1e-6)[~right_B].all()


@pytest.mark.parametrize("kinds", ["both", "right", "wrong"])
def test_the_mean_of_lr_is_the_sum_of_two_means(kinds: str) -> None:
    student_BC, teacher_BC, labels_B = rows(9, 6, dtype=torch.float64)
    right_B = teacher_BC.argmax(1) == labels_B
    if kinds != "both":
        keep_B = right_B if kinds == "right" else ~right_B
        student_BC, teacher_BC, labels_B = student_BC[keep_B], teacher_BC[keep_B], labels_B[keep_B]
        right_B = teacher_BC.argmax(1) == labels_B
    student_BC.requires_grad_()
    got = call("lr", student_BC, teacher_BC, labels_B).mean()
    want = torch.zeros((), dtype=torch.float64)
    if right_B.any():
        want = want + torch.nn.functional.cross_entropy(student_BC[right_B], labels_B[right_B])
        want = want + 4.0 * torch.nn.functional.mse_loss(student_BC[right_B], teacher_BC[right_B])
    if not right_B.all():
        p_BC, y_B1 = torch.softmax(teacher_BC[~right_B], 1), labels_B[~right_B][:, None]
        keep_B1 = 0.8 / (p_BC.amax(1, keepdim=True) - p_BC.gather(1, y_B1) + 1.0)
        target_BC = keep_B1 * p_BC + (1.0 - keep_B1) * torch.zeros_like(p_BC).scatter(1, y_B1, 1.0)
        want = want + torch.nn.functional.mse_loss(torch.softmax(student_BC[~right_B], 1), target_BC)
    torch.testing.assert_close(got, want)
    grads = [torch.autograd.grad(loss, student_BC)[0] for loss in (got, want)]
    torch.testing.assert_close(*grads)


def test_truncation_waits_for_a_student_that_knows_something() -> None:
    """At its start a student gives every label 1/C, below any k: all gradients would be zero for good."""
    _, teacher_BC, labels_B = batch()
    flat_BC = torch.zeros_like(teacher_BC)
    early_BC = gradient("gce", flat_BC, teacher_BC, labels_B, truncate=0.5, progress=0.3)
    torch.testing.assert_close(early_BC, gradient("gce", flat_BC, teacher_BC, labels_B))
    late_BC = gradient("gce", flat_BC, teacher_BC, labels_B, truncate=0.5, progress=0.4)
    assert torch.equal(late_BC, torch.zeros_like(late_BC))


def test_nkd_cannot_fall_below_the_entropy_of_the_other_classes() -> None:
    _, teacher_BC, labels_B = batch()
    student_BC = teacher_BC.scatter_add(1, labels_B[:, None], torch.full((8, 1), 60.0, dtype=torch.float64))
    others_BC = torch.softmax((teacher_BC / 3.0).scatter(1, labels_B[:, None], -torch.inf), 1)
    entropy_B = torch.special.entr(others_BC).sum(1)
    torch.testing.assert_close(call("nkd", student_BC, teacher_BC, labels_B), 3.5 * 9.0 * entropy_B)


def test_dist_forgets_the_scale_and_shift_of_probabilities() -> None:
    """A student whose probabilities are an affine image of the teacher's loses nothing within rows."""
    _, teacher_BC, labels_B = batch()
    p_BC = torch.softmax(teacher_BC, 1)
    student_BC = (0.3 * p_BC + 0.7 / p_BC.shape[1]).log()
    rows_B = call("dist", student_BC, teacher_BC, labels_B, temperature=1.0, eps=1e-15)
    torch.testing.assert_close(rows_B, torch.zeros_like(rows_B), rtol=0, atol=1e-9)


def test_the_table_tells_its_story() -> None:
    table = describe_losses()
    for name, loss in LOSSES.items():
        assert f"\n{name} " in table
        text = describe_loss(name)
        for option in loss.options:
            explained = next(line for line in text.splitlines() if line.startswith(f"  {option}="))
            assert len(explained.split("  ")) >= 3, f"{name}: {option} is not explained in the docstring"
        assert "References: " in text
    with pytest.raises(ValueError, match="did you mean 'rld'"):
        describe_loss("rdl")


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_docstrings_come_in_one_order(name: str) -> None:
    doc = LOSSES[name].fn.__doc__ or ""
    wanted = [doc.index(f"    {section}:\n") for section in ("Args", "Returns", "References")]
    assert wanted == sorted(wanted)
    for tensor in ("student_BC", "teacher_BC", "labels_B"):
        assert f"        {tensor}: " in doc
