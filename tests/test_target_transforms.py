"""Target transforms: each against its formula, and the laws that hold for all of the table.

Shapes: B batch, C classes, N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import log_softmax, softmax
from torch import Tensor

from logitbank.pipeline.train_student.losses import (
    LOSSES,
    TRANSFORMS,
    ExactAnswer,
    MixedAnswer,
    Step,
    Transform,
    fitted_targets,
    own_transform,
    parse_objective,
)
from logitbank.pipeline.train_student.losses.transform_fits import fit_scaling, fit_transition

Array = NDArray[np.float64]
FIRST = Step(step=0, steps_per_epoch=1, num_epochs=1)
CASES: list[tuple[str, dict[str, Any]]] = [
    ("label_mix", {"alpha": 0.3}),
    ("label_mix", {"alpha": 1.0}),
    ("calibrate", {"method": "temperature"}),
    ("calibrate", {"method": "vector"}),
    ("noise_transition", {"strength": 1.0, "prior": 1.0}),
    ("noise_transition", {"strength": 0.4, "prior": 50.0}),
    ("mix_targets", {}),
]


def rows(num_rows: int, num_classes: int, seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor]:
    """Logits that are right on most rows, labels of which every fifth is missing, folds."""
    generator = torch.Generator().manual_seed(seed)
    labels_N = torch.randint(num_classes, (num_rows,), generator=generator)
    logits_NC = scale * torch.randn(num_rows, num_classes, generator=generator)
    right_N = torch.rand(num_rows, generator=generator) < 0.7
    logits_NC[torch.arange(num_rows), labels_N] += torch.where(right_N, 3.0 * scale, 0.0)
    return logits_NC, torch.where(torch.arange(num_rows) % 5 == 4, -1, labels_N), torch.arange(num_rows) % 3


def transform(name: str, options: dict[str, Any], num_classes: int) -> Transform:
    """Ready to be asked: fitted to other rows, where it is fitted."""
    rule = TRANSFORMS[name]
    found = Transform(name=name, rule=rule, options={**rule.options, **options})
    if rule.fit is None:
        return found
    logits_NC, labels_N, folds_N = rows(max(60, 3 * num_classes), num_classes, seed=9)
    known_N = labels_N >= 0
    tensors, _ = rule.fit(logits_NC[known_N].double(), labels_N[known_N], folds_N[known_N], found.options)
    return replace(found, fitted=tensors)


def label_mix(z: Array, y: int, alpha: float, **_: Any) -> Array:
    p = softmax(z)
    return np.asarray(p if y < 0 else alpha * np.eye(len(z))[y] + (1 - alpha) * p)


def calibrate(z: Array, y: int, scale_C: Array, shift_C: Array, **_: Any) -> Array:
    return np.asarray(softmax(scale_C * z + shift_C))


def noise_transition(z: Array, y: int, transition_CC: Array, strength: float, **_: Any) -> Array:
    p = softmax(z)
    moved = np.array([sum(p[i] * transition_CC[i, j] for i in range(len(p))) for j in range(len(p))])
    return np.asarray((1 - strength) * p + strength * moved)


REFERENCES: dict[str, Callable[..., Array]] = {
    "label_mix": label_mix,
    "calibrate": calibrate,
    "noise_transition": noise_transition,
    "mix_targets": lambda z, y: np.asarray(softmax(z)),
}


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("num_classes", [2, 10])
def test_the_transform_is_its_formula(name: str, options: dict[str, Any], num_classes: int) -> None:
    ready = transform(name, options, num_classes)
    logits_BC, labels_B, _ = rows(16, num_classes)
    fitted = {key: value.numpy() for key, value in ready.fitted.items()}
    got_BC = ready(logits_BC.double(), labels_B).softmax(1).numpy()
    for z, y, got in zip(logits_BC.double().numpy(), labels_B.tolist(), got_BC, strict=True):
        np.testing.assert_allclose(got, REFERENCES[name](z, y, **ready.options, **fitted), rtol=1e-9, atol=1e-12)


def test_every_transform_has_a_reference_and_a_case() -> None:
    assert set(REFERENCES) == set(TRANSFORMS) == {name for name, _ in CASES}


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("num_classes", [2, 10, 1000])
def test_the_mass_stays_1_and_nothing_is_lost_at_extremes_or_ties(
    name: str, options: dict[str, Any], num_classes: int
) -> None:
    """Masked classes come 1e4 below the best, as answers hand them out; every temperature is served."""
    ready = transform(name, options, num_classes)
    logits_BC, labels_B, _ = rows(20, num_classes)
    logits_BC[:4], logits_BC[4:8] = 0.0, -1e4  # all alike
    logits_BC[8:12, 0], logits_BC[12:14, 1:] = 1e4, -1e4  # sure; and of no other class at all
    kept = logits_BC.clone(), labels_B.clone()
    found_BC = ready(logits_BC, labels_B)
    assert torch.equal(logits_BC, kept[0])
    assert torch.equal(labels_B, kept[1])
    assert found_BC.dtype == torch.float32
    assert found_BC.isfinite().all()
    for temperature in (0.5, 1.0, 30.0):
        p_BC = (found_BC.double() / temperature).softmax(1)
        torch.testing.assert_close(p_BC.sum(1), torch.ones(20, dtype=torch.float64))
        assert (p_BC >= 0).all()
    torch.testing.assert_close(ready(logits_BC[3:9], labels_B[3:9]), found_BC[3:9])  # row by row


@pytest.mark.parametrize(
    ("name", "options", "fitted"),
    [
        ("label_mix", {"alpha": 0.0}, {}),
        ("calibrate", {}, {"scale_C": torch.ones(10), "shift_C": torch.zeros(10)}),
        ("noise_transition", {"strength": 0.0}, {"transition_CC": torch.eye(10)}),
        ("mix_targets", {}, {}),
    ],
)
def test_a_transform_that_says_nothing_changes_nothing_bit_for_bit(
    name: str, options: dict[str, Any], fitted: dict[str, Tensor]
) -> None:
    rule = TRANSFORMS[name]
    idle = Transform(name=name, rule=rule, options={**rule.options, **options}, fitted=fitted)
    logits_BC, labels_B, _ = rows(16, 10)
    assert torch.equal(idle(logits_BC, labels_B), logits_BC)
    student_BC = torch.randn(16, 10)
    for text in ("kd", "reverse_kl", "mse"):
        plain = parse_objective(text)
        assert torch.equal(
            plain.with_transforms([idle])(student_BC, _answer(logits_BC, idle), labels_B, FIRST),
            plain(student_BC, ExactAnswer(logits_BC), labels_B, FIRST),
        )


def _answer(logits_BC: Tensor, each: Transform) -> ExactAnswer | MixedAnswer:
    answer = ExactAnswer(logits_BC, out_of_fold=True)
    return MixedAnswer(answer, answer, torch.ones(len(logits_BC))) if each.rule.mixes else answer


def test_an_identity_channel_leaves_probabilities_as_they_are() -> None:
    rule = TRANSFORMS["noise_transition"]
    ready = Transform(name="n", rule=rule, options=rule.options, fitted={"transition_CC": torch.eye(10).double()})
    logits_BC, labels_B, _ = rows(16, 10)
    torch.testing.assert_close(ready(logits_BC, labels_B).softmax(1), logits_BC.softmax(1))


def test_transforms_come_before_the_temperature_and_one_after_the_other() -> None:
    logits_BC, labels_B, _ = rows(16, 10)
    student_BC = torch.randn(16, 10)
    text = "noise_transition?strength=0.5 + label_mix?alpha=0.2"
    objective = parse_objective("kd:1", {"target_transform": text, "temperature": 3})
    first, second = (
        transform("noise_transition", {"strength": 0.5}, 10),
        transform("label_mix", {"alpha": 0.2}, 10),
    )
    objective = objective.with_transforms([first, second])
    got_B = objective(student_BC, ExactAnswer(logits_BC, out_of_fold=True), labels_B, FIRST)
    p_BC = np.stack(
        [
            label_mix(np.log(noise_transition(z, y, first.fitted["transition_CC"].numpy(), 0.5)), y, 0.2)
            for z, y in zip(logits_BC.double().numpy(), labels_B.tolist(), strict=True)
        ]
    )
    p_BC = softmax(np.log(p_BC) / 3, axis=1)
    log_q_BC = log_softmax(student_BC.double().numpy() / 3, axis=1)
    want_B = 9 * (p_BC * (np.log(p_BC) - log_q_BC)).sum(1)
    np.testing.assert_allclose(got_B.numpy(), want_B, rtol=1e-4)


def test_a_mixed_target_is_a_sum_with_the_label_at_temperature_1() -> None:
    """Cross-entropy is linear in the target: that is what generations with a label weight train."""
    logits_BC, labels_B, _ = rows(16, 10)
    labels_B = labels_B.clamp(min=0)
    student_BC = torch.randn(16, 10)
    mixed = parse_objective("soft_ce", {"target_transform": "label_mix?alpha=0.3"})
    summed = parse_objective("soft_ce:0.7 + ce:0.3")
    answer = ExactAnswer(logits_BC)
    torch.testing.assert_close(
        mixed(student_BC, answer, labels_B, FIRST), summed(student_BC, answer, labels_B, FIRST), rtol=1e-5, atol=1e-5
    )


def test_row_weights_judge_the_teacher_and_not_what_is_made_of_it() -> None:
    logits_BC, labels_B, _ = rows(16, 10)
    student_BC = torch.randn(16, 10)
    settings = {"row_weight": "label_noise", "kd.row_weight": "label_noise", "target_transform": "label_mix?alpha=1"}
    answer = ExactAnswer(logits_BC, out_of_fold=True)
    got_B = parse_objective("kd:1 + ce:1", settings)(student_BC, answer, labels_B, FIRST)
    unweighted = parse_objective("kd:1 + ce:1", {"target_transform": "label_mix?alpha=1"})
    weight_B = (got_B / unweighted(student_BC, answer, labels_B, FIRST))[labels_B >= 0]
    assert weight_B.min() < 0.5 < 1 < weight_B.max()


def test_students_without_gradients_are_fitted_to_the_same_target() -> None:
    logits_BC, labels_B, _ = rows(16, 10)
    objective = parse_objective("soft_ce", {"target_transform": "label_mix?alpha=0.25"})
    targets = fitted_targets(objective, ExactAnswer(logits_BC), labels_B, 10, "cross-entropy")
    want = [label_mix(z, y, 0.25) for z, y in zip(logits_BC.double().numpy(), labels_B.tolist(), strict=True)]
    np.testing.assert_allclose(targets.target_NC.numpy(), np.stack(want), atol=1e-9)


def test_mixed_answers_have_their_logits_mixed_and_no_label() -> None:
    first_BC, second_BC, student_BC = torch.randn(3, 8, 10)
    share_B = torch.linspace(0.5, 1.0, 8)
    answer = MixedAnswer(ExactAnswer(first_BC), ExactAnswer(second_BC), share_B)
    objective = parse_objective("kd:1", {"temperature": 30, "target_transform": "mix_targets"})
    unlabelled_B = torch.full((8,), -1)
    got_B = objective(student_BC, answer, unlabelled_B, FIRST)
    mixed_BC = share_B[:, None] * first_BC + (1 - share_B[:, None]) * second_BC
    torch.testing.assert_close(got_B, LOSSES["kd"].fn(student_BC, mixed_BC, unlabelled_B, temperature=30.0))
    with pytest.raises(ValueError, match="goes by pairs of examples"):
        objective(student_BC, ExactAnswer(first_BC), unlabelled_B, FIRST)


def test_the_temperature_is_that_of_the_least_nll() -> None:
    logits_NC, labels_N, folds_N = (part[rows(600, 5)[1] >= 0] for part in rows(600, 5))
    tensors, found = fit_scaling(logits_NC.double() * 4, labels_N, folds_N, {"method": "temperature"})

    def nll(log_t: Array) -> float:
        scaled = log_softmax(logits_NC.double().numpy() * 4 / np.exp(log_t[0]), axis=1)
        return -float(scaled[np.arange(len(labels_N)), labels_N.numpy()].mean())

    best = float(np.exp(minimize(nll, [0.0], tol=1e-10).x[0]))
    assert found["T"] == pytest.approx(best, rel=2e-3)
    assert torch.equal(tensors["shift_C"], torch.zeros(5, dtype=torch.float64))
    assert found["nll_after"] < found["nll_before"] == pytest.approx(nll(np.zeros(1)), rel=1e-3)
    assert found["nll_after"] == pytest.approx(nll(np.log([best])), rel=0.05)


def test_vector_scaling_undoes_a_shift_of_a_class() -> None:
    logits_NC, labels_N, folds_N = (part[rows(900, 5)[1] >= 0] for part in rows(900, 5))
    shifted_NC = logits_NC.double() + torch.tensor([4.0, 0, 0, 0, 0])
    tensors, found = fit_scaling(shifted_NC, labels_N, folds_N, {"method": "vector"})
    plain = fit_scaling(logits_NC.double(), labels_N, folds_N, {"method": "vector"})
    assert found["nll_after"] == pytest.approx(plain.found["nll_after"], rel=0.03)
    assert found["nll_before"] > 1.5 * found["nll_after"]
    assert (tensors["scale_C"] > 0).all()
    assert "T" not in found


def test_the_channel_counts_what_labels_say_where_the_teacher_says_a_class() -> None:
    logits_NC, labels_N, folds_N = (part[rows(300, 4)[1] >= 0] for part in rows(300, 4))
    tensors, found = fit_transition(logits_NC.double(), labels_N, folds_N, {"strength": 1.0, "prior": 2.0})
    p_NC, y = softmax(logits_NC.double().numpy(), axis=1), labels_N.numpy()
    want = np.array([[p_NC[y == j, i].sum() + 2.0 * (i == j) for j in range(4)] for i in range(4)])
    want /= (p_NC.sum(0) + 2.0)[:, None]
    np.testing.assert_allclose(tensors["transition_CC"].numpy(), want, rtol=1e-9)
    np.testing.assert_allclose(want.sum(1), 1.0)
    assert found["kept"] == pytest.approx(np.diag(want).mean(), rel=1e-3)
    with pytest.raises(ValueError, match="at most 4096 of them, found 5000"):
        fit_transition(torch.zeros(1, 5000).double(), torch.zeros(1).long(), torch.zeros(1).long(), {})


def test_a_teacher_of_permuted_classes_is_put_right() -> None:
    logits_NC, labels_N, folds_N = (part[rows(400, 4)[1] >= 0] for part in rows(400, 4))
    permuted_NC = 3 * logits_NC.double()[:, [1, 2, 3, 0]]
    tensors, found = fit_transition(permuted_NC, labels_N, folds_N, {"strength": 1.0, "prior": 1.0})
    rule = TRANSFORMS["noise_transition"]
    right = Transform(name="n", rule=rule, options=rule.options, fitted=tensors)(permuted_NC, labels_N)
    before, after = ((each.argmax(1) == labels_N).double().mean() for each in (permuted_NC, right))
    assert before < 0.3 < 0.6 < after
    assert found["nll_after"] < 0.3 * found["nll_before"]


def test_settings_say_what_was_asked_for_and_found() -> None:
    objective = parse_objective("kd", {"target_transform": " label_mix ?alpha=.50 "})
    assert objective.settings["target_transforms"] == [{"transform": "label_mix", "alpha": 0.5}]
    assert objective.needs == {"labels", "fixed_tail"}
    assert "target_transforms" not in parse_objective("kd").settings
    auto = parse_objective("kd", {"target_transform": "label_mix?alpha=auto"})
    assert auto.needs == {"labels", "fixed_tail", "out_of_fold"}
    with pytest.raises(ValueError, match="alpha of label_mix is auto"):
        auto(torch.randn(2, 3), ExactAnswer(torch.randn(2, 3), out_of_fold=True), torch.tensor([0, 1]), FIRST)
    with pytest.raises(ValueError, match="calibrate has not been fitted"):
        parse_objective("kd:1", {"target_transform": "calibrate"})(
            torch.randn(2, 3), ExactAnswer(torch.randn(2, 3), out_of_fold=True), torch.tensor([0, 1]), FIRST
        )


@pytest.mark.parametrize(
    ("loss", "text", "message"),
    [
        ("kd", "label_mx", "did you mean 'label_mix'"),
        ("kd", "label_mix?alfa=1", "unknown setting of label_mix 'alfa', did you mean 'alpha'"),
        ("kd", "label_mix?alpha=0", r"alpha is a number in \(0, 1\]"),
        ("kd", "label_mix:0.5", "takes no weight"),
        ("kd", "label_mix + label_mix", "stands twice"),
        ("kd", "label_mix + calibrate", "write it before label_mix"),
        ("kd:1", "calibrate + mix_targets", "write it first"),
        ("kd", "mix_targets", "a mixed sample has no label, which ce needs"),
        ("ce", "label_mix", "no term of loss 'ce' fits"),
        ("mse", "noise_transition", "gives probabilities, but mse compares raw logits"),
        ("kd", "", "unknown target transform ''"),
        ("kd", "calibrate?method=matrix", "one of temperature, vector"),
    ],
)
def test_what_makes_no_sense_is_refused(loss: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_objective(loss, {"target_transform": text})
    assert "\n" not in str(caught.value)


def sharpened(logits_BC: Tensor, labels_B: Tensor, *, power: float = 2.0) -> Tensor:
    return power * logits_BC


def only_labels(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels_B.clamp(min=0), logits_BC.shape[1]).float()


def test_a_transform_of_ones_own_is_one_like_any_other() -> None:
    own = {"mine.py:sharpened": own_transform(sharpened), "mine.py:only_labels": own_transform(only_labels)}
    text = "mine.py:sharpened?power=3"
    objective = parse_objective("kd:1", {"target_transform": text}, own_transforms=own)
    logits_BC, labels_B, _ = rows(16, 10)
    student_BC = torch.randn(16, 10)
    want_B = LOSSES["kd"].fn(student_BC, 3 * logits_BC, labels_B, temperature=4.0)
    torch.testing.assert_close(objective(student_BC, ExactAnswer(logits_BC), labels_B, FIRST), want_B)
    (said,) = objective.settings["target_transforms"]
    assert (said["transform"], said["power"], len(said["sha256"])) == ("mine.py:sharpened", 3.0, 64)
    assert "labels" not in objective.needs
    labelled = parse_objective("kd:1", {"target_transform": "mine.py:only_labels"}, own_transforms=own)
    assert "labels" in labelled.needs


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda z, y: z.sum(1), r"law of shape: expected \[64, 10\], found \[64\]"),
        (lambda z, y: z.double(), "law of precision"),
        (lambda z, y: z.softmax(1).log(), "law of finite values"),
        (lambda z, y: z.mul_(2.0), "law of inputs"),
        (lambda z, y: z + torch.randn_like(z), "law of repetition"),
        (lambda z, y: z - z.mean(), "law of single rows"),
        (lambda z, y: z @ y, "it fails on logits of"),
    ],
)
def test_a_transform_that_breaks_a_law_is_refused(fn: Callable[..., Tensor], message: str) -> None:
    own = {"mine.py:broken": own_transform(fn, "mine.py:broken", sha256="0" * 64)}
    with pytest.raises(ValueError, match=message) as caught:
        parse_objective("kd", {"target_transform": "mine.py:broken"}, own_transforms=own)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (lambda z: z, r"expected \(logits_BC, labels_B"),
        (lambda z, y, *, progress: z, "does not go by the step"),
        (lambda z, y, *, k: z, "needs a default"),
    ],
)
def test_another_signature_is_refused(fn: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        own_transform(fn, "mine.py:odd", sha256="0" * 64)
