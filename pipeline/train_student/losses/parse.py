"""Reading `--loss` and `--set`: names, weights and options, each checked against the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from .domains import Switch
from .kinds import CE_WEIGHT, WEIGHT, Loss
from .objective import Objective
from .own import tried
from .parse_transforms import TARGET_TRANSFORM, read_transforms, refuse_unfit
from .plan import RULE_OPTIONS, RULES, Plan, plan_term, presets_of, unknown
from .row_rules import ROW_WEIGHTS
from .schedule import SCHEDULE, refuse_gaps
from .table import EVERY_LOSS, LOSSES
from .term import Term
from .transforms import TargetTransform
from .written import split_parts

LEARNED_WEIGHTS = "learned_weights"


class _Part(NamedTuple):
    """A term: what it is called, its loss's name, its loss, its options and, in a sum, its weight."""

    label: str
    name: str
    loss: Loss
    options: dict[str, str]
    weight: float | None


def parse_objective(
    text: str,
    settings: Mapping[str, str | float] | None = None,
    *,
    own: Mapping[str, Loss] | None = None,
    own_transforms: Mapping[str, TargetTransform] | None = None,
    num_classes: int | None = 10,
) -> Objective:
    """The objective that a text and settings describe.

    A single name is its paper's recipe: ce_weight CE + warm-up(epoch) weight loss. A sum with weights, as
    "kd:0.9 + ce:0.1", is just that sum, with no CE added and no warm-up unless set. Settings: weight, ce_weight
    (recipes only), warmup, starts_at, ends_at, ramp_from, ramp_to, preset, standardise, row_weight, temperature_rule,
    target_transform and learned_weights (of all terms), and every option of the losses and rules. "rld.beta" reaches
    one term of a sum, "beta" every other term that has it. A loss may stand several times with other settings, as
    "kd?temperature=2:0.5 + kd?temperature=4:0.5": its terms are called kd, kd2, ...

    Args:
        text: Names of the table, or of ``own``, joined by "+", each with "?option=value&..." where it has settings of
            its own, and with ":weight" or, if alone, without.
        settings: Values by name, as text or numbers.
        own: Losses of one's own by the name that they have in the text, such as "file.py:function"; each is held to
            the laws of the table at its settings. Its term is called by what stands behind the last colon.
        own_transforms: Target transforms of one's own, likewise.
        num_classes: How many classes losses are tried with; None leaves the trial for later.

    Returns:
        The objective, with every option resolved.

    Raises:
        ValueError: On an unknown name or option, a value outside its domain, an option that would do nothing, or a
            law that a loss of one's own breaks; the message lists the known names and the nearest.
    """
    given: dict[str, str | float] = {}
    for key, value in (settings or {}).items():
        if key.strip() in given:
            raise ValueError(f"{key.strip()} is set twice")
        given[key.strip()] = value
    own = own or {}
    asked = given.pop(TARGET_TRANSFORM, None)
    learns_weights = Switch().read(LEARNED_WEIGHTS, given.pop(LEARNED_WEIGHTS, False))
    transforms = () if asked is None else read_transforms(str(asked), own_transforms or {}, num_classes)
    plans = _plans(text, given, own)
    for key in sorted(given, key=_turn):
        _apply(key, given[key], plans, text.strip())
    for plan in plans:
        plan.check()
    refuse_gaps(plan.schedule for plan in plans)
    _refuse_twins(plans, text)
    terms = tuple(_kept(plan.term(), num_classes) for plan in plans)
    refuse_unfit(transforms, terms, text.strip())
    for term in terms:
        if term.learns_temperature:
            term.learned_temperature()  # refuses a start outside its range
    if learns_weights and len(terms) == 1:
        raise ValueError(
            f"{LEARNED_WEIGHTS}=1 weighs terms against each other, and {text.strip()!r} is one; leave it out"
        )
    if learns_weights and (negative := [term.name for term in terms if term.loss.below_zero]):
        raise ValueError(
            f"{LEARNED_WEIGHTS}=1 lowers the weight of a loss that is large, and {negative[0]} may be negative: its"
            " weight would only grow; leave it out"
        )
    return Objective(_spelled(text, own), terms, transforms=transforms, learns_weights=learns_weights)


