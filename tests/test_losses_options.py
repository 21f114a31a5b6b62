"""Every option of every loss and row rule: its domain holds, what lies in it matters, what lies outside is refused.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from logitbank.pipeline.train_student.losses import LOSSES, parse_objective, takes_setting
from logitbank.pipeline.train_student.losses.domains import Interval, Like, Option, Switch, Words
from logitbank.pipeline.train_student.losses.plan import RULE_OPTIONS
from logitbank.pipeline.train_student.losses.row_rules import ROW_WEIGHTS, row_temperatures, row_weights
from tests.test_losses import call, gradient, rows

OPTIONS = [(name, key) for name, loss in LOSSES.items() for key in loss.takes]
COMPANIONS: dict[tuple[str, str], list[dict[str, Any]]] = {
    **{("redistill", key): [{"lambda_": 2 / 3}] for key in ("orientation", "ratio_clip")},
    ("rld", "alpha_temperature"): [{"same_t": False}],
    ("rld", "same_t"): [{"alpha_temperature": 2.0}],
    ("gce", "truncate_start"): [{"truncate": 0.5, "progress": progress} for progress in (0.1, 0.32, 0.5)],
    ("taid", "start"): [{"progress": 0.5}],
    ("akl", "head"): [{"temperature": 4.0}],
    ("ce_ortho", "max_ratio"): [{"temperature": 0.01}],
}
"""What else must be set for an option to matter, in one of these ways."""

FAR_APART = {
    ("redistill", "ratio_clip"),
    ("pearson", "ratio_clip"),
    ("neyman", "ratio_clip"),
    ("sel_corrected", "floor"),
    ("sel_slow", "floor"),
}
"""Options that hold large ratios or small probabilities, and need some to hold."""


def batch(scale: float = 1.5) -> tuple[Tensor, Tensor, Tensor]:
    return rows(12, 6, scale=scale, dtype=torch.float64, seed=2)


def inside(option: Option) -> list[Any]:
    """Values of the domain, the ends or numbers next to them among them, without the default."""
    domain = option.domain
    if isinstance(domain, Words):
        values: list[Any] = list(domain.words)
    elif isinstance(domain, Switch):
        values = [True, False]
    else:
        assert isinstance(domain, Interval)
        low = domain.low if domain.low in domain else domain.low + 1e-3
        high = domain.high if domain.high in domain else domain.high - 1e-3
        values = [low, high, low + 0.3 * (high - low), *([] if domain.off is None else [domain.off])]
    return [value for value in values if value != option.default]


def outside(domain: Interval | Words | Switch | Like) -> list[Any]:
    """Values next to the domain's ends, and those that no number may be."""
    if isinstance(domain, Words):
        return ["", "up", 1.0]
    if isinstance(domain, Switch):
        return ["", "maybe", 2, 0.5]
    assert isinstance(domain, Interval)
    ends = [(domain.low, -math.inf), (domain.high, math.inf)]
    near = [end if end not in domain else math.nextafter(end, away) for end, away in ends]
    near += [] if domain.without is None else [domain.without]
    return [value for value in near if value != domain.off] + ["", "nan", "inf", "1_0", "four", True, math.nan]


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_every_value_of_the_domain_matters_and_is_finite(name: str, key: str) -> None:
    tensors = batch(30.0 if (name, key) in FAR_APART else 1.5)
    single = (tensors[0].float(), tensors[1].float(), tensors[2])
    for value in inside(LOSSES[name].takes[key]):
        matters = False
        for others in COMPANIONS.get((name, key), [{}]):
            given = {**others, key: value}
            for answer in (call, gradient):
                before, after = answer(name, *tensors, **others), answer(name, *tensors, **given)
                matters = matters or not torch.allclose(after, before, rtol=1e-6, atol=0)
                assert after.isfinite().all(), value
                assert answer(name, *single, **given).isfinite().all(), value
        assert matters, value


