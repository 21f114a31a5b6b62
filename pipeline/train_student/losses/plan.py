"""One term of an objective while its settings are read: which settings it takes, and what they do together."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from .domains import Option, Switch, Value
from .kinds import WARMUP, WEIGHT, Loss
from .row_rules import ROW_WEIGHTS, SHARED, TEMPERATURE_RULES
from .schedule import SCHEDULE, Schedule
from .term import Term

RULES: Mapping[str, Mapping[str, Any]] = {"row_weight": ROW_WEIGHTS, "temperature_rule": TEMPERATURE_RULES}
RULE_OPTIONS: dict[str, tuple[str, str, Option]] = {
    **{key: ("row_weight", "", option) for key, option in SHARED.items()},
    **{
        key: ("row_weight", name, option)
        for name, weight in ROW_WEIGHTS.items()
        for key, option in weight.takes.items()
    },
    **{
        key: ("temperature_rule", name, option)
        for name, rule in TEMPERATURE_RULES.items()
        for key, option in rule.takes.items()
    },
}
"""Option of a rule -> kind of rule, name of the rule (empty: any of the kind), and the option."""
SHARED_SETTINGS = frozenset(
    {"preset", "weight", "ce_weight", "warmup", "standardise", *SCHEDULE, *RULES, *RULE_OPTIONS}
)
"""What every term may be told; the rest are options of its loss."""


@dataclass(kw_only=True)
class Plan:
    """A term while its settings are read; `chosen` holds what was set by name, `kind` its loss's name."""

    name: str
    loss: Loss
    kind: str
    weight: float
    ce_weight: float = 0.0
    warmup: float = 0.0
    standardise: bool = False
    scheduled: dict[str, float] = field(default_factory=dict)
    options: dict[str, Value] = field(default_factory=dict)
    rules: dict[str, str] = field(default_factory=dict)
    rule_options: dict[str, Value] = field(default_factory=dict)
    chosen: set[str] = field(default_factory=set)
    implied: bool = False

    @property
    def follows(self) -> set[str]:
        """What the term's target is made of: the teacher's answers, the labels, or both."""
        softened = self.options.get("target") == "teacher"
        teacher = self.loss.fits == "teacher" or softened
        labels = self.loss.trusts_labels and not softened
        return {word for word, does in (("teacher", teacher), ("labels", labels)) if does}

    def term(self) -> Term:
        """The finished term."""
        used = {key: option.default for key, (kind, rule, option) in RULE_OPTIONS.items() if self._has(kind, rule)}
        return Term(
            name=self.name,
            kind=self.kind,
            loss=self.loss,
            weight=self.weight,
            warmup=self.warmup,
            schedule=self.schedule,
            standardise=self.standardise,
            row_weight=self.rules.get("row_weight", ""),
            temperature_rule=self.rules.get("temperature_rule", ""),
            options=self.options,
            row_options=used | self.rule_options,
        )

    @property
    def schedule(self) -> Schedule:
        """When the term counts."""
        return Schedule(**self.scheduled)

    def _has(self, kind: str, rule: str) -> bool:
        return kind in self.rules and rule in ("", self.rules[kind])

    def takes(self, key: str) -> bool:
        """Whether the term has a setting of this name."""
        if key in RULE_OPTIONS:
            return self._has(*RULE_OPTIONS[key][:2])
        if key == "standardise":
            return self.loss.fits == "teacher"
        if key == "temperature_rule":
            return self.loss.fits == "teacher" and "temperature" in self.options and not self.loss.sha256
        return key in {"weight", "warmup", "row_weight", *SCHEDULE, *self.options}

    def set(self, key: str, value: Any) -> None:
        """Reads one setting that the term takes."""
        self.chosen.add(key)
        if key in RULE_OPTIONS:
            self.rule_options[key] = RULE_OPTIONS[key][2].read(key, value)
        elif key in RULES:
            self.rules[key] = str(value)
            if self.rules[key] not in RULES[key]:
                raise ValueError(unknown(key.replace("_", " "), str(value), RULES[key]))
        elif key in SCHEDULE:
            self.scheduled[key] = float(SCHEDULE[key].read(key, value))
        elif key in self.options:
            self.options[key] = self.loss.takes[key].read(key, value)
        elif key == "standardise":
            self.standardise = Switch().read(key, value)
        elif key == "warmup":
            self.warmup = WARMUP.read(key, value)
        else:
            self.weight = WEIGHT.read(key, value)

    def check(self) -> None:
        """Refuses options that do nothing beside the others."""
        self.schedule.check(self.name)
        for key in sorted(self.chosen & set(self.options)):
            unless = self.loss.takes[key].unless
            if unless is not None and self.options[unless[0]] == unless[1]:
                word = unless[1] if isinstance(unless[1], str) else f"{unless[1]:g}"
                raise ValueError(f"{key} does nothing with {unless[0]}={word}; leave it out, or change {unless[0]}")
        parts = [(self.loss.parts, self.options)]
        if "row_weight" in self.rules:
            parts.append((ROW_WEIGHTS[self.rules["row_weight"]].parts, self.rule_options))
        for names, values in parts:
            if names and all(values.get(name, 1.0) == 0.0 for name in names):
                raise ValueError(f"{' and '.join(names)} are both 0: nothing is left of {self.name}")


def plan_term(name: str, loss: Loss, weight: float | None, preset: str) -> Plan:
    """A recipe (no weight given), or one term of a sum, whose preset changes options alone."""
    preset_values = presets_of(loss).get(preset, {})
    options = loss.options | {key: value for key, value in preset_values.items() if key in loss.takes}
    standardise = bool(preset_values.get("standardise"))
    plan = Plan(name=name, kind=name, loss=loss, weight=1.0, options=options, standardise=standardise)
    if weight is not None:
        return replace(plan, weight=weight)
    return replace(
        plan,
        weight=float(preset_values.get("weight", loss.weight)),
        ce_weight=float(preset_values.get("ce_weight", loss.ce_weight)),
        warmup=float(preset_values.get("warmup", loss.warmup)),
    )


def presets_of(loss: Loss) -> dict[str, Mapping[str, Value]]:
    """The loss's presets; "cifar" names the defaults where they are CIFAR-100's."""
    return {**({"cifar": {}} if loss.setting == "CIFAR-100" else {}), **loss.presets}


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f", did you mean {near[0]!r}?" if near else ";"
    return f"unknown {kind} {name!r}{hint} known: {', '.join(names)}"
