"""One term of an objective: a loss, how much it counts and when, and the rules that go with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import nn

from .context import Step
from .domains import Value
from .feedback import Feedback
from .kinds import Loss, Material
from .learned import LearnedTemperature
from .row_rules import ROW_WEIGHTS, TEMPERATURE_RULES
from .schedule import Schedule

Maker = Callable[[Material], nn.Module]


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss of an objective with its resolved options; of several terms of one kind, each has its own name."""

    name: str
    loss: Loss
    kind: str
    weight: float
    warmup: float = 0.0
    schedule: Schedule = field(default_factory=Schedule)
    standardise: bool = False
    row_weight: str = ""
    temperature_rule: str = ""
    options: Mapping[str, Value] = field(default_factory=dict)
    row_options: Mapping[str, Value] = field(default_factory=dict)
    class_counts: tuple[int, ...] = ()

    @property
    def loss_needs(self) -> frozenset[str]:
        """What the loss itself asks of each row, its row weight aside."""
        waived = {need for need, (key, value) in self.loss.waives.items() if self.options.get(key) == value}
        return (self.loss.needs - waived) | (frozenset({"logits"}) if self.standardise else frozenset())

    @property
    def needs(self) -> frozenset[str]:
        """What the store must offer for this term at these options."""
        of_rows = ROW_WEIGHTS[self.row_weight].needs if self.row_weight else frozenset[str]()
        if self.row_options.get("paced_by") == "teacher":  # one that saw the row is sure of its label
            of_rows |= {"out_of_fold", "label_prob"}
        if self.goes_by_views:
            of_rows |= {"out_of_fold"}
        # the mass of a tail that follows the student is exact at one temperature
        several = len(set(self.temperatures)) > 1 or self.temperature_rule
        return self.loss_needs | of_rows | (frozenset({"fixed_tail"}) if several else frozenset())

    @property
    def fits_teacher(self) -> bool:
        """Whether the loss itself looks at the teacher, its row weight aside."""
        return self.loss.fits == "teacher" or self.options.get("target") == "teacher"

    @property
    def weighs_by_teacher(self) -> bool:
        """Whether the row weight looks at the teacher."""
        if self.weighs_by_class:  # which takes the teacher's word where there is no label
            return self.fits_teacher
        return bool(self.row_weight) and self.row_options.get("paced_by") != "student"

    @property
    def takes_sparse(self) -> bool:
        """Whether a teacher's sparse form is all that the term needs of it, if it needs it."""
        plain = self.loss.sparse is not None and not self.standardise and not self.temperature_rule
        return (plain or not self.fits_teacher) and not self.weighs_by_teacher

    @property
    def weighs_by_class(self) -> bool:
        """Whether the row weight goes by the class of a row and the counts of all."""
        return bool(self.row_weight) and ROW_WEIGHTS[self.row_weight].counts

    @property
    def couples_rows(self) -> bool:
        """Whether a row's loss depends on the other rows that are passed with it."""
        by_weight = bool(self.row_weight) and (
            self.row_options["row_weight_mean_one"] is True
            or "labels" in ROW_WEIGHTS[self.row_weight].needs  # rows without one get the mean of the others
        )
        by_loss = self.loss.couples_rows and self.loss.uncoupled_by not in self.options.items()
        by_rule = bool(self.temperature_rule) and TEMPERATURE_RULES[self.temperature_rule].couples_rows
        return by_loss or by_weight or by_rule or self.feeds_back

    @property
    def goes_by_views(self) -> bool:
        """Whether the row weight goes by how often teachers are right about a row."""
        return self.row_options.get("paced_by") == "views"

    @property
    def feeds_back(self) -> bool:
        """Whether the row weight goes by the losses of the steps before."""
        return bool(self.row_weight) and ROW_WEIGHTS[self.row_weight].feeds_back

    @property
    def makers(self) -> dict[str, Maker]:
        """What the term keeps from step to step, by name, and how it is made."""
        found: dict[str, Maker] = {}
        if self.loss.module is not None:
            found[self.name] = partial(self.loss.module, **self.options)
        if self.feeds_back:
            found[f"rows of {self.name}"] = lambda _: Feedback(**_bare("feedback_", self.row_options))
        if self.learns_temperature:
            found[f"temperature of {self.name}"] = lambda _: self.learned_temperature()
        return found

    @property
    def learns_temperature(self) -> bool:
        """Whether T is learned beside the student."""
        return bool(self.temperature_rule) and TEMPERATURE_RULES[self.temperature_rule].learns

    def learned_temperature(self) -> LearnedTemperature:
        """T, fresh; ValueError when it starts outside the range that it may have."""
        return LearnedTemperature(self.temperature, **_bare("learned_", self.row_options))

    @property
    def counted(self) -> tuple[str, ...]:
        """Names of what is counted while training: rows with a label, and those of them left out."""
        if "label_in_head_B" not in self.loss.extras:
            return ()
        return f"{self.name}_rows", f"{self.name}_rows_abstained"

    @property
    def temperature(self) -> float:
        """T of the teacher, 1 for a loss that has none."""
        return float(self.options.get("temperature", 1.0))

    @property
    def temperatures(self) -> tuple[float, ...]:
        """Every temperature at which the term may look at the teacher."""
        found = [self.temperature]
        if self.options.get("same_t") is False:
            found.append(float(self.options["alpha_temperature"]))
        return tuple(found)

    def bind(self, values: Mapping[str, Value]) -> Term:
        """The same term with its "auto" options fixed; ValueError for a value outside the option's domain."""
        takes = self.loss.takes
        bound = {key: takes[key].domain.read(key, values[key]) for key in values if self.options.get(key) == "auto"}
        return replace(self, options={**self.options, **bound})

    def factor(self, step: Step) -> float:
        """Weight in a step: it rises linearly over the epochs of the warm-up, and goes by the schedule."""
        warm = min(step.epoch / self.warmup, 1.0) if self.warmup > 0 else 1.0
        return self.weight * warm * self.schedule.factor(step)

    def settings(self) -> dict[str, Any]:
        """All resolved settings, fit for JSON."""
        found: dict[str, Any] = {"loss": self.name, "weight": self.weight, "warmup": self.warmup}
        found |= {"kind": self.kind} if self.kind != self.name else {}
        found |= self.schedule.settings()
        found |= dict(self.options)
        if self.loss.sha256:
            found["sha256"] = self.loss.sha256
        if self.standardise:
            found["standardise"] = True
        for key, name in (("row_weight", self.row_weight), ("temperature_rule", self.temperature_rule)):
            if name:
                found[key] = name
        return found | dict(self.row_options)


def _bare(prefix: str, options: Mapping[str, Value]) -> dict[str, Any]:
    """Options whose names begin so, without the prefix."""
    return {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}
