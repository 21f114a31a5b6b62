"""Transforms of a target, between the stored answer and the loss: small pure functions that go with any loss.

A transform sees the teacher's logits at T = 1 and the labels, and answers logits; what it does to probabilities is done
at T = 1, and the loss takes its temperature afterwards. A class of probability 0 is 1e4 below the best.

Shapes: B batch, C classes. Rows with label -1 are unlabelled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .domains import Option, Value, defaults, number, words
from .transform_fits import Fit, fit_scaling, fit_transition

FARTHEST = 1e4


def label_mix(logits_BC: Tensor, labels_B: Tensor, *, alpha: float = 0.5) -> Tensor:
    """The label is a share of the target.

    p' = alpha y + (1 - alpha) p, with p = softmax(teacher) and y the one-hot label; rows without a label keep p.

    Args:
        logits_BC: Teacher logits, dense and finite.
        labels_B: Class ids, -1 unlabelled.
        alpha: Share of the label. auto: the closed form of least squares between a student of labels alone and one of
            the teacher alone, on rows that neither has seen (five short pairs of runs; a network is only nearly linear
            in its targets, so it is an estimate).

    Returns:
        Logits of the target, shape [B, C].

    References:
        Borup, Andersen. Even your Teacher Needs Guidance: Ground-Truth Targets Dampen Regularization Imposed by
        Self-Distillation. NeurIPS 2021 (the target as in the authors' code; the closed form is derived from it).
    """
    if alpha == 0.0:
        return logits_BC
    log_p_BC = F.log_softmax(logits_BC, dim=1)
    mixed_BC = (log_p_BC + math.log1p(-alpha)) if alpha < 1.0 else torch.full_like(log_p_BC, -math.inf)
    label_B1 = labels_B.clamp(min=0)[:, None]
    share_B1 = torch.full_like(mixed_BC[:, :1], math.log(alpha))
    mixed_BC = mixed_BC.scatter(1, label_B1, torch.logaddexp(mixed_BC.gather(1, label_B1), share_B1))
    return torch.where((labels_B >= 0)[:, None], _near(mixed_BC), logits_BC)


def noise_transition(
    logits_BC: Tensor, labels_B: Tensor, *, transition_CC: Tensor, strength: float = 1.0, prior: float = 1.0
) -> Tensor:
    """What the labels say where the teacher says a class: its steady confusions are undone.

    p' = (1 - strength) p + strength p M, with M_ij = (sum_n p_ni [y_n = j] + prior [i = j]) / (sum_n p_ni + prior) over
    the labelled training rows n, answered out of fold. Every row of M sums to 1.

    Args:
        logits_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        transition_CC: M.
        strength: How far the probabilities go from p to p M.
        prior: Rows for which every class is taken to be right; a class of fewer rows stays nearly as it is.

    Returns:
        Logits of the target, shape [B, C].

    References:
        The matrix of a noisy channel: Patrini, Rozza, Menon, Nock, Qu. Making Deep Neural Networks Robust to Label
        Noise: A Loss Correction Approach. CVPR 2017, section 3. Here the channel goes from what the teacher says to the
        labels, and is counted.
    """
    if strength == 0.0:
        return logits_BC
    p_BC = F.softmax(logits_BC.double(), dim=1)
    moved_BC = (1.0 - strength) * p_BC + strength * (p_BC @ transition_CC.to(p_BC))
    return _near(moved_BC.log()).to(logits_BC.dtype)


def calibrate(
    logits_BC: Tensor, labels_B: Tensor, *, scale_C: Tensor, shift_C: Tensor, method: str = "temperature"
) -> Tensor:
    """Logits scaled so that the probabilities are right as often as they say.

    z'_c = a_c z_c + b_c, with the a > 0 and b of the least NLL of the labels on training rows, answered out of fold.
    "temperature" has one a for all classes, 1 / T, and b = 0; "vector" an a and a b for each class.

    Args:
        logits_BC: Teacher logits, dense and finite.
        labels_B: Unused.
        scale_C: a.
        shift_C: b.
        method: "temperature" or "vector".

    Returns:
        Logits of the target, shape [B, C].

    References:
        Guo, Pleiss, Sun, Weinberger. On Calibration of Modern Neural Networks. ICML 2017, section 4.2 (there a may be
        negative).
    """
    return logits_BC * scale_C.to(logits_BC) + shift_C.to(logits_BC)


def mix_targets(logits_BC: Tensor, labels_B: Tensor) -> Tensor:
    """The logits of the two examples of a mixed sample, mixed with the sample's own share; goes with --mixup alone.

    z' = s z_a + (1 - s) z_b, where the student saw s x_a + (1 - s) x_b. Without it, the losses of both answers are
    mixed, which is the same as mixing probabilities where the loss is linear in them.

    Args:
        logits_BC: The answer, mixed already where the pairs are known.
        labels_B: Unused; a mixed sample has no label, and a loss that needs one is refused.

    Returns:
        Logits of the target, shape [B, C].

    References:
        INFER: Breaking Class Barriers: Efficient Dataset Distillation via Inter-Class Feature Compensator. ICLR 2025,
        the authors' code, where one share is drawn for a batch; here each sample has its own.
    """
    return logits_BC


def _near(log_p_BC: Tensor) -> Tensor:
    """Log-probabilities none of which is farther from the best than is computed with."""
    return torch.maximum(log_p_BC, log_p_BC.amax(1, keepdim=True) - FARTHEST)


@dataclass(frozen=True, kw_only=True)
class TargetTransform:
    """One target transform: its function, and what it asks for.

    Attributes:
        fn: ``(logits_BC, labels_B, **options, **fitted) -> [B, C]``.
        needs: Of a store: "labels", "out_of_fold".
        fit: Finds tensors, by name of an argument, from labelled rows.
        gives: "logits", or "probabilities", which have no level and no use for a loss that compares raw logits.
        keeps_order: A class that stood above the label before does so afterwards, or no class that did not.
        mixes: Goes by two rows of a mixed sample.
        sha256: Of the code of one that is not the table's.
    """

    fn: Callable[..., Tensor]
    use: str
    takes: Mapping[str, Option] = field(default_factory=dict)
    needs: frozenset[str] = frozenset()
    fit: Fit | None = None
    gives: str = "logits"
    keeps_order: bool = True
    mixes: bool = False
    sha256: str = ""

    @property
    def options(self) -> dict[str, Value]:
        """The options' defaults."""
        return defaults(self.takes)


OUT_OF_FOLD = frozenset({"labels", "out_of_fold"})

TRANSFORMS: dict[str, TargetTransform] = {
    "label_mix": TargetTransform(
        fn=label_mix,
        use="teachers that are worse than the labels in places; the share of the label in one target",
        takes={"alpha": number(0.5, "(0, 1]", search=(0.0, 1.0))},
        needs=frozenset({"labels"}),
        gives="probabilities",
    ),
    "calibrate": TargetTransform(
        fn=calibrate,
        use="teachers that are surer than they are right, before anything goes by their confidence",
        takes={"method": words("temperature", "vector")},
        needs=OUT_OF_FOLD | {"label_prob"},
        fit=fit_scaling,
        keeps_order=False,
    ),
    "noise_transition": TargetTransform(
        fn=noise_transition,
        use="teachers that take some classes for others, time and again",
        takes={"strength": number(1.0, "(0, 1]"), "prior": number(1.0, "(0, 1e6]")},
        needs=OUT_OF_FOLD | {"label_prob"},
        fit=fit_transition,
        gives="probabilities",
        keeps_order=False,
    ),
    "mix_targets": TargetTransform(
        fn=mix_targets,
        use="students of mixed inputs that the teacher did not see, at temperatures that are far from 1 (INFER: 30)",
        keeps_order=False,
        mixes=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A target transform with its options, and what was fitted."""

    name: str
    rule: TargetTransform
    options: Mapping[str, Value]
    fitted: Mapping[str, Tensor] = field(default_factory=dict)
    found: Mapping[str, float] = field(default_factory=dict)

    def __call__(self, logits_BC: Tensor, labels_B: Tensor) -> Tensor:
        """Logits of the target, [B, C]; ValueError when it was not fitted, or an option is "auto"."""
        if self.rule.fit is not None and not self.fitted:
            raise ValueError(f"{self.name} has not been fitted; pass objective.fitted(logits, labels, folds)")
        if "auto" in self.options.values():
            raise ValueError(f"alpha of {self.name} is auto: a run finds it; give a number")
        return self.rule.fn(logits_BC, labels_B, **self.options, **self.fitted)

    @property
    def needs(self) -> frozenset[str]:
        """What the store must offer: a share is found by students of a teacher that knew as little of a row as they."""
        return self.rule.needs | (OUT_OF_FOLD if "auto" in self.options.values() else frozenset())

    def settings(self) -> dict[str, Any]:
        """Name, options and what was fitted, fit for JSON."""
        sha256 = {"sha256": self.rule.sha256} if self.rule.sha256 else {}
        return {"transform": self.name, **self.options, **sha256, **self.found}
