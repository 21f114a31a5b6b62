"""Reading `--loss` and `--set`: names, weights and options, each checked against the table."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ..row_weights import ROW_WEIGHTS, SHARED_OPTIONS, TEMPERATURE_RULES
from .kinds import CHOICES, SEARCH, Loss, Value
from .objective import Objective, Term
from .table import LOSSES

POSITIVE = frozenset({"temperature", "alpha_temperature", "c", "q", "floor", "eta", "row_weight_floor", "skew"})
"""Options that must be above 0 (skew and row_weight_floor may be 0)."""
MAY_BE_ZERO = frozenset({"skew", "row_weight_floor"})
AT_MOST_ONE = frozenset({"smoothing", "truncate", "q", "skew", "row_weight_floor"})


def parse_objective(text: str, settings: Mapping[str, str | float] | None = None) -> Objective:
    """The objective that a text and settings describe.

    A single name is its paper's recipe: ce_weight CE + warm-up(epoch) weight loss. A sum with weights, as
    "kd:0.9 + ce:0.1", is just that sum, with no CE added and no warm-up unless set. Settings: weight, ce_weight
    (recipes only), warmup, preset, standardise, row_weight, temperature_rule, and every option of the losses
    and rules. "rld.beta" reaches one term of a sum, "beta" every term that has it.

    Args:
        text: Names of the table joined by "+", each with ":weight" or, if alone, without.
        settings: Values by name, as text or numbers.

    Returns:
        The objective, with every option resolved.

    Raises:
        ValueError: On an unknown name, option or value; the message lists the known ones and the nearest.
    """
    given = {key.strip(): value for key, value in (settings or {}).items()}
    parts = _parts(text)
    preset = str(given.pop("preset", ""))
    plans = [_plan(name, weight, preset) for name, weight in parts]
    known_presets = {"cifar"}.union(*(LOSSES[name].presets for name, _ in parts))
    if preset and preset not in known_presets:
        raise ValueError(_unknown("preset", preset, known_presets))
    if parts[0][1] is None and plans[0].name != "ce":
        ce_weight = float(_value("ce_weight", given.pop("ce_weight", plans[0].ce_weight), 0.0))
        if ce_weight != 0.0:
            plans.append(replace(_plan("ce", ce_weight, ""), implied=True))
    for key in sorted(given, key=lambda key: key.rpartition(".")[0] != ""):  # the general before the particular
        _apply(key, given[key], plans)
    return Objective(text.strip(), tuple(plan.term() for plan in plans))


def _parts(text: str) -> list[tuple[str, float | None]]:
    parts: list[tuple[str, float | None]] = []
    for part in text.split("+"):
        name, colon, weight = (piece.strip() for piece in part.partition(":"))
        if name not in LOSSES:
            raise ValueError(_unknown("loss", name, LOSSES))
        if name in [seen for seen, _ in parts]:
            raise ValueError(f"loss {name!r} stands twice in {text.strip()!r}: add its weights")
        parts.append((name, float(_value(f"weight of {name}", weight, 1.0)) if colon else None))
    if len(parts) > 1 and any(weight is None for _, weight in parts):
        bare = next(name for name, weight in parts if weight is None)
        raise ValueError(f"{bare!r} has no weight in a sum: write {bare}:1.0")
    return parts


@dataclass(kw_only=True)
class _Plan:
    """A term while its settings are read."""

    name: str
    weight: float
    ce_weight: float = 0.0
    warmup: float = 0.0
    standardise: bool = False
    row_weight: str = ""
    temperature_rule: str = ""
    options: dict[str, Value] = field(default_factory=dict)
    row_options: dict[str, Value] = field(default_factory=dict)
    implied: bool = False

    @property
    def loss(self) -> Loss:
        return LOSSES[self.name]

    def term(self) -> Term:
        """The finished term, holding only the options of the rules that it uses."""
        used: dict[str, Value] = {}
        if self.row_weight:
            used |= SHARED_OPTIONS | dict(ROW_WEIGHTS[self.row_weight].options)
        if self.temperature_rule:
            used |= dict(TEMPERATURE_RULES[self.temperature_rule].options)
        return Term(
            name=self.name,
            weight=self.weight,
            warmup=self.warmup,
            standardise=self.standardise,
            row_weight=self.row_weight,
            temperature_rule=self.temperature_rule,
            options=self.options,
            row_options={key: self.row_options.get(key, default) for key, default in used.items()},
        )


def _plan(name: str, weight: float | None, preset: str) -> _Plan:
    """A recipe (no weight given), or one term of a sum, whose preset changes options alone."""
    loss = LOSSES[name]
    preset_values = loss.presets.get(preset, {})
    options = dict(loss.options) | {k: v for k, v in preset_values.items() if k in loss.options}
    plan = _Plan(name=name, weight=1.0, options=options, standardise=bool(preset_values.get("standardise")))
    if weight is not None:
        return replace(plan, weight=weight)
    return replace(
        plan,
        weight=float(preset_values.get("weight", loss.weight)),
        ce_weight=float(preset_values.get("ce_weight", loss.ce_weight)),
        warmup=float(preset_values.get("warmup", loss.warmup)),
    )


def _apply(key: str, value: str | float, plans: list[_Plan]) -> None:
    """Set one setting on every term that it reaches."""
    prefix, dot, bare = key.rpartition(".")
    if dot and prefix not in {plan.name for plan in plans}:
        raise ValueError(_unknown("term", prefix, [plan.name for plan in plans]))
    reached = [plan for plan in plans if (plan.name == prefix if dot else _open_to(plan, bare))]
    if bare == "ce_weight":
        raise ValueError("ce_weight belongs to a recipe, a loss named alone; in a sum write + ce:WEIGHT")
    if bare == "weight" and not dot and len(reached) > 1:
        raise ValueError(f"weight of which term? write {plans[0].name}.weight")
    applied = [_apply_one(plan, bare, value, named=bool(dot)) for plan in reached]
    if not any(applied):
        raise ValueError(_unknown("setting", key, _known(plans)))


def _open_to(plan: _Plan, key: str) -> bool:
    """The implied CE of a recipe takes only what concerns the rows' weights."""
    return not plan.implied or key == "row_weight" or any(key in options for options in _rule_options())


