"""What an objective fits, for students that are fitted in one go and take no gradient: targets and row weights.

A sum of squared errors is, up to a constant, one squared error to the mean of their targets, and a sum of
cross-entropies at one temperature is one cross-entropy. Other losses have no such form, and are refused.

Shapes: N rows, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .context import Answer
from .numerics import probs, raised
from .objective import Objective, refuse_missing
from .row_rules import row_weights
from .row_weights import TINY
from .semiparametric import corrected_target, fixed_gamma_target, orthogonal_target, slow_bound_target
from .term import Term

Target = Callable[..., Tensor]


def _labels(teacher_NC: Tensor, labels_N: Tensor, *, smoothing: float = 0.0) -> Tensor:
    one_hot_NC = torch.nn.functional.one_hot(labels_N, teacher_NC.shape[1]).to(teacher_NC.dtype)
    return one_hot_NC * (1.0 - smoothing) + smoothing / teacher_NC.shape[1]


def _logits(teacher_NC: Tensor, labels_N: Tensor) -> Tensor:
    return raised(teacher_NC)


def _probabilities(teacher_NC: Tensor, labels_N: Tensor, *, temperature: float = 1.0) -> Tensor:
    return probs(teacher_NC, temperature)


# name of a loss -> its target, of the teacher's logits [N, C], labels int64 [N] and the loss's options
SQUARED_ERRORS: Mapping[str, Target] = {
    "mse": _logits,
    "sel": _logits,
    "sel_corrected": corrected_target,
    "sel_slow": slow_bound_target,
    "sel_gamma": fixed_gamma_target,
    "sel_ortho": orthogonal_target,
}
CROSS_ENTROPIES: Mapping[str, Target] = {"ce": _labels, "kd": _probabilities, "soft_ce": _probabilities}
FITS: Mapping[str, Mapping[str, Target]] = {"squared error": SQUARED_ERRORS, "cross-entropy": CROSS_ENTROPIES}


@dataclass(frozen=True, kw_only=True)
class Targets:
    """What each row is fitted to.

    Attributes:
        target_NC: Float [N, C]: logits, or numbers that sum to 1.
        weight_N: Float [N], how much each row counts; 0 where nothing is known to fit.
        scale: "logit" or "probability": what the target is.
        temperature: T at which a cross-entropy compares; student logits are T times those that fit the target.
    """

    target_NC: Tensor
    weight_N: Tensor
    scale: str
    temperature: float = 1.0


def check_fitted(objective: Objective, fits: str, student: str) -> None:
    """Refuses an objective that is no loss of a kind.

    Args:
        objective: What would be minimised; options may be "auto".
        fits: "squared error" or "cross-entropy".
        student: For errors.

    Raises:
        ValueError: Naming the losses that are served, or what of the objective has no target.
    """
    served = FITS[fits]
    for term in objective.terms:
        if term.loss.sha256 or term.kind not in served:
            other = next((f", which students fitted by {kind} do" for kind in FITS if term.kind in FITS[kind]), "")
            other = "; --set ce_weight=0 leaves that out" if term.kind == "ce" and len(objective.terms) > 1 else other
            raise ValueError(
                f"{student} is fitted to targets by {fits}: it serves {', '.join(served)} and sums of them, but"
                f" not the {term.name} of loss {objective.name!r}{other}"
            )
        for setting, given in (
            ("warmup", term.warmup > 0),
            ("the schedule", bool(term.schedule.settings())),
            ("standardise", term.standardise),
            ("temperature_rule", bool(term.temperature_rule)),
            ("row_weight=hardest", term.feeds_back),
            ("row_weight=paced", term.row_options.get("paced_by") in ("student", "views")),
            ("row_weight=" + term.row_weight, term.row_weight in ("entropy_gap", "teacher_ahead")),
        ):
            if given:
                raise ValueError(
                    f"{student} is fitted in one go, before it answers anything; {setting} of {term.name} goes by its"
                    " answers or by epochs; leave it out"
                )
    if objective.learns_weights:
        raise ValueError(f"{student} is fitted in one go, and learns no weights of terms; leave learned_weights out")
    if objective.mixes_answers:
        raise ValueError(f"{student} is fitted in one go, and sees no mixed samples; leave mix_targets out")
    if len({_scale(term, fits) for term in objective.terms}) > 1:
        raise ValueError(f"loss {objective.name!r} fits logits and probabilities, but {student} only one of them")
    if fits == "cross-entropy" and len({term.temperature for term in objective.terms}) > 1:
        raise ValueError(
            f"loss {objective.name!r} compares at several temperatures, but {student} fits one distribution; pass"
            " --set temperature=1, or --set ce_weight=0"
        )


def fitted_targets(objective: Objective, answer: Answer, labels_N: Tensor, num_classes: int, fits: str) -> Targets:
    """The targets of rows, and how much each counts, over all terms of an objective that ``check_fitted`` let pass.

    Args:
        objective: With every option bound.
        answer: What the teacher says of the rows.
        labels_N: int64 [N], -1 unlabelled.
        num_classes: C.
        fits: "squared error" or "cross-entropy".

    Raises:
        ValueError: The answer lacks what a loss needs.
    """
    refuse_missing(objective, answer.offers)
    all_N, served_N, teacher_NC = torch.ones_like(labels_N, dtype=torch.bool), None, torch.zeros(1, num_classes)
    if objective.uses_teacher:
        served_N = answer.served()
        teacher_NC = raised(answer.logits(torch.zeros(len(labels_N), num_classes), 1.0))
    served_N = all_N if served_N is None else served_N
    teacher_NC = torch.where(served_N[:, None], teacher_NC, 0.0).double()
    followed_NC = teacher_NC
    for transform in objective.transforms:
        followed_NC = transform(followed_NC, labels_N)
    sum_NC, weight_N = torch.zeros_like(teacher_NC), torch.zeros_like(teacher_NC[:, 0])
    for term in objective.terms:
        own_N = served_N if term.fits_teacher else all_N
        own_N = own_N & (labels_N >= 0) if "labels" in term.loss_needs else own_N
        term_N = torch.where(own_N, term.weight * term.temperature**2, 0.0)
        if term.row_weight:
            judged_N = served_N if term.weighs_by_teacher else all_N
            if term.weighs_by_class and not term.weighs_by_teacher:
                judged_N = labels_N >= 0
            term_N = term_N * _row_weight(term, teacher_NC, labels_N, judged_N)
        target_NC = FITS[fits][term.kind](followed_NC, labels_N.clamp(min=0), **term.options)
        sum_NC, weight_N = sum_NC + term_N[:, None] * target_NC, weight_N + term_N
    target_NC, scale = sum_NC / weight_N.clamp(min=TINY)[:, None], _scale(objective.terms[0], fits)
    if scale == "probability":  # a distribution is as far from this as from the target, up to a constant
        target_NC = target_NC + (1.0 - target_NC.sum(1, keepdim=True)) / num_classes
    return Targets(
        target_NC=target_NC,
        weight_N=weight_N / weight_N.max().clamp(min=TINY),
        scale=scale,
        temperature=objective.terms[0].temperature,
    )


def _row_weight(term: Term, teacher_NC: Tensor, labels_N: Tensor, judged_N: Tensor) -> Tensor:
    """Of the rows that can be judged; 1 elsewhere."""
    weight_N = torch.ones_like(teacher_NC[:, 0])
    if judged_N.any():
        some_NC = teacher_NC[judged_N]
        weight_N[judged_N] = row_weights(
            term.row_weight, some_NC, some_NC, labels_N[judged_N], term.row_options, term.class_counts
        )
    return weight_N


def _scale(term: Term, fits: str) -> str:
    return "probability" if fits == "cross-entropy" else str(term.options.get("scale", "logit"))
