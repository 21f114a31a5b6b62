"""Reading `--loss` and `--set`: names, weights and options, each checked against the table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from .kinds import CE_WEIGHT, WEIGHT, Loss
from .objective import Objective, Term
from .own import tried
from .plan import RULE_OPTIONS, RULES, Plan, plan_term, presets_of, unknown
from .row_weights import ROW_WEIGHTS
from .table import LOSSES

_IN_FILE = re.compile(r"(?P<name>.+\.py:[A-Za-z_]\w*)\s*(?::(?P<weight>.*))?")


def parse_objective(
    text: str,
    settings: Mapping[str, str | float] | None = None,
    *,
    own: Mapping[str, Loss] | None = None,
    num_classes: int | None = 10,
) -> Objective:
    """The objective that a text and settings describe.

    A single name is its paper's recipe: ce_weight CE + warm-up(epoch) weight loss. A sum with weights, as
    "kd:0.9 + ce:0.1", is just that sum, with no CE added and no warm-up unless set. Settings: weight, ce_weight
    (recipes only), warmup, preset, standardise, row_weight, temperature_rule, and every option of the losses
    and rules. "rld.beta" reaches one term of a sum, "beta" every other term that has it.

    Args:
        text: Names of the table, or of ``own``, joined by "+", each with ":weight" or, if alone, without.
        settings: Values by name, as text or numbers.
        own: Losses of one's own by the name that they have in the text, such as "file.py:function"; each is held to
            the laws of the table at its settings. Its term is called by what stands behind the last colon.
        num_classes: How many classes they are tried with; None leaves the trial for later.

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
    plans = _plans(text, given, own)
    for key in sorted(given, key=_turn):
        _apply(key, given[key], plans, text.strip())
    for plan in plans:
        plan.check()
    return Objective(_spelled(text, own), tuple(_kept(plan.term(), num_classes) for plan in plans))


def own_names(text: str) -> list[str]:
    """What in a text of ``--loss`` names a function of a file."""
    return [name for name, _ in _split(text) if _IN_FILE.fullmatch(name)]


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
    for (written, _), (_, _, weight) in zip(_split(text), _parts(text, own), strict=True):
        file, colon, function = written.rpartition(":")
        name = f"{Path(file).name}{colon}{function}" if written in own else written
        terms.append(name if weight is None else f"{name}:{float(weight)!r}".removesuffix(".0"))
    return " + ".join(terms)


def takes_setting(text: str, key: str, value: str, own: Mapping[str, Loss] | None = None) -> bool:
    """Whether a setting would reach any term of an objective, what else must be set with it aside.

    Raises:
        ValueError: It reaches one, which refuses the value.
    """
    key = key.strip()
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
    """The terms at their recipes; takes preset and a recipe's ce_weight out of what is given."""
    parts = _parts(text, own)
    preset = str(given.pop("preset", ""))
    known = {name: presets_of(loss) for name, loss, _ in parts}
    if preset and not any(preset in presets for presets in known.values()):
        raise UnknownSettingError(unknown("preset", preset, set[str]().union(*known.values())))
    plans = [plan_term(name, loss, weight, preset) for name, loss, weight in parts]
    if parts[0][2] is None and plans[0].name != "ce":
        ce_weight = CE_WEIGHT.read("ce_weight", given.pop("ce_weight", plans[0].ce_weight))
        if ce_weight != 0.0:
            plans.append(replace(plan_term("ce", LOSSES["ce"], ce_weight, ""), implied=True))
    return plans


def _parts(text: str, own: Mapping[str, Loss]) -> list[tuple[str, Loss, float | None]]:
    """Name, loss and weight of each term."""
    parts: list[tuple[str, Loss, float | None]] = []
    split = _split(text)
    for written, weight in split:
        if written not in own and written not in LOSSES:
            raise ValueError(unknown("loss", written, {**LOSSES, "file.py:function": None}))
        name = written.rpartition(":")[2]
        if written in own and name in LOSSES:
            raise ValueError(f"{written}: the table has a loss {name!r} already; call the function otherwise")
        if name in [seen for seen, *_ in parts]:
            raise ValueError(f"loss {name!r} stands twice in {text.strip()!r}: add its weights")
        if weight is None and len(split) > 1:
            raise ValueError(f"{written!r} has no weight in a sum: write {written}:1.0")
        loss = own[written] if written in own else LOSSES[written]
        parts.append((name, loss, None if weight is None else WEIGHT.read(f"weight of {name}", weight)))
    return parts


def _split(text: str) -> list[tuple[str, str | None]]:
    """Each term's name, as it is written, and weight."""
    parts: list[tuple[str, str | None]] = []
    for part in text.split("+"):
        own = _IN_FILE.fullmatch(part.strip())
        name, colon, weight = (piece.strip() for piece in part.partition(":"))
        parts.append((own["name"], own["weight"]) if own else (name, weight if colon else None))
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
    shared = {"weight", "warmup", "standardise", *RULES, *RULE_OPTIONS}
    return sorted({"preset", "ce_weight"} | own | {key for key in shared if any(plan.takes(key) for plan in plans)})
