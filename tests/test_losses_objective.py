"""From `--loss` and `--set` to an objective: recipes, sums, settings, row rules, and what it reports.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from logitbank.pipeline.fit import Training
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.cautions import cautions
from logitbank.pipeline.train_student.losses import LOSSES, SEARCH, ExactAnswer, Step, parse_objective
from logitbank.pipeline.train_student.losses.row_rules import row_temperatures, row_weights


def batch(num_rows: int = 6, num_classes: int = 10, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student_BC = torch.randn(num_rows, num_classes, generator=generator) * 2
    teacher_BC = torch.randn(num_rows, num_classes, generator=generator) * 2
    return student_BC, teacher_BC, torch.randint(num_classes, (num_rows,), generator=generator)


def at(epoch: int = 1, num_epochs: int = 240) -> Step:
    """The first step of an epoch of one step."""
    return Step(step=epoch - 1, steps_per_epoch=1, num_epochs=num_epochs)


def test_a_single_name_is_its_papers_recipe() -> None:
    student_BC, teacher_BC, labels_B = batch()
    for name, loss in LOSSES.items():
        if name == "ce":
            continue
        extras = {"progress": 0.0} if "progress" in loss.extras else {}
        rows_B = loss.fn(student_BC, teacher_BC, labels_B, **loss.options, **extras)
        warm = 1 / loss.warmup if loss.warmup else 1.0
        want_B = loss.weight * warm * rows_B + loss.ce_weight * LOSSES["ce"].fn(student_BC, teacher_BC, labels_B)
        got_B = parse_objective(name)(student_BC, ExactAnswer(teacher_BC), labels_B, at(1, 240))
        torch.testing.assert_close(got_B, want_B)


def test_a_sum_is_just_that_sum() -> None:
    student_BC, teacher_BC, labels_B = batch()
    got_B = parse_objective("dkd:0.9 + ce:0.1")(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    dkd_B = LOSSES["dkd"].fn(student_BC, teacher_BC, labels_B, **LOSSES["dkd"].options)
    torch.testing.assert_close(got_B, 0.9 * dkd_B + 0.1 * LOSSES["ce"].fn(student_BC, teacher_BC, labels_B))


def test_warm_up_rises_linearly_and_stays() -> None:
    term = parse_objective("rld").terms[0]
    assert [term.factor(at(epoch)) for epoch in (1, 10, 20, 200)] == [0.05, 0.5, 1.0, 1.0]
    assert parse_objective("rld", {"warmup": 0}).terms[0].factor(at(1)) == 1.0


def test_settings_reach_the_terms_they_name() -> None:
    objective = parse_objective("rld:1 + dkd:2", {"beta": "3", "dkd.beta": 4, "rld.weight": 5, "temperature": 2})
    rld, dkd = objective.terms
    assert (rld.options["beta"], dkd.options["beta"], rld.weight, dkd.weight) == (3.0, 4.0, 5.0, 2.0)
    assert objective.temperature == 2.0
    assert parse_objective("rld", {"same_t": 0, "alpha_temperature": 8}).temperature == 8.0
    json.dumps(objective.settings)


def test_presets_replace_weights_and_options_and_settings_come_last() -> None:
    rld = parse_objective("rld", {"preset": "imagenet", "beta": 2}).terms[0]
    assert (rld.options["temperature"], rld.options["beta"], rld.warmup) == (1.0, 2.0, 1.0)
    kd, ce = parse_objective("kd", {"preset": "imagenet"}).terms
    assert (kd.weight, ce.weight) == (0.5, 0.5)
    assert parse_objective("kd", {"preset": "standardised"}).terms[0].standardise
    assert parse_objective("kd", {"preset": "cifar"}).settings == parse_objective("kd").settings
    kd, ce = parse_objective("kd", {"preset": "imagenet_rld"}).terms
    assert (kd.weight, ce.weight, kd.temperature) == (0.5, 1.0, 1.0)


def test_standardised_presets_are_those_of_the_authors_flag() -> None:
    found = {}
    for name in ("kd", "rld", "dkd", "swap", "rc"):
        term = parse_objective(name, {"preset": "standardised"}).terms[0]
        assert term.standardise
        assert term.temperature == 2.0
        found[name] = (term.weight, term.options.get("alpha"), term.options.get("beta"), term.options.get("rc_weight"))
    assert found == {
        "kd": (9.0, None, None, None),
        "rld": (1.0, 9.0, 72.0, None),
        "dkd": (1.0, 9.0, 72.0, None),
        "swap": (1.0, None, None, None),
        "rc": (9.0, None, None, 0.1),
    }


def test_needs_follow_the_options() -> None:
    assert parse_objective("kd").needs == {"labels"}
    assert parse_objective("kd", {"ce_weight": 0}).needs == frozenset()
    assert parse_objective("gce:1", {"target": "teacher"}).needs == frozenset()
    assert "dense" in parse_objective("sel_corrected").needs
    assert "dense" not in parse_objective("sel_corrected", {"scale": "probability"}).needs
    assert parse_objective("sel_corrected").prefers == {"out_of_fold"}
    assert "out_of_fold" in parse_objective("kd", {"row_weight": "label_noise"}).needs
    assert "out_of_fold" in parse_objective("kd", {"row_weight": "paced", "paced_by": "teacher"}).needs
    assert "out_of_fold" not in parse_objective("kd", {"row_weight": "paced"}).needs
    assert not parse_objective("ce", {"row_weight": "paced"}).uses_teacher
    assert {"logits"} <= parse_objective("kd", {"standardise": 1}).needs
    assert "logits" not in parse_objective("sel_corrected", {"scale": "probability"}).needs
    assert not parse_objective("ce").uses_teacher
    assert parse_objective("ce", {"row_weight": "label_noise"}).uses_teacher


def test_c_auto_is_searched_outside_and_bound() -> None:
    student_BC, teacher_BC, labels_B = batch()
    objective = parse_objective("sel_corrected", {"c": "auto"})
    assert objective.search == {"c": SEARCH["c"]}
    with pytest.raises(ValueError, match="c is auto"):
        objective(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    bound = objective.bind(c=0.3)
    assert bound.search == {}
    want_B = parse_objective("sel_corrected", {"c": 0.3})(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    assert torch.equal(bound(student_BC, ExactAnswer(teacher_BC), labels_B, at()), want_B)
    with pytest.raises(ValueError, match="is not auto"):
        bound.bind(c=1.0)


def test_what_is_bound_lies_in_the_domain() -> None:
    objective = parse_objective("sel_corrected", {"c": "auto"})
    for value in (-1.0, 0.0, float("nan")):
        with pytest.raises(ValueError, match="c is a number in"):
            objective.bind(c=value)


def test_a_run_says_when_a_warm_up_does_not_end_and_when_parts_of_a_batch_change_the_loss() -> None:
    alone, two = Processes(), Processes(number=0, count=2)
    rld = parse_objective("rld")
    assert cautions(rld, Training(epochs=20), alone) == []
    (line,) = cautions(rld, Training(epochs=5), alone)
    assert "the weight of rld rises over 20 epochs, and the run has 5: it ends at 0.25 of it" in line
    cases: tuple[tuple[str, dict[str, str | float], str], ...] = (
        ("kd", {}, ""),
        ("dist", {}, "dist"),
        ("dist:1", {"gamma": 0}, ""),
        ("lr:1 + kd:1", {}, "lr"),
        ("kd", {"row_weight": "paced"}, "kd, ce"),
        ("kd", {"row_weight": "paced", "row_weight_mean_one": 0}, "kd, ce"),  # rows without a label get the mean
        ("kd", {"row_weight": "confidence", "row_weight_mean_one": 0}, ""),
        ("kd", {"temperature_rule": "difficulty"}, "kd"),
    )
    for text, settings, coupled in cases:
        objective = parse_objective(text, settings)
        assert cautions(objective, Training(epochs=1), alone) == []
        for said in (
            cautions(objective, Training(epochs=1, accumulate=2), alone),
            cautions(objective, Training(epochs=1), two),
        ):
            assert [line.partition(":")[0] for line in said] == ([coupled] if coupled else [])


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("kdd", {}, "did you mean 'kd'"),
        ("kd+ce", {}, "'kd' has no weight in a sum"),
        ("kd:1 + kd:2", {}, "stands twice"),
        ("kd?temperature=4:1 + kd:2", {}, "stands twice"),
        ("kd?temperature=2:1 + kd?temperature=2.0:2", {}, "stands twice"),
        ("kd?temperature=2:1", {"kd.temperature": 3}, "kd.temperature is set twice"),
        ("kd?temperature=2:1", {"temperature": 3}, "set for every term by name already"),
        ("kd?temperature:1", {}, "expected each option once, as kd[?]temperature=2"),
        ("kd?temperature=2&temperature=3:1", {}, "expected each option once"),
        ("kd?:1", {}, "expected each option once"),
        ("kd?temprature=2:1", {}, "did you mean 'temperature'"),
        ("kd?temperature=0:1", {}, r"in \[0.01, 1000\]"),
        ("kd?temperature=2:1 + kd:1", {"kd3.weight": 1}, "unknown term 'kd3'"),
        ("kd:heavy", {}, "is a number"),
        ("kd", {"temprature": 3}, "did you mean 'temperature'"),
        ("kd", {"temperature": 0}, r"in \[0.01, 1000\]"),
        ("kd", {"temperature": "nan"}, "is a number"),
        ("kd", {"preset": "imagnet"}, "did you mean 'imagenet'"),
        ("kd", {"rld.beta": 1}, "unknown term 'rld'"),
        ("kd", {"row_weight": "confidance"}, "did you mean 'confidence'"),
        ("kd", {"temperature_rule": "hard"}, "known: difficulty"),
        ("kd", {"standardise": "maybe"}, "is 1 or 0"),
        ("redistill", {"orientation": "up"}, "one of teacher_first, student_first"),
        ("kd:1 + ce:1", {"ce_weight": 1}, "belongs to a recipe"),
        ("kd:1 + ce:1", {"weight": 1}, "weight of which term"),
        ("gce", {"q": 2}, r"in \[1e-6, 1\]"),
    ],
)
def test_mistakes_are_named(text: str, settings: dict[str, str | float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_objective(text, settings)
    assert "\n" not in str(caught.value)


def test_a_loss_may_stand_several_times_with_other_settings() -> None:
    """Multi-level distillation: one loss at several temperatures."""
    objective = parse_objective("kd?temperature=2&warmup=3:0.5 + kd:0.25 + ce:0.1", {"kd2.temperature": 6})
    first, second, _ = objective.terms
    assert (first.name, first.temperature, first.warmup, first.weight) == ("kd", 2.0, 3.0, 0.5)
    assert (second.name, second.kind, second.temperature, second.weight) == ("kd2", "kd", 6.0, 0.25)
    assert objective.name == "kd?temperature=2&warmup=3:0.5 + kd:0.25 + ce:0.1"
    assert [term.get("kind") for term in objective.settings["terms"]] == [None, "kd", None]
    student_BC, teacher_BC, labels_B = batch()
    step = Step(step=0, steps_per_epoch=1, num_epochs=3)
    got_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, step)
    tensors = student_BC, teacher_BC, labels_B
    kd, ce = LOSSES["kd"].fn, LOSSES["ce"].fn
    want_B = 0.5 / 3 * kd(*tensors, temperature=2.0) + 0.25 * kd(*tensors, temperature=6.0) + 0.1 * ce(*tensors)
    torch.testing.assert_close(got_B, want_B)
    assert [term.temperature for term in parse_objective("kd:1 + kd:1", {"kd2.temperature": 2}).terms] == [4.0, 2.0]
    recipe = parse_objective("kd?temperature=2")
    assert recipe.settings["terms"] == parse_objective("kd", {"temperature": 2}).settings["terms"]


def test_unlabelled_rows_get_nothing_from_terms_that_need_a_label() -> None:
    student_BC, teacher_BC, labels_B = batch()
    student_BC.requires_grad_()
    labels_B[2] = -1
    for name in LOSSES:
        objective = parse_objective(f"{name}:1")
        rows_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, at())
        assert rows_B.isfinite().all()
        if "labels" in objective.needs:
            assert rows_B[2] == 0.0
    kd_B = parse_objective("kd")(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    assert kd_B[2] == parse_objective("kd:0.9")(student_BC, ExactAnswer(teacher_BC), labels_B, at())[2]


@dataclass(frozen=True)
class Half(ExactAnswer):
    """An answer whose order is known on some rows."""

    known_B: Tensor

    def order_known(self, student_BC: Tensor, temperature: float) -> Tensor:
        return self.known_B


def test_a_row_weight_that_asks_for_labels_leaves_unlabelled_rows_of_the_teacher_alone() -> None:
    student_BC, teacher_BC, labels_B = batch()
    labels_B[2] = -1

    def losses(text: str, settings: dict[str, str | float]) -> Tensor:
        return parse_objective(text, settings)(student_BC, ExactAnswer(teacher_BC), labels_B, at())

    paced_B = losses("kd", {"row_weight": "paced"})
    torch.testing.assert_close(paced_B[2], losses("kd", {})[2])
    assert paced_B[2] > 0
    ratio_B = losses("kd:1", {"row_weight": "paced", "row_weight_mean_one": 0}) / losses("kd:1", {})
    torch.testing.assert_close(ratio_B[2], ratio_B[labels_B >= 0].mean())  # as much as a judged row, on average


def test_unlabelled_rows_do_not_count_among_the_right_and_wrong_rows_of_lr() -> None:
    student_BC, teacher_BC, labels_B = batch()
    labels_B[::2] = teacher_BC.argmax(1)[::2]
    labels_B[1] = -1
    labelled_B = labels_B >= 0
    got_B = parse_objective("lr")(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    want_B = LOSSES["lr"].fn(student_BC[labelled_B], teacher_BC[labelled_B], labels_B[labelled_B])
    torch.testing.assert_close(got_B[labelled_B], want_B)
    assert got_B[1] == 0.0


def test_rld_abstains_and_says_how_often() -> None:
    student_BC, teacher_BC, labels_B = batch()
    labels_B = teacher_BC.argmax(1)
    objective = parse_objective("rld:1")
    known_B = torch.tensor([True, False, True, False, True, True])
    labels_B[3] = -1
    rows_B = objective(student_BC, Half(teacher_BC, known_B), labels_B, at())
    alone_B = parse_objective("rld:1", {"beta": 0})(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    assert rows_B[1] == alone_B[1]
    assert (rows_B - alone_B)[[0, 2]].gt(0).all()
    assert objective.notes() == {"rld_rows": 5, "rld_rows_abstained": 1}
    assert objective.notes() == {"rld_rows": 0, "rld_rows_abstained": 0}


def test_an_answer_is_asked_once_for_each_temperature() -> None:
    student_BC, teacher_BC, labels_B = batch()
    asked: list[float] = []

    class Asked(ExactAnswer):
        def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
            asked.append(temperature)
            return self.logits_BC

    objective = parse_objective("kd:1 + redistill:1 + gjs:1 + ce:1")
    got_B = objective(student_BC, Asked(teacher_BC), labels_B, at())
    assert asked == [4.0, 1.0]
    assert torch.equal(got_B, objective(student_BC, ExactAnswer(teacher_BC), labels_B, at()))


def test_taid_moves_to_the_teacher_with_the_epochs() -> None:
    student_BC, teacher_BC, labels_B = batch()
    objective = parse_objective("taid")
    values = [
        float(objective(student_BC, ExactAnswer(teacher_BC), labels_B, at(epoch, 5)).mean()) for epoch in range(1, 6)
    ]
    assert values == sorted(values)
    last_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, at(5, 5))
    torch.testing.assert_close(
        last_B, parse_objective("kd:1", {"temperature": 1})(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    )


def test_taid_and_truncation_move_by_the_step_also_within_one_epoch() -> None:
    student_BC, teacher_BC, labels_B = batch()

    def losses(text: str, settings: dict[str, str | float]) -> list[Tensor]:
        steps = [Step(step=step, steps_per_epoch=7, num_epochs=1) for step in range(7)]
        objective = parse_objective(text, settings)
        return [objective(student_BC, ExactAnswer(teacher_BC), labels_B, step) for step in steps]

    taid = losses("taid", {})
    for step, got_B in enumerate(taid):
        target_BC = torch.lerp(student_BC, teacher_BC, 0.4 + 0.6 * step / 6)
        torch.testing.assert_close(got_B, LOSSES["kd"].fn(student_BC, target_BC, labels_B, temperature=1.0))
    plain_B = losses("gce", {})[0]
    held = [not torch.equal(got_B, plain_B) for got_B in losses("gce", {"truncate": 0.5, "truncate_start": 0.5})]
    assert held == [False, False, False, True, True, True, True]


def test_row_rules_judge_the_teacher_at_temperature_1() -> None:
    """A bucket tail is another at each temperature."""
    student_BC, teacher_BC, labels_B = batch()

    class Tempered(ExactAnswer):
        def logits(self, student_BC: Tensor, temperature: float) -> Tensor:
            return self.logits_BC if temperature == 1.0 else self.logits_BC.flip(1)

    weighted = parse_objective("kd:1", {"row_weight": "confidence", "confidence_power": 2})
    plain_B = LOSSES["kd"].fn(student_BC, teacher_BC.flip(1), labels_B, temperature=4.0)
    weight_B = row_weights("confidence", student_BC, teacher_BC, labels_B, {"confidence_power": 2.0})
    torch.testing.assert_close(weighted(student_BC, Tempered(teacher_BC), labels_B, at()), plain_B * weight_B)

    tempered = parse_objective("kd:1", {"temperature_rule": "difficulty"})
    temperature_B = row_temperatures("difficulty", student_BC, teacher_BC, 4.0, {})
    want_B = LOSSES["kd"].fn(student_BC, teacher_BC.flip(1), labels_B, temperature=temperature_B)
    torch.testing.assert_close(tempered(student_BC, Tempered(teacher_BC), labels_B, at()), want_B)


def test_row_rules_enter_the_loss_as_computed_alone() -> None:
    student_BC, teacher_BC, labels_B = batch()
    plain_B = parse_objective("kd:1")(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    weight_B = row_weights("confidence", student_BC, teacher_BC, labels_B, {})
    weighted_B = parse_objective("kd:1", {"row_weight": "confidence"})(
        student_BC, ExactAnswer(teacher_BC), labels_B, at()
    )
    torch.testing.assert_close(weighted_B, plain_B * weight_B)

    temperature_B = row_temperatures("difficulty", student_BC, teacher_BC, 4.0, {})
    want_B = LOSSES["kd"].fn(student_BC, teacher_BC, labels_B, temperature=temperature_B)
    got_B = parse_objective("kd:1", {"temperature_rule": "difficulty"})(
        student_BC, ExactAnswer(teacher_BC), labels_B, at()
    )
    torch.testing.assert_close(got_B, want_B)


def test_a_row_weight_touches_only_the_terms_it_is_about() -> None:
    kd, ce = parse_objective("kd", {"row_weight": "confidence"}).terms
    assert (kd.row_weight, ce.row_weight) == ("confidence", "")
    kd, ce = parse_objective("kd", {"row_weight": "label_noise"}).terms
    assert (kd.row_weight, ce.row_weight) == ("", "label_noise")
    kd, ce = parse_objective("kd", {"row_weight": "paced", "paced_a": 2}).terms
    assert kd.row_options["paced_a"] == ce.row_options["paced_a"] == 2.0
    assert parse_objective("kd", {"kd.row_weight": "label_noise"}).terms[0].row_weight == "label_noise"


def test_half_precision_is_raised_and_autocast_changes_nothing() -> None:
    student_BC, teacher_BC, labels_B = batch()
    objective = parse_objective("rld:1 + sel_corrected:1")
    half_B = objective(student_BC.bfloat16(), ExactAnswer(teacher_BC.half()), labels_B, at())
    assert half_B.dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside_B = objective(student_BC, ExactAnswer(teacher_BC), labels_B, at())
    assert torch.equal(inside_B, objective(student_BC, ExactAnswer(teacher_BC), labels_B, at()))
