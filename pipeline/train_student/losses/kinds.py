"""What the table of losses holds: one loss with its needs and recipe, and the words its options accept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

Value = float | bool | str

SEARCH: dict[str, tuple[float, ...]] = {"c": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)}
"""Candidates of an option that may be "auto": the trainer tries them on a validation split and binds the best."""

CHOICES: dict[str, tuple[str, ...]] = {
    "orientation": ("teacher_first", "student_first"),
    "scale": ("logit", "probability"),
    "target": ("label", "teacher"),
    "entropy_keep": ("certain", "uncertain"),
    "paced_by": ("student", "teacher"),
}
"""Words that an option accepts."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One loss: its function, where it comes from, what it needs, and its official recipe.

    weight, ce_weight and warmup make the recipe ce_weight CE + min(epoch / warmup, 1) weight loss. presets replace
    any of these, or options, for another setting. needs: what a store must offer; waives: a need that an option's
    value removes; prefers: what it was made for and can do without. extras: tensors or numbers beyond the three,
    filled from the step's context. fits: "teacher" or "labels".
    """

    fn: Callable[..., Tensor]
    paper: str
    use: str
    options: Mapping[str, Value] = field(default_factory=dict)
    weight: float = 1.0
    ce_weight: float = 0.0
    warmup: float = 0.0
    needs: frozenset[str] = frozenset()
    waives: Mapping[str, tuple[str, Value]] = field(default_factory=dict)
    prefers: frozenset[str] = frozenset()
    presets: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    extras: frozenset[str] = frozenset()
    fits: str = "teacher"
    zero_at_teacher: bool = True
    unsure: str = ""