@pytest.mark.parametrize(("name", "key"), OPTIONS)
def test_every_value_beside_the_domain_is_refused(name: str, key: str) -> None:
    domain = LOSSES[name].takes[key].domain
    for value in outside(domain):
        with pytest.raises(ValueError, match=rf"^{key} is ") as caught:
            parse_objective(name, {key: value})
        assert str(domain) in str(caught.value)
        assert "\n" not in str(caught.value)


def rule_settings(key: str) -> dict[str, str | float]:
    kind, rule, _ = RULE_OPTIONS[key]
    return {kind: rule or "confidence"}


@pytest.mark.parametrize("key", RULE_OPTIONS)
def test_options_of_row_rules_matter_and_have_domains(key: str) -> None:
    kind, rule, option = RULE_OPTIONS[key]
    student_BC, teacher_BC, labels_B = batch()

    def answer(options: dict[str, Any]) -> Tensor:
        if kind == "temperature_rule":
            return row_temperatures(rule, student_BC, teacher_BC, 4.0, options)
        counts = range(1, student_BC.shape[1] + 1)
        rate_B = torch.linspace(0, 1, len(labels_B))
        return row_weights(rule or "paced", student_BC, teacher_BC, labels_B, options, counts, rate_B=rate_B)

    learns = {"feedback": "hardest", "learned": "learned"}.get(key.partition("_")[0])
    for value in inside(option) if learns != rule else ():  # else from step to step: tests/test_losses_learned.py
        others = {"entropy_threshold": 0.5} if key == "entropy_keep" else {}
        got_B = answer({**others, key: value})
        assert got_B.isfinite().all()
        assert not torch.allclose(got_B, answer(others), rtol=1e-6), value
    for value in outside(option.domain):
        with pytest.raises(ValueError, match=rf"^{key} is "):
            parse_objective("kd", {**rule_settings(key), key: value})


def losses_with_settings() -> Iterator[tuple[str, dict[str, str | float], str]]:
    for key, (kind, rule, _) in RULE_OPTIONS.items():
        yield "kd", {key: 0.5}, f"{key} belongs to {kind}={rule or 'NAME'}"
    for name, loss in LOSSES.items():
        for key, option in loss.takes.items():
            if option.unless is not None:
                allowed = inside(option)[0]
                yield name, {key: allowed, option.unless[0]: option.unless[1]}, f"{key} does nothing with"
        if loss.parts:
            yield name, dict.fromkeys(loss.parts, 0), "nothing is left of"


