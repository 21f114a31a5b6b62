"""From the text of `--loss` and `--set` to one callable: weights, warm-ups, row rules and what a step knows.

Where examples are answered at L positions, all P = B L of them are rows to losses, row weights and rules of
temperatures: they are flattened in one place, and each example gets the mean over the positions that count.

Shapes: B batch, L positions, P rows, C classes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .batch_rows import Rows
from .chunks import in_chunks
from .context import OFFERS, Answer, Step
from .feedback import Feedback
from .kinds import CAPTURED, SEARCH, Material
from .learned import LearnedTemperature, LearnedWeights
from .mixed import MixedAnswer
from .numerics import Temperature, raised
from .rated import RatedAnswer
from .row_rules import row_temperatures, row_weights
from .standardise import standardised
from .term import Maker, Term
from .transforms import Transform

WEIGHTS = "weights of terms"
CHUNK = 2**24
"""Logits that a loss looks at together."""


class Objective:
    """A weighted sum of losses, called once per step; the caller takes the mean over the examples.

    Rows with label -1 get 0 from every term that needs a label. Halves are raised to float32.

    Attributes:
        modules: What losses keep from step to step, by term, once the objective is ``equipped``: whoever trains gives
            their parameters to the optimiser beside the student's.
    """

    def __init__(
        self,
        name: str,
        terms: tuple[Term, ...],
        modules: nn.ModuleDict | None = None,
        transforms: tuple[Transform, ...] = (),
        learns_weights: bool = False,
    ) -> None:
        self.name = name
        self.terms = terms
        self.transforms = transforms
        self.modules = nn.ModuleDict() if modules is None else modules
        self.learns_weights = learns_weights
        self._counts: dict[str, Tensor] = {}

    @property
    def needs(self) -> frozenset[str]:
        """What the store must offer, over all terms and transforms."""
        of_targets = frozenset[str]().union(*(transform.needs for transform in self.transforms))
        # the mass of a tail that follows the student is exact at one temperature, and transforms are at T = 1
        of_targets |= frozenset({"fixed_tail"}) if self.transforms else frozenset()
        return of_targets.union(*(term.needs for term in self.terms))

    @property
    def prefers(self) -> frozenset[str]:
        """What the losses were made for and can do without: worth a warning."""
        return frozenset[str]().union(*(term.loss.prefers for term in self.terms)) - self.needs

    @property
    def captures(self) -> frozenset[str]:
        """What the losses need of the student beside its logits."""
        return frozenset[str]().union(*(term.loss.extras & CAPTURED for term in self.terms))

    @property
    def uses_teacher(self) -> bool:
        """False when labels alone decide the loss."""
        return any(term.fits_teacher or term.weighs_by_teacher for term in self.terms)

    @property
    def temperature(self) -> float:
        """The largest temperature at which the teacher is read."""
        return max(max(term.temperatures) for term in self.terms)

    @property
    def settings(self) -> dict[str, Any]:
        """All resolved settings, fit for JSON."""
        found: dict[str, Any] = {"objective": self.name, "terms": [term.settings() for term in self.terms]}
        if self.learns_weights:
            found["learned_weights"] = True
        if self.transforms:
            found["target_transforms"] = [transform.settings() for transform in self.transforms]
        return found

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
        return self._with(terms=tuple(term.bind(values) for term in self.terms))

    @property
    def remembers(self) -> list[str]:
        """Terms that remember each example from step to step."""
        return [term.name for term in self.terms if "rows_B" in term.loss.extras]

    @property
    def weighs_by_class(self) -> bool:
        """Whether a row weight goes by the counts of the classes."""
        return any(term.weighs_by_class for term in self.terms)

    def with_class_counts(self, counts: Sequence[int]) -> Objective:
        """The same objective with the number of training rows of each class, for row weights that go by them."""
        found = tuple(int(count) for count in counts)
        return self._with(terms=tuple(replace(term, class_counts=found) for term in self.terms))

    def with_transforms(self, transforms: Sequence[Transform]) -> Objective:
        """The same objective with its target transforms fitted, or their options fixed."""
        return self._with(transforms=tuple(transforms))

    def equipped(self, material: Material, seed: int) -> Objective:
        """The same objective with fresh modules, drawn from a seed: no other random number depends on them."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            modules = {name: make(material) for name, make in self._makers.items()}
        return self._with(modules=nn.ModuleDict(modules))

    @property
    def _makers(self) -> dict[str, Maker]:
        found = {name: make for term in self.terms for name, make in term.makers.items()}
        return found | ({WEIGHTS: lambda _: LearnedWeights(len(self.terms))} if self.learns_weights else {})

    @property
    def kept(self) -> list[str]:
        """Names of what is kept from step to step."""
        return list(self._makers)

    @property
    def learned(self) -> dict[str, float]:
        """Numbers that the objective has learned or found beside the student, by name, once it is ``equipped``."""
        found: dict[str, float] = {}
        for name, module in self.modules.items():
            if isinstance(module, Feedback):
                found[f"kept {name}"] = float(module.kept)
            elif isinstance(module, LearnedTemperature):
                found[name] = float(module(1).detach())
            elif isinstance(module, LearnedWeights):
                names = (f"weight of {term.name}" for term in self.terms)
                found |= dict(zip(names, module.weights, strict=True))
        return found

    def _with(self, **changed: Any) -> Objective:
        kept: dict[str, Any] = {"terms": self.terms, "transforms": self.transforms, "modules": self.modules}
        return Objective(self.name, **{**kept, "learns_weights": self.learns_weights, **changed})

    @property
    def goes_by_views(self) -> bool:
        """Whether a row weight goes by how often teachers are right about a row."""
        return any(term.goes_by_views for term in self.terms)

    @property
    def mixes_answers(self) -> bool:
        """Whether a mixed sample has one answer, mixed, instead of two losses."""
        return any(transform.rule.mixes for transform in self.transforms)

    def notes(self) -> dict[str, int]:
        """Counts since last asked, such as the rows on which a loss abstained; always of the same names."""
        names = [key for term in self.terms for key in term.counted]
        counts = {key: int(self._counts.get(key, 0)) for key in names}
        self._counts = {}
        return counts

    def __call__(
        self,
        student_BC: Tensor,
        answer: Answer,
        labels_B: Tensor,
        step: Step,
        captured: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Loss of each example.

        Args:
            student_BC: Student logits, any floating type; [B, L, C] where examples are answered at L positions.
            answer: What the teacher says of them: ``answers.of(rows, view)``, or ``ExactAnswer`` of logits.
            labels_B: Class ids, -1 unlabelled; [B, L] likewise.
            step: Where in the run the step is.
            captured: What the objective ``captures`` of the student, [B, ...] by name.

        Returns:
            Loss, shape [B], float32 (float64 for float64 logits). A row that no teacher serves gets 0 from terms that
            follow the teacher and keeps those of its label. Of L positions each term takes the mean over those that
            are served and, where it needs labels, labelled. Many logits (``CHUNK``) are taken in chunks of rows, so
            that the teacher's never exist whole, unless rows depend on each other, or something learns beside the
            logits.

        Raises:
            ValueError: When an option is still "auto", a loss lacks its module, the answer what a loss needs, or labels
                and logits are not of the same examples.
            TypeError: When the answer is bare logits, which do not say what of them is known.
        """
        if self.search:
            raise ValueError(f"{', '.join(self.search)} is auto: search it on a validation split and bind it first")
        if lacking := [name for name in self._makers if name not in self.modules]:
            raise ValueError(f"{lacking[0]} learns while it is used: call equipped first, and train its modules, too")
        if self.remembers and (step.rows_B is None or labels_B.ndim > 1):
            raise ValueError(
                f"{self.remembers[0]} remembers examples: pass their row numbers, Step(rows_B=...), one an answer"
            )
        if isinstance(answer, Tensor):
            raise TypeError(
                "expected an answer, found a tensor: pass answers.of(rows, view), or ExactAnswer(logits) if a"
                " teacher gave every logit itself"
            )
        refuse_missing(self, answer.offers)
        if self.mixes_answers and not isinstance(answer, MixedAnswer):
            raise ValueError("mix_targets goes by pairs of examples; pass a MixedAnswer, as --mixup does")
        if self.goes_by_views and not isinstance(answer, RatedAnswer):
            raise ValueError("paced_by=views goes by how often teachers are right; pass a RatedAnswer")
        if student_BC.shape[:-1] != labels_B.shape:
            raise ValueError(
                f"labels are {list(labels_B.shape)} beside logits {list(student_BC.shape)}; expected one an answer"
            )
        one_is_flat = labels_B.ndim == 1 or len(answer.shape) == 1
        if labels_B.shape != answer.shape and not (one_is_flat and labels_B.numel() == math.prod(answer.shape)):
            raise ValueError(
                f"logits are {list(student_BC.shape)}, and the answer is about {list(answer.shape)}; expected the same"
                " examples, and where they have positions [examples, positions, classes], every position"
            )
        if labels_B.is_floating_point():
            raise ValueError(f"labels are {labels_B.dtype}; expected class ids, whole numbers, -1 for none")
        if missing := sorted(self.captures - set(captured or {})):
            raise ValueError(f"loss {self.name!r} needs the student's {missing[0]}; pass it as captured={{...}}")
        student_PC, labels_P = student_BC.flatten(0, -2), labels_B.flatten().long()
        shares = self._shares(answer, labels_B.long()) if labels_B.ndim > 1 else None

        def losses(logits_PC: Tensor, some: slice) -> Tensor:
            part = answer if len(logits_PC) == len(labels_P) else answer.part(some)
            own = None if shares is None else [share_P[some] for share_P in shares]
            return self._losses(logits_PC, part, labels_P[some], step, own, captured or {})

        with torch.autocast(student_BC.device.type, enabled=False):
            num_rows = max(1, CHUNK // max(1, student_PC.shape[1]))
            together = len(self.modules) or self.captures or any(term.couples_rows for term in self.terms)
            if num_rows >= len(student_PC) or together:
                loss_P = losses(student_PC, slice(None))
            else:
                loss_P = in_chunks(losses, student_PC, num_rows)
        return loss_P if shares is None else loss_P.view_as(labels_B).sum(dim=1)

    def _losses(
        self,
        student_PC: Tensor,
        answer: Answer,
        labels_P: Tensor,
        step: Step,
        shares: Sequence[Tensor] | None,
        captured: Mapping[str, Tensor],
    ) -> Tensor:
        """The weighted sum of the terms for each row; of rows that are positions, each term's share of it."""
        raised_captured = {name: raised(value) for name, value in captured.items()}
        every = Rows(raised(student_PC), answer, labels_P, raised_captured, self.transforms)
        served_P = answer.served() if self.uses_teacher else None
        served = every if served_P is None else every.only(served_P)
        total_P = torch.zeros_like(every.student_BC[:, 0])
        for number, term in enumerate(self.terms):
            if factor := term.factor(step):
                loss_P = factor * self._term(term, every, served, step)
                loss_P = self.modules[WEIGHTS](loss_P, number) if self.learns_weights else loss_P
                total_P = total_P + (loss_P if shares is None else shares[number] * loss_P)
        if student_PC.requires_grad and not total_P.requires_grad:  # a ramp's end at 0 is a step, too
            total_P = total_P + 0.0 * every.student_BC.sum(1)
        return total_P

    def _shares(self, answer: Answer, labels_BL: Tensor) -> list[Tensor]:
        """For each term, what a position has of its example's mean, float32 [P]."""
        served_P = answer.served() if self.uses_teacher else None
        served_BL = torch.ones_like(labels_BL) if served_P is None else served_P.to(labels_BL.device).view_as(labels_BL)
        shares = []
        for term in self.terms:
            counts_BL = served_BL.bool() if term.fits_teacher else torch.ones_like(labels_BL, dtype=torch.bool)
            if "labels" in term.loss_needs:
                counts_BL = counts_BL & (labels_BL >= 0)
            shares.append((counts_BL / counts_BL.sum(dim=1, keepdim=True).clamp(min=1)).flatten())
        return shares

    def _term(self, term: Term, every: Rows, served: Rows, step: Step) -> Tensor:
        """One term's loss of every row: weights and the teacher's part of the rows that are served."""
        own = served if term.fits_teacher else every
        if "labels" in term.loss_needs:
            own = own.only(every.labels_B >= 0)
        if not len(own.labels_B):
            return 0.0 * every.student_BC.sum(1)
        loss_B = own.spread(self._loss(term, own, step), 0.0)
        judged = served if term.weighs_by_teacher else every
        if term.weighs_by_class and not term.weighs_by_teacher:
            judged = every.only(every.labels_B >= 0)
        if term.row_weight and len(judged.labels_B):
            teacher_BC = judged.teacher(1.0) if term.weighs_by_teacher else judged.student_BC.detach()
            feedback = self.modules[f"rows of {term.name}"] if term.feeds_back else None
            weight_B = row_weights(
                term.row_weight,
                judged.student_BC,
                teacher_BC,
                judged.labels_B,
                term.row_options,
                term.class_counts,
                feedback.share(step) if isinstance(feedback, Feedback) else 1.0,
                judged.rates() if term.goes_by_views else None,
            )
            loss_B = loss_B * judged.spread(weight_B, 1.0)
            if isinstance(feedback, Feedback) and loss_B.requires_grad:
                feedback.observe((loss_B * judged.spread(torch.ones_like(weight_B), 0.0)).sum(), weight_B.sum())
        return loss_B

    @property
    def _takes_sparse(self) -> bool:
        """Whether no term needs the teacher's logits of all classes at once."""
        return not self.transforms and all(term.takes_sparse for term in self.terms)

    def _loss(self, term: Term, rows: Rows, step: Step) -> Tensor:
        takes = term.loss.sparse if term.fits_teacher and self._takes_sparse else None
        if takes is not None and (target := rows.sparse()) is not None:
            return takes(rows.student_BC, target, **term.options)
        teacher_BC = rows.target(term.temperature) if term.fits_teacher else rows.student_BC.detach()
        pair = (rows.student_BC, teacher_BC)
        if term.standardise:
            pair = (standardised(pair[0]), standardised(pair[1]))
        options: dict[str, Any] = dict(term.options)
        if term.temperature_rule:
            plain_BC = rows.target(1.0)
            temperature: Temperature = row_temperatures(
                term.temperature_rule,
                pair[0],
                standardised(plain_BC) if term.standardise else plain_BC,
                term.temperature,
                term.row_options,
                self.modules[name] if (name := f"temperature of {term.name}") in self.modules else None,
                step.epoch,
            )
            options["temperature"] = temperature
        options |= self._extras(term, rows, step)
        return term.loss.fn(*pair, rows.labels_B.clamp(min=0), **options)

    def _extras(self, term: Term, rows: Rows, step: Step) -> dict[str, Any]:
        extras: dict[str, Any] = {"module": self.modules[term.name]} if term.loss.module else {}
        extras |= {name: rows.captured(name) for name in term.loss.extras & CAPTURED}
        if "teacher_features" in term.loss.extras:
            extras["teacher_features"] = rows.features()
        if "rows_B" in term.loss.extras:
            extras["rows_B"] = rows.of_batch(step.rows_B)
        if "progress" in term.loss.extras:
            extras["progress"] = step.progress
        if "label_in_head_B" in term.loss.extras:
            known_B = rows.order_known(term.temperature)
            extras["label_in_head_B"] = known_B
            every_B = torch.ones_like(rows.labels_B, dtype=torch.bool)
            abstained_B = torch.zeros_like(every_B) if known_B is None else ~known_B
            for key, counted_B in zip(term.counted, (every_B, abstained_B), strict=True):
                self._count(key, counted_B)
        return extras

    def _count(self, key: str, rows_B: Tensor) -> None:
        number = rows_B.detach().sum()
        self._counts[key] = self._counts[key] + number if key in self._counts else number


def refuse_missing(objective: Objective, offers: frozenset[str]) -> None:
    """Raises ValueError when an objective needs what answers do not offer."""
    for need in sorted((objective.needs & OFFERS.keys()) - offers):
        raise ValueError(f"loss {objective.name!r} needs {OFFERS[need]}, or choose another loss")
