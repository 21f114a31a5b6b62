"""What the table of losses holds: one loss with its needs, its recipe and its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from .context import StoredFeatures
from .domains import Interval, Option, Value, defaults, number

SEARCH: dict[str, tuple[float, ...]] = {"c": (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3)}
"""Candidates of an option that may be "auto": the trainer tries them and binds the best. Those of Dao et al."""

WEIGHT = Interval("(0, 1e6]")
CE_WEIGHT = Interval("[0, 1e6]")
CAPTURED = frozenset({"student_features_BD", "subclass_logits_BG"})
"""What a loss may take of the student beside its logits, as `extras`."""
WARMUP = Interval("[0, 1e6]")


def temperature(default: float) -> Option:
    """T of a loss; beyond these ends float32 keeps nothing of the teacher's order, or of its differences."""
    return number(default, "[0.01, 1000]")


def part(default: float) -> Option:
    """Weight of one part of a loss; 0 leaves the part out."""
    return number(default, "[0, 1e6]")


@dataclass(frozen=True, kw_only=True)
class Material:
    """What the module of a loss is made of.

    Attributes:
        num_classes: C.
        num_examples: N of the data, where a loss remembers them.
        student_features: How many features the student's head reads, where a loss takes them.
        subclasses: Of each of the student's classes, where a loss takes them.
        teacher: Features of the store, where a loss needs them.
    """

    num_classes: int
    num_examples: int = 0
    student_features: int = 0
    subclasses: int = 0
    teacher: StoredFeatures | None = None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One loss: its function, where it comes from, what it needs, and its official recipe.

    weight, ce_weight and warmup make the recipe ce_weight CE + min(epoch / warmup, 1) weight loss. setting: what the
    recipe was made for. presets replace any of these, or options, for another setting. takes: the options. parts:
    options that weigh the loss's parts, not all 0. needs: what a store must offer; waives: a need that an option's
    value removes; prefers: what it was made for and can do without. extras: tensors or numbers beyond the three,
    filled from the step. fits: "teacher" or "labels". trusts_labels: a wrong label makes a wrong target.
    couples_rows: a row's loss depends on the other rows of its batch, unless an option has the value uncoupled_by.
    module: makes what the loss keeps from step to step, of a Material and the loss's options: parameters that are
    trained with the student's, or buffers; the loss gets it as ``module``. below_zero: a row's loss may be negative.
    sha256: of the code of a loss that is not the table's. sparse: the same loss of a ``SparseTarget``,
    ``(student_BC, target, **options) -> [B]``.
    """

    fn: Callable[..., Tensor]
    paper: str
    use: str
    setting: str
    takes: Mapping[str, Option] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    weight: float = 1.0
    ce_weight: float = 0.0
    warmup: float = 0.0
    needs: frozenset[str] = frozenset()
    waives: Mapping[str, tuple[str, Value]] = field(default_factory=dict)
    prefers: frozenset[str] = frozenset()
    presets: Mapping[str, Mapping[str, Value]] = field(default_factory=dict)
    extras: frozenset[str] = frozenset()
    fits: str = "teacher"
    trusts_labels: bool = False
    couples_rows: bool = False
    uncoupled_by: tuple[str, Value] = ("", "")
    zero_at_teacher: bool = True
    below_zero: bool = False
    module: Callable[..., nn.Module] | None = None
    sha256: str = ""
    sparse: Callable[..., Tensor] | None = None
    unsure: str = ""

    @property
    def options(self) -> dict[str, Value]:
        """The options' defaults."""
        return defaults(self.takes)