@pytest.mark.parametrize(("name", "settings", "message"), list(losses_with_settings()))
def test_an_option_that_would_do_nothing_is_refused(name: str, settings: dict[str, str | float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_objective(name, settings)


@pytest.mark.parametrize(
    ("text", "settings", "message"),
    [
        ("ce", {"row_weight": "confidence"}, "weighs terms that follow the teacher; 'ce' has none"),
        ("gce", {"row_weight": "entropy"}, "weighs terms that follow the teacher"),
        ("dkd:1", {"row_weight": "label_noise"}, "weighs terms that trust the labels"),
        ("kd", {"row_weight": "entropy", "noise_power": 2}, "noise_power belongs to row_weight=label_noise"),
        ("kd", {"row_weight": "paced", "paced_a": 0, "paced_b": 0}, "paced_a and paced_b are both 0"),
        ("kd:1", {"temperature": 3, "kd.temperature": 2}, "set for every term by name already"),
        ("kd", {"temperature": 3, " temperature": 2}, "set twice"),
        ("kd:0", {}, r"weight of kd is a number in \(0"),
        ("kd:-1 + ce:1", {}, r"weight of kd is a number in \(0"),
        ("kd", {"weight": "inf"}, "weight is a number in"),
        ("kd", {"ce_weight": -1}, "ce_weight is a number in"),
        ("rld", {"warmup": -1}, "warmup is a number in"),
        ("gjs", {"preset": "cifar"}, "unknown preset 'cifar'"),
        ("gjs", {"beta": 1.5}, r"beta is a number in \[0, 1\], not 1.5"),
        ("skew_kl", {"skew": 1}, r"skew is a number in \[0, 1\), not 1"),
        ("dist", {"eps": -1}, "eps is a number in"),
        ("lr", {"eta": 2}, r"eta is a number in \(0, 1\), not 2"),
        ("gce", {"truncate": 0.5, "truncate_start": 0}, "truncate_start is a number in"),
    ],
)
def test_what_does_nothing_good_is_refused(text: str, settings: dict[str, str | float], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_objective(text, settings)
    assert "\n" not in str(caught.value)


def test_a_row_weight_reaches_the_terms_whose_target_it_judges() -> None:
    (swap,) = parse_objective("swap", {"row_weight": "label_noise"}).terms
    assert swap.row_weight == "label_noise"
    dkd, ce = parse_objective("dkd", {"row_weight": "label_noise"}).terms
    assert (dkd.row_weight, ce.row_weight) == ("", "label_noise")
    (gce,) = parse_objective("gce", {"target": "teacher", "row_weight": "confidence"}).terms
    assert gce.row_weight == "confidence"
    named = parse_objective("ce", {"ce.row_weight": "confidence", "confidence_power": 2}).terms[0]
    assert (named.row_weight, named.row_options["confidence_power"]) == ("confidence", 2.0)
    for name, weight in ROW_WEIGHTS.items():
        terms = parse_objective("swap:1 + ce:1", {"row_weight": name}).terms
        assert [bool(term.row_weight) for term in terms] == [
            "teacher" in weight.touches or name == "label_noise",
            "labels" in weight.touches,
        ]


def test_settings_are_the_same_however_a_number_is_written() -> None:
    written = [{"temperature": value} for value in ("10", "1e1", "1.0e+1", 10, 10.0, " 10.00 ")]
    assert len({str(parse_objective("kd", settings).settings) for settings in written}) == 1
    assert str(parse_objective("rld:1", {"alpha": "-0.0"}).terms[0].options["alpha"]) == "0.0"


def test_a_general_setting_reaches_the_terms_that_were_not_named() -> None:
    kd, gjs = parse_objective("kd:1 + gjs:1", {"kd.temperature": 2, "temperature": 3}).terms
    assert (kd.temperature, gjs.temperature) == (2.0, 3.0)
    kd, ce = parse_objective("kd", {"ce.smoothing": 0.1}).terms
    assert ce.options["smoothing"] == 0.1


@pytest.mark.parametrize("name", LOSSES)
def test_presets_lie_in_the_domains_and_change_the_objective(name: str) -> None:
    loss = LOSSES[name]
    for preset, values in loss.presets.items():
        for key, value in values.items():
            if key in loss.takes:
                assert loss.takes[key].read(key, value) == value
        assert parse_objective(name, {"preset": preset}).settings["terms"] != parse_objective(name).settings["terms"]


@pytest.mark.parametrize(
    ("text", "key", "value", "taken"),
    [
        ("kd", "temperature", "2", True),
        ("ce", "temperature", "2", False),
        ("kd", "difficulty_c", "1", True),
        ("ce", "difficulty_c", "1", False),
        ("ce", "noise_power", "2", True),
        ("kd", "row_weight_floor", "0.1", True),
        ("ce", "row_weight", "confidence", False),
        ("gjs", "preset", "imagenet", False),
        ("ce", "ce_weight", "0.5", False),
        ("kd", "rld.beta", "1", False),
        ("gce", "truncate_start", "0.2", True),
    ],
)
def test_a_sweep_can_ask_which_settings_a_loss_takes(text: str, key: str, value: str, taken: bool) -> None:
    assert takes_setting(text, key, value) is taken
    if taken:
        with pytest.raises(ValueError, match=key.rpartition(".")[2]):
            takes_setting(text, key, "up")