def _kept(term: Term, num_classes: int | None) -> Term:
    """The term; one of the user's own once it keeps the laws."""
    if not term.loss.sha256 or num_classes is None:
        return term
    loss = tried(term.loss, term.options, num_classes)
    if term.standardise and loss.fits != "teacher":
        raise ValueError(f"standardise does nothing: the teacher does not change {term.name}; leave it out")
    return replace(term, loss=loss)


def _spelled(text: str, own: Mapping[str, Loss]) -> str:
    """The one spelling of a text, on every machine: "kd:0.90+ce:0.10" is "kd:0.9 + ce:0.1"; files lose folders."""
    terms = []
    for written, part in zip(split_parts(text), _parts(text, own), strict=True):
        name = written.spelled
        name += "?" + "&".join(f"{key}={value}" for key, value in part.options.items()) if part.options else ""
        terms.append(name if part.weight is None else f"{name}:{part.weight!r}".removesuffix(".0"))
    return " + ".join(terms)


def takes_setting(text: str, key: str, value: str, own: Mapping[str, Loss] | None = None) -> bool:
    """Whether a setting would reach any term of an objective, what else must be set with it aside.

    Raises:
        ValueError: It reaches one, which refuses the value.
    """
    key = key.strip()
    if key == LEARNED_WEIGHTS:
        return len(_plans(text, {}, own or {})) > 1
    if key == TARGET_TRANSFORM:
        return any(plan.term().fits_teacher for plan in _plans(text, {}, own or {}))
    bare = key.rpartition(".")[2]
    companion: dict[str, str | float] = {}
    if bare in RULE_OPTIONS:
        kind, rule, _ = RULE_OPTIONS[bare]
        companion = {key[: -len(bare)] + kind: rule or "paced"}
    try:
        given = {**companion, key: value}
        plans = _plans(text, given, own or {})
        for name in sorted(given, key=_turn):
            _apply(name, given[name], plans, text)
    except UnknownSettingError:
        return False
    return True


class UnknownSettingError(ValueError):
    """A setting that no term of the objective has."""


def _turn(key: str) -> tuple[bool, bool, bool]:
    """Options before rules, as these ask what a term fits; rules before their options; one term before all."""
    prefix, _, bare = key.rpartition(".")
    return bare in RULE_OPTIONS, bare in RULES, prefix == ""


def _plans(text: str, given: dict[str, str | float], own: Mapping[str, Loss]) -> list[Plan]:
    """The terms at their recipes.

    Takes preset and a recipe's ce_weight out of what is given, and adds what the text sets.
    """
    parts = _parts(text, own)
    preset = str(given.pop("preset", ""))
    known = {part.name: presets_of(part.loss) for part in parts}
    if preset and not any(preset in presets for presets in known.values()):
        raise UnknownSettingError(unknown("preset", preset, set[str]().union(*known.values())))
    plans = [replace(plan_term(part.label, part.loss, part.weight, preset), kind=part.name) for part in parts]
    if parts[0].weight is None and plans[0].name != "ce":
        ce_weight = CE_WEIGHT.read("ce_weight", given.pop("ce_weight", plans[0].ce_weight))
        if ce_weight != 0.0:
            plans.append(replace(plan_term("ce", LOSSES["ce"], ce_weight, ""), implied=True))
    for part in parts:
        for key, value in part.options.items():
            if f"{part.label}.{key}" in given:
                raise ValueError(f"{part.label}.{key} is set twice")
            given[f"{part.label}.{key}"] = value
    return plans