def _rule_options() -> list[Mapping[str, Value]]:
    weights = [rule.options for rule in ROW_WEIGHTS.values()]
    return [SHARED_OPTIONS, *weights, *(rule.options for rule in TEMPERATURE_RULES.values())]


def _apply_one(plan: _Plan, key: str, value: str | float, *, named: bool) -> bool:
    """Set one setting on one term; False when the term does not have it."""
    options = plan.loss.options
    if key in options:
        auto = value == "auto" and key in SEARCH
        plan.options[key] = "auto" if auto else _value(key, value, options[key])
    elif key == "weight":
        plan.weight = float(_value(key, value, 0.0))
    elif key == "warmup":
        plan.warmup = float(_value(key, value, 0.0))
    elif key == "standardise" and plan.loss.fits == "teacher":
        plan.standardise = bool(_value(key, value, False))
    elif key == "row_weight":
        if str(value) not in ROW_WEIGHTS:
            raise ValueError(_unknown("row weight", str(value), ROW_WEIGHTS))
        if named or plan.loss.fits in ROW_WEIGHTS[str(value)].touches:
            plan.row_weight = str(value)
    elif key == "temperature_rule" and plan.loss.fits == "teacher" and "temperature" in options:
        if str(value) not in TEMPERATURE_RULES:
            raise ValueError(_unknown("temperature rule", str(value), TEMPERATURE_RULES))
        plan.temperature_rule = str(value)
    else:
        defaults = next((found for found in _rule_options() if key in found), None)
        if defaults is None:
            return False
        plan.row_options[key] = _value(key, value, defaults[key])
    return True


def _value(key: str, value: str | float, default: Value) -> Value:
    """A setting's value in the type of its default, checked."""
    if isinstance(default, bool):
        words = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
        word = str(value).strip().lower().removesuffix(".0")
        if word not in words:
            raise ValueError(f"{key} is 1 or 0, not {value!r}")
        return words[word]
    if isinstance(default, str):
        choices = CHOICES[key]
        if str(value) not in choices:
            raise ValueError(f"{key} is one of {', '.join(choices)}, not {value!r}")
        return str(value)
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{key} is a number, not {value!r}")
    if key in POSITIVE and (number < 0.0 or (number == 0.0 and key not in MAY_BE_ZERO)):
        raise ValueError(f"{key} is a number above 0, not {value!r}")
    if key in AT_MOST_ONE and not 0.0 <= number <= 1.0:
        raise ValueError(f"{key} lies between 0 and 1, not {value!r}")
    return number


def _known(plans: Iterable[_Plan]) -> list[str]:
    known = {"preset", "warmup", "weight", "ce_weight", "row_weight"}
    for plan in plans:
        if not plan.implied:
            known |= set(plan.loss.options)
        if plan.loss.fits == "teacher":
            known |= {"standardise"} | ({"temperature_rule"} if "temperature" in plan.loss.options else set())
        known |= set(plan.term().row_options)
    return sorted(known)


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {name!r}{hint} known: {', '.join(names)}"
