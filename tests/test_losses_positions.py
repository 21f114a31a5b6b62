"""Losses of examples that are answered at many positions: flattened once, and in chunks of rows where they are many.

Shapes: B batch, L positions, P rows, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from logitbank.pipeline.train_student.losses import (
    LOSSES,
    ExactAnswer,
    Material,
    MixedAnswer,
    Objective,
    Step,
    parse_objective,
)
from logitbank.pipeline.train_student.losses import objective as objectives
from logitbank.pipeline.train_student.losses.context import OFFERS
from logitbank.pipeline.train_student.losses.row_rules import ROW_WEIGHTS, TEMPERATURE_RULES

NUM_EXAMPLES, LENGTH, NUM_CLASSES = 3, 7, 11
STEP = Step(step=3, steps_per_epoch=2, num_epochs=4)


@dataclass(frozen=True)
class Told:
    """A teacher's answer that remembers how many rows were asked of it at once, and serves some."""

    logits_PC: Tensor
    served_P: Tensor | None = None
    asked: list[int] = field(default_factory=list)
    offers: frozenset[str] = frozenset(OFFERS)

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.logits_PC),)

    def logits(self, student_PC: Tensor, temperature: float) -> Tensor:
        self.asked.append(len(self.logits_PC))
        assert len(student_PC) == len(self.logits_PC)
        return self.logits_PC

    def order_known(self, student_PC: Tensor, temperature: float) -> Tensor | None:
        return self.logits_PC[:, 0] > 0

    def served(self) -> Tensor | None:
        return self.served_P

    def features(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def part(self, some: slice) -> Told:
        return Told(self.logits_PC[some], None if self.served_P is None else self.served_P[some], self.asked)


def batch(kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Student [B, L, C], teacher [P, C], labels [B, L], of which some are missing."""
    generator = torch.Generator().manual_seed(0)
    student_BLC = 2 * torch.randn(NUM_EXAMPLES, LENGTH, NUM_CLASSES, generator=generator, dtype=kind)
    teacher_PC = 2 * torch.randn(NUM_EXAMPLES * LENGTH, NUM_CLASSES, generator=generator, dtype=kind)
    labels_BL = torch.randint(-1, NUM_CLASSES, (NUM_EXAMPLES, LENGTH), generator=generator)
    labels_BL[2] = -1
    return student_BLC.requires_grad_(), teacher_PC, labels_BL


def made(name: str, settings: dict[str, str | float] | None = None) -> Objective:
    objective = parse_objective(name, settings or {})
    objective = objective.bind(**{key: values[0] for key, values in objective.search.items()})
    return objective.with_class_counts(range(1, NUM_CLASSES + 1)).equipped(Material(num_classes=NUM_CLASSES), 0)


ROW_WISE = sorted(
    name for name in LOSSES if not any(term.couples_rows or term.loss.module for term in parse_objective(name).terms)
)


def loss_and_gradient(
    objective: Objective, student: Tensor, answer: Told | ExactAnswer, labels: Tensor
) -> tuple[Tensor, Tensor]:
    loss_B = objective(student, answer, labels, STEP)
    weights_B = torch.linspace(0.5, 2.0, len(loss_B), dtype=loss_B.dtype)
    return loss_B.detach(), torch.autograd.grad((loss_B * weights_B).sum(), student)[0]


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_one_position_is_no_position(name: str) -> None:
    student_BLC, teacher_PC, labels_BL = batch()
    student_PC, labels_P = student_BLC.detach().flatten(0, 1).requires_grad_(), labels_BL.flatten()
    plain = loss_and_gradient(made(name), student_PC, Told(teacher_PC), labels_P)
    single = loss_and_gradient(made(name), student_PC, Told(teacher_PC), labels_P)
    placed = student_PC.detach()[:, None].requires_grad_()
    several = loss_and_gradient(made(name), placed, Told(teacher_PC), labels_P[:, None])
    assert torch.equal(plain[0], single[0])
    assert torch.equal(plain[0], several[0])
    assert torch.equal(plain[1], several[1][:, 0])


@pytest.mark.parametrize("name", ROW_WISE)
def test_an_example_gets_the_mean_over_the_positions_that_count(name: str) -> None:
    """For each term those that are served and, where it needs labels, labelled; none counts as 0."""
    student_BLC, teacher_PC, labels_BL = batch()
    served_P = torch.arange(NUM_EXAMPLES * LENGTH) % 3 > 0
    objective = made(name)
    total_B = torch.zeros(NUM_EXAMPLES)
    for term in objective.terms:
        alone = Objective(name, (term,), objective.modules)
        row_P = alone(student_BLC.flatten(0, 1), Told(teacher_PC, served_P), labels_BL.flatten(), STEP).detach()
        counts_P = served_P if term.fits_teacher else torch.ones_like(served_P)
        if "labels" in term.loss_needs:
            counts_P = counts_P & (labels_BL.flatten() >= 0)
        counts_BL, row_BL = counts_P.view(NUM_EXAMPLES, LENGTH), row_P.view(NUM_EXAMPLES, LENGTH)
        for example in range(NUM_EXAMPLES):
            if counts_BL[example].any():
                total_B[example] += row_BL[example][counts_BL[example]].mean()
    got_B = objective(student_BLC, Told(teacher_PC, served_P), labels_BL, STEP)
    torch.testing.assert_close(got_B.detach(), total_B, rtol=1e-5, atol=1e-6)


APART = sorted(name for name, rule in ROW_WEIGHTS.items() if "labels" not in rule.needs and not rule.feeds_back)


def variants() -> list[tuple[str, dict[str, str | float]]]:
    rows: list[tuple[str, dict[str, str | float]]] = [(name, {}) for name in ROW_WISE]
    rows += [("kd:1 + ce:0.5", {"row_weight": rule, "row_weight_mean_one": "false"}) for rule in APART]
    return rows


@pytest.mark.parametrize(("name", "settings"), variants())
@pytest.mark.parametrize("positions", [True, False])
def test_chunks_change_neither_loss_nor_gradient(
    name: str, settings: dict[str, str | float], positions: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    student, teacher_PC, labels = batch()
    if not positions:
        student, labels = student.detach().flatten(0, 1).requires_grad_(), labels.flatten()
    served_P = torch.arange(NUM_EXAMPLES * LENGTH) % 5 > 0
    objective = made(name, settings)
    whole = loss_and_gradient(objective, student, Told(teacher_PC, served_P), labels)
    notes = objective.notes()
    monkeypatch.setattr(objectives, "CHUNK", 4 * NUM_CLASSES)
    answer = Told(teacher_PC, served_P)
    parts = loss_and_gradient(objective, student, answer, labels)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    assert objective.notes() == notes
    assert max(answer.asked, default=0) <= 4
    with torch.no_grad():
        torch.testing.assert_close(objective(student, answer, labels, STEP), whole[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        {"row_weight": "paced", "row_weight_mean_one": "false"},
        *({"temperature_rule": rule} for rule in TEMPERATURE_RULES),
    ],
)
def test_rows_that_depend_on_each_other_stay_together(
    settings: dict[str, str | float], monkeypatch: pytest.MonkeyPatch
) -> None:
    student_BLC, teacher_PC, labels_BL = batch()
    whole = loss_and_gradient(made("kd", settings), student_BLC, Told(teacher_PC), labels_BL)
    monkeypatch.setattr(objectives, "CHUNK", 1)
    answer = Told(teacher_PC)
    again = loss_and_gradient(made("kd", settings), student_BLC, answer, labels_BL)
    assert torch.equal(whole[0], again[0])
    assert torch.equal(whole[1], again[1])
    assert set(answer.asked) == {len(teacher_PC)}


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_chunks_of_halves_keep_small_gradients(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scaler's factor comes behind them."""
    student_BLC, teacher_PC, labels_BL = batch()
    half = student_BLC.detach().to(kind).requires_grad_()
    whole = loss_and_gradient(made("kd"), half, ExactAnswer(teacher_PC), labels_BL)
    (scaled,) = torch.autograd.grad(
        1e-6 * 2**16 * made("kd")(half, ExactAnswer(teacher_PC), labels_BL, STEP).sum(), half
    )
    monkeypatch.setattr(objectives, "CHUNK", 4 * NUM_CLASSES)
    torch.testing.assert_close(loss_and_gradient(made("kd"), half, ExactAnswer(teacher_PC), labels_BL), whole)
    loss_B = 1e-6 * 2**16 * made("kd")(half, ExactAnswer(teacher_PC), labels_BL, STEP)
    torch.testing.assert_close(torch.autograd.grad(loss_B.sum(), half)[0], scaled)


def test_labels_of_other_examples_are_refused() -> None:
    student_BLC, teacher_PC, labels_BL = batch()
    with pytest.raises(ValueError, match=r"labels are \[3, 6\] beside logits \[3, 7, 11\]; expected one an answer"):
        made("kd")(student_BLC, ExactAnswer(teacher_PC), labels_BL[:, 1:], STEP)


def test_logits_of_other_examples_or_positions_are_refused() -> None:
    """Time before examples, as torch's own recurrent layers have it, holds as many numbers: in another order."""
    student_BLC, teacher_PC, labels_BL = batch()
    answer = ExactAnswer(teacher_PC.view_as(student_BLC))
    objective = made("kd", {"temperature": 1})
    expected = objective(student_BLC, answer, labels_BL, STEP)
    flat = objective(student_BLC, ExactAnswer(teacher_PC), labels_BL, STEP)
    torch.testing.assert_close(flat, expected)
    for student, labels in (
        (student_BLC.transpose(0, 1), labels_BL.T),
        (student_BLC[:, :-1], labels_BL[:, 1:]),
        (student_BLC[:-1], labels_BL[:-1]),
    ):
        with pytest.raises(ValueError, match="and the answer is about .* every position"):
            objective(student, answer, labels, STEP)
    with pytest.raises(ValueError, match="labels are torch.float32; expected class ids"):
        objective(student_BLC, answer, labels_BL.float(), STEP)


def test_mixed_answers_know_positions(monkeypatch: pytest.MonkeyPatch) -> None:
    """An example's positions are mixed with its own share; the same in chunks of rows."""
    student_BLC, first_PC, labels_BL = batch()
    second_PC, share_B = first_PC.flip(0), torch.tensor([0.5, 0.75, 1.0])
    answer = MixedAnswer(Told(first_PC), Told(second_PC), share_B.repeat_interleave(LENGTH))
    objective = parse_objective("kd:1", {"temperature": 30, "target_transform": "mix_targets"})
    unlabelled_BL = torch.full_like(labels_BL, -1)
    share_P1 = share_B[:, None].expand(-1, LENGTH).reshape(-1, 1)
    mixed_PC = share_P1 * first_PC + (1 - share_P1) * second_PC
    want_P = LOSSES["kd"].fn(student_BLC.flatten(0, 1), mixed_PC, unlabelled_BL.flatten(), temperature=30.0)
    for chunk in (2**24, 2 * NUM_CLASSES):
        monkeypatch.setattr(objectives, "CHUNK", chunk)
        got_B = objective(student_BLC, answer, unlabelled_BL, STEP)
        torch.testing.assert_close(got_B, want_P.view(NUM_EXAMPLES, LENGTH).mean(1))