def _refuse_twins(plans: list[Plan], text: str) -> None:
    """Terms that differ in nothing but the weight are one."""
    seen = []
    for plan in plans:
        term = {**plan.term().settings(), "loss": plan.kind, "kind": "", "weight": 0.0}
        if term in seen:
            raise ValueError(
                f"loss {plan.kind!r} stands twice in {text.strip()!r}: add its weights, or give one other options, as"
                f" {plan.kind}?option=value"
            )
        seen.append(term)


def _parts(text: str, own: Mapping[str, Loss]) -> list[_Part]:
    parts: list[_Part] = []
    split = split_parts(text)
    for written in split:
        if written.name not in own and written.name not in EVERY_LOSS:
            raise ValueError(unknown("loss", written.name, {**EVERY_LOSS, "file.py:function": None}))
        name = written.name.rpartition(":")[2]
        if written.name in own and name in EVERY_LOSS:
            raise ValueError(f"{written.name}: the table has a loss {name!r} already; give the function another name")
        if written.weight is None and len(split) > 1:
            raise ValueError(f"{written.name!r} has no weight in a sum: write {written.name}:1.0")
        before = sum(part.name == name for part in parts)
        label = name if not before else f"{name}{before + 1}"
        loss = own[written.name] if written.name in own else EVERY_LOSS[written.name]
        weight = None if written.weight is None else WEIGHT.read(f"weight of {label}", written.weight)
        parts.append(_Part(label, name, loss, written.read_options(), weight))
    return parts


def _apply(key: str, value: str | float, plans: list[Plan], text: str) -> None:
    """Set one setting on every term that it reaches."""
    prefix, dot, bare = key.rpartition(".")
    if dot and prefix not in {plan.name for plan in plans}:
        raise UnknownSettingError(unknown("term", prefix, [plan.name for plan in plans]))
    if bare == "ce_weight":
        raise UnknownSettingError("ce_weight belongs to a recipe, a loss named alone; in a sum write + ce:WEIGHT")
    named = [plan for plan in plans if plan.name == prefix] if dot else plans
    if not dot and bare not in RULES and bare not in RULE_OPTIONS:
        named = [plan for plan in plans if not plan.implied]  # a recipe's CE takes what concerns the rows, or its name
    reached = [plan for plan in named if plan.takes(bare)]
    if bare == "row_weight" and not dot and str(value) in ROW_WEIGHTS:
        touches = ROW_WEIGHTS[str(value)].touches
        reached = [plan for plan in plans if plan.follows & touches]
        if not reached:
            what = " or ".join(
                sorted({"teacher": "follow the teacher", "labels": "trust the labels"}[t] for t in touches)
            )
            raise UnknownSettingError(f"row_weight={value} weighs terms that {what}; {text!r} has none")
    if not reached and bare in RULE_OPTIONS:
        kind, rule, _ = RULE_OPTIONS[bare]
        raise ValueError(f"{key} belongs to {kind}={rule or 'NAME'}; set that too, or leave it out")
    if not reached:
        raise UnknownSettingError(unknown("setting", key, _known(plans)))
    if bare == "weight" and not dot and len(reached) > 1:
        raise ValueError(f"weight of which term? write {plans[0].name}.weight")
    left = [plan for plan in reached if bare not in plan.chosen]
    if not left:
        raise ValueError(f"{bare} is set for every term by name already; leave out the general one")
    for plan in left:
        plan.set(bare, value)


def _known(plans: Iterable[Plan]) -> list[str]:
    own = {key for plan in plans if not plan.implied for key in plan.loss.takes}
    shared = {"weight", "warmup", "standardise", *SCHEDULE, *RULES, *RULE_OPTIONS}
    return sorted(
        {"preset", "ce_weight", TARGET_TRANSFORM, LEARNED_WEIGHTS}
        | own
        | {key for key in shared if any(plan.takes(key) for plan in plans)}
    )
