"""From the text of `--loss` and `--set` to one callable: weights, warm-ups, row rules and what a step knows.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..row_weights import ROW_WEIGHTS, row_temperatures, row_weights
from .kinds import SEARCH, Loss, Value
from .numerics import Temperature, raised
from .standardise import standardised
from .table import LOSSES

TeacherLogits = Tensor | Callable[[float], Tensor]


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """What a loss may know of the step beyond the three tensors."""

    epoch: int = 1
    """Counts from 1."""
    num_epochs: int = 1
    label_in_head_B: Tensor | None = None
    """True where the decoded order above the label is exact; None means everywhere."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One loss of an objective with its resolved options."""

    name: str
    weight: float
    warmup: float = 0.0
    standardise: bool = False
    row_weight: str = ""
    temperature_rule: str = ""
    options: Mapping[str, Value] = field(default_factory=dict)
    row_options: Mapping[str, Value] = field(default_factory=dict)

    @property
    def loss(self) -> Loss:
        """The table's entry."""
        return LOSSES[self.name]

    @property
    def needs(self) -> frozenset[str]:
        """What the store must offer for this term at these options."""
        waived = {need for need, (key, value) in self.loss.waives.items() if self.options.get(key) == value}
        of_rows = ROW_WEIGHTS[self.row_weight].needs if self.row_weight else frozenset[str]()
        return (self.loss.needs - waived) | of_rows

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

    def factor(self, epoch: int) -> float:
        """Weight in an epoch counted from 1: it rises linearly over the warm-up."""
        return self.weight * (min(epoch / self.warmup, 1.0) if self.warmup > 0 else 1.0)

    def settings(self) -> dict[str, Any]:
        """All resolved settings, fit for JSON."""
        found: dict[str, Any] = {"loss": self.name, "weight": self.weight, "warmup": self.warmup}
        found |= dict(self.options)
        if self.standardise:
            found["standardise"] = True
        for key, name in (("row_weight", self.row_weight), ("temperature_rule", self.temperature_rule)):
            if name:
                found[key] = name
        return found | dict(self.row_options)


