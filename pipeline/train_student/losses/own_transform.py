"""A target transform of the user's own: a function of logits and labels, held to laws before it trains.

Shapes: B batch, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from .own import arguments_of, text_sha256
from .transforms import FARTHEST, TargetTransform, Transform


def own_transform(fn: Callable[..., Tensor], name: str = "", *, sha256: str = "") -> TargetTransform:
    """The table's entry of a function ``fn(logits_BC, labels_B, *, option=default, ...) -> [B, C]``.

    Args:
        fn: Gives the logits of the target from the teacher's; labels are -1 where a row has none. Every further
            argument needs a default, whose type is the option's.
        name: What it is called in messages; by default the function's name.
        sha256: Identity of the code, which enters that of a run; by default that of the function's own text.

    Returns:
        What ``parse_objective`` takes as ``own_transforms={"NAME": ...}``.

    Raises:
        ValueError: Another signature; a function whose text cannot be read.
    """
    name, sha256 = name or getattr(fn, "__name__", "transform"), sha256 or text_sha256(fn)
    takes, extras = arguments_of(fn, name, ("logits_BC", "labels_B"))
    if extras:
        raise ValueError(f"{name}: argument {min(extras)!r} needs a default; a target does not go by the step")
    return TargetTransform(fn=fn, use="your own", takes=takes, gives="probabilities", keeps_order=False, sha256=sha256)


def tried_transform(transform: Transform, num_classes: int) -> Transform:
    """One of the user's own with what trying it at its options shows of its needs.

    Raises:
        ValueError: It breaks a law; the message names it.
    """
    trial = _Trial(transform.rule.fn, transform.name, transform.options, num_classes)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        trial.keep_the_laws()
        needs = frozenset({"labels"}) if trial.goes_by_labels() else frozenset[str]()
    return replace(transform, rule=replace(transform.rule, needs=needs))


@dataclass(frozen=True)
class _Trial:
    """A function with options, on a CPU."""

    fn: Callable[..., Tensor]
    name: str
    options: Mapping[str, Any]
    num_classes: int

    def keep_the_laws(self) -> None:
        for logits_BC, labels_B in (self._rows(64), self._rows(1), self._extremes()):
            kept = logits_BC.clone(), labels_B.clone()
            found_BC = self(logits_BC, labels_B)
            if not isinstance(found_BC, Tensor) or found_BC.shape != logits_BC.shape:
                found = list(found_BC.shape) if isinstance(found_BC, Tensor) else type(found_BC).__name__
                self._broken("shape", f"expected {list(logits_BC.shape)}, found {found}; return logits of every class")
            if found_BC.dtype != torch.float32:
                self._broken("precision", f"expected torch.float32 of float32 logits, found {found_BC.dtype}")
            if not found_BC.isfinite().all():
                self._broken("finite values", f"at logits up to {FARTHEST:g}; a class of probability 0 is far below")
            if not (torch.equal(kept[0], logits_BC) and torch.equal(kept[1], labels_B)):
                self._broken("inputs", "it changes the tensors that it is given; work on copies")
            if not torch.equal(self(logits_BC, labels_B), found_BC):
                self._broken("repetition", "the same rows give another target; draw nothing at random, keep no state")
        logits_BC, labels_B = self._rows(64)
        whole_BC, half_BC = self(logits_BC, labels_B), self(logits_BC[:32], labels_B[:32])
        if not torch.allclose(whole_BC[:32], half_BC, rtol=1e-4, atol=1e-5):
            self._broken("single rows", "a row's target changes with the others of its batch")

    def goes_by_labels(self) -> bool:
        """Whether other labels make another target."""
        logits_BC, labels_B = self._rows(64)
        other_BC = self(logits_BC, torch.where(labels_B >= 0, (labels_B + 1) % self.num_classes, labels_B))
        return not torch.equal(self(logits_BC, labels_B), other_BC)

    def __call__(self, logits_BC: Tensor, labels_B: Tensor) -> Any:
        try:
            return self.fn(logits_BC, labels_B, **self.options)
        except Exception as error:  # whatever the user's function raises
            raise ValueError(
                f"{self.name}: it fails on logits of {list(logits_BC.shape)}: {type(error).__name__}: {error}"
            ) from error

    def _rows(self, number: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(number)
        logits_BC = 2 * torch.randn(number, self.num_classes, generator=generator)
        labels_B = torch.randint(self.num_classes, (number,), generator=generator)
        labels_B[1::4] = -1
        return logits_BC, labels_B

    def _extremes(self) -> tuple[Tensor, Tensor]:
        """Sure of the label, sure of another class, undecided; without a label."""
        logits_BC = torch.full((4, self.num_classes), -FARTHEST)
        logits_BC[:, 0], logits_BC[2] = FARTHEST, 0.0
        return logits_BC, torch.tensor([0, 1, 0, -1])

    def _broken(self, law: str, found: str) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"{self.name} breaks the law of {law}: {found}")