class Objective:
    """A weighted sum of losses, called once per step; the caller takes the mean over the rows.

    Rows with label -1 get 0 from every term that needs a label. Halves are raised to float32.
    """

    def __init__(self, name: str, terms: tuple[Term, ...]) -> None:
        self.name = name
        self.terms = terms
        self._counts: dict[str, Tensor] = {}

    @property
    def needs(self) -> frozenset[str]:
        """What the store must offer, over all terms."""
        return frozenset[str]().union(*(term.needs for term in self.terms))

    @property
    def prefers(self) -> frozenset[str]:
        """What the losses were made for and can do without: worth a warning."""
        return frozenset[str]().union(*(term.loss.prefers for term in self.terms)) - self.needs

    @property
    def uses_teacher(self) -> bool:
        """False when labels alone decide the loss."""
        return any(
            term.loss.fits == "teacher" or term.row_weight or term.options.get("target") == "teacher"
            for term in self.terms
        )

    @property
    def temperature(self) -> float:
        """The largest temperature at which the teacher is read."""
        return max(max(term.temperatures) for term in self.terms)

    @property
    def settings(self) -> dict[str, Any]:
        """All resolved settings, fit for JSON."""
        return {"objective": self.name, "terms": [term.settings() for term in self.terms]}

    @property
    def search(self) -> dict[str, tuple[float, ...]]:
        """Options that are still "auto", with the values to try on a validation split."""
        auto = {key for term in self.terms for key, value in term.options.items() if value == "auto"}
        return {key: SEARCH[key] for key in sorted(auto)}

    def bind(self, **values: float) -> Objective:
        """The same objective with its "auto" options fixed, as `objective.bind(c=0.03)`."""
        unknown = sorted(set(values) - set(self.search))
        if unknown:
            raise ValueError(f"{unknown[0]} is not auto here; auto: {', '.join(self.search) or 'nothing'}")
        terms = tuple(
            replace(
                term,
                options={
                    key: values.get(key, value) if value == "auto" else value for key, value in term.options.items()
                },
            )
            for term in self.terms
        )
        return Objective(self.name, terms)

    def notes(self) -> dict[str, int]:
        """Counts since last asked, such as the rows on which a loss abstained."""
        counts = {key: int(value) for key, value in self._counts.items()}
        self._counts = {}
        return counts

    def __call__(
        self,
        student_BC: Tensor,
        teacher: TeacherLogits,
        labels_B: Tensor,
        context: StepContext | None = None,
    ) -> Tensor:
        """Loss of each row.

        Args:
            student_BC: Student logits, any floating type.
            teacher: Teacher logits [B, C], dense and finite, or a function from a temperature to them.
            labels_B: Class ids, -1 unlabelled.
            context: Epoch and what is known of the rows; the first epoch and everything known when absent.

        Returns:
            Loss, shape [B], float32 (float64 for float64 logits).

        Raises:
            ValueError: When an option is still "auto".
        """
        if self.search:
            raise ValueError(f"{', '.join(self.search)} is auto: search it on a validation split and bind it first")
        context = context or StepContext()
        labels_B = labels_B.long()
        labelled_B, safe_labels_B = labels_B >= 0, labels_B.clamp(min=0)
        read = _cached(teacher)
        with torch.autocast(student_BC.device.type, enabled=False):
            student_BC = raised(student_BC)
            total_B = torch.zeros_like(student_BC[:, 0])
            for term in self.terms:
                rows_B = self._rows(term, student_BC, read, labels_B, safe_labels_B, context)
                if "labels" in term.needs:
                    rows_B = torch.where(labelled_B, rows_B, torch.zeros_like(rows_B))
                total_B = total_B + term.factor(context.epoch) * rows_B
        return total_B

    def _rows(
        self,
        term: Term,
        student_BC: Tensor,
        read: Callable[[float], Tensor],
        labels_B: Tensor,
        safe_labels_B: Tensor,
        context: StepContext,
    ) -> Tensor:
        needs_teacher = term.loss.fits == "teacher" or term.options.get("target") == "teacher"
        teacher_BC = read(term.temperature) if needs_teacher or term.row_weight else student_BC.detach()
        pair = (student_BC, teacher_BC)
        if term.standardise:
            pair = (standardised(student_BC), standardised(teacher_BC))
        options: dict[str, Any] = dict(term.options)
        if term.temperature_rule:
            temperature: Temperature = row_temperatures(
                term.temperature_rule, pair[0], pair[1], term.temperature, term.row_options
            )
            options["temperature"] = temperature
        options |= self._extras(term, labels_B, context)
        rows_B = term.loss.fn(*pair, safe_labels_B, **options)
        if term.row_weight:
            rows_B = rows_B * row_weights(term.row_weight, student_BC, teacher_BC, labels_B, term.row_options)
        return rows_B

    def _extras(self, term: Term, labels_B: Tensor, context: StepContext) -> dict[str, Any]:
        extras: dict[str, Any] = {}
        if "progress" in term.loss.extras:
            extras["progress"] = (context.epoch - 1) / max(context.num_epochs - 1, 1)
        known_B = context.label_in_head_B
        if "label_in_head_B" in term.loss.extras:
            extras["label_in_head_B"] = known_B
            labelled_B = labels_B >= 0
            self._count(f"{term.name}_rows", labelled_B)
            self._count(
                f"{term.name}_rows_abstained",
                torch.zeros_like(labelled_B) if known_B is None else labelled_B & ~known_B,
            )
        return extras

    def _count(self, key: str, rows_B: Tensor) -> None:
        number = rows_B.detach().sum()
        self._counts[key] = self._counts[key] + number if key in self._counts else number


def _cached(teacher: TeacherLogits) -> Callable[[float], Tensor]:
    """The teacher as a function of the temperature, asked once for each."""
    answers: dict[float, Tensor] = {}

    def read(temperature: float) -> Tensor:
        if isinstance(teacher, Tensor):
            temperature = 1.0
        if temperature not in answers:
            logits_BC = teacher if isinstance(teacher, Tensor) else teacher(temperature)
            answers[temperature] = raised(logits_BC.detach())
        return answers[temperature]

    return read
