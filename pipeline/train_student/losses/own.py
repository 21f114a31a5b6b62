"""A loss of the user's own: a function with the signature of the table's losses, held to their laws before it trains.

What the table says of its own losses is found here by trying: whether labels or the teacher change the loss, whether
raw logits do, whether a row's loss depends on the other rows.

Shapes: B batch, C classes.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
from torch import Tensor

from .domains import Like, Option, Value
from .kinds import Loss
from .plan import SHARED_SETTINGS

POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
EXTREME = 1e4
NO_GRADIENT = "none reaches the student's logits; compute with torch, without detach or item"
STABLE = "use log_softmax, clamp before a logarithm or a root"


RESERVED = SHARED_SETTINGS | {"same_t", "target"}  # the last two have a meaning in the table


def own_loss(fn: Callable[..., Tensor], name: str = "", *, sha256: str = "") -> Loss:
    """The table's entry of a function ``fn(student_BC, teacher_BC, labels_B, *, option=default, ...) -> [B]``.

    Args:
        fn: What computes the loss of each row. An argument ``progress``, without default, is filled with where the run
            is, from 0 to 1; all others need a default, whose type is the option's.
        name: What it is called in messages; by default the function's name.
        sha256: Identity of the code, which enters that of a run; by default that of the function's own text.

    Returns:
        What ``parse_objective`` takes as ``own={"NAME": ...}``.

    Raises:
        ValueError: Another signature; a function whose text cannot be read.
    """
    name, sha256 = name or getattr(fn, "__name__", "loss"), sha256 or text_sha256(fn)
    takes, extras = arguments_of(fn, name, ("student_BC", "teacher_BC", "labels_B"))
    return Loss(
        fn=fn,
        paper=name,
        use="your own",
        setting="your own",
        takes=takes,
        extras=extras,
        trusts_labels=True,
        sha256=sha256,
    )


def arguments_of(
    fn: Callable[..., Tensor], name: str, given: tuple[str, ...]
) -> tuple[dict[str, Option], frozenset[str]]:
    """The options that arguments of one's own function are, and what the step fills, behind those given by place."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name}: its arguments cannot be read ({error}); write a plain function") from error
    first = [parameter for parameter in parameters if parameter.kind in POSITIONAL][: len(given)]
    if len(first) < len(given):
        raise ValueError(f"{name}: expected ({', '.join(given)}, *, option=default), found {len(first)}")
    takes: dict[str, Option] = {}
    extras = set()
    for parameter in (each for each in parameters if each not in first):
        key, default = parameter.name, parameter.default
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        if key == "progress" and default is parameter.empty:
            extras.add(key)
        elif key in RESERVED:
            raise ValueError(f"{name}: --set {key} means something else already; rename the argument")
        elif not isinstance(default, float | bool | int | str):
            raise ValueError(f"{name}: argument {key!r} needs a default that is a number, True, False or a text")
        else:
            takes[key] = Option(default=default, domain=Like(default))
    return takes, frozenset(extras)


def text_sha256(fn: Callable[..., Tensor]) -> str:
    try:
        return hashlib.sha256(inspect.getsource(fn).encode()).hexdigest()
    except (TypeError, OSError) as error:
        raise ValueError(f"the text of {fn!r} cannot be read ({error}); pass sha256=, or write it in a file") from error


def tried(loss: Loss, options: Mapping[str, Value], num_classes: int) -> Loss:
    """The entry with what trying it at these options shows of its needs.

    Raises:
        ValueError: It breaks a law; the message names it.
    """
    extras: list[dict[str, Any]] = [{}]
    if "progress" in loss.extras:
        extras = [{"progress": progress} for progress in (0.0, 0.5, 1.0)]
    found = [_Trial(loss.fn, loss.paper, {**options, **extra}, num_classes) for extra in extras]
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for trial in found:
            trial.keep_the_laws()
        if not any(trial.reaches_the_student() for trial in found):
            found[0].broken("gradient", NO_GRADIENT)
        labels = any(trial.changes_with("labels") for trial in found)
        teacher = any(trial.changes_with("teacher") for trial in found)
        logits = any(trial.changes_with("level") for trial in found)
        coupled = any(trial.couples_rows() for trial in found)
        negative = any(trial.falls_below_zero() for trial in found)
    needs = {"labels": labels, "logits": logits, "fixed_tail": teacher}
    return replace(
        loss,
        needs=frozenset(need for need, does in needs.items() if does),
        fits="teacher" if teacher else "labels",
        trusts_labels=labels,
        couples_rows=coupled,
        below_zero=negative,
    )


@dataclass(frozen=True)
class _Trial:
    """A function with options, on a CPU."""

    fn: Callable[..., Tensor]
    name: str
    options: Mapping[str, Any]
    num_classes: int

    def keep_the_laws(self) -> None:
        for batch in (*self._extremes(), self._rows(1), self._rows(64)):
            kept = [tensor.clone() for tensor in batch]
            student_BC = batch[0].requires_grad_()
            loss_B = self(student_BC, *batch[1:])
            self._check_values(loss_B, batch)
            if not all(torch.equal(before, after) for before, after in zip(kept, batch, strict=True)):
                self.broken("inputs", "it changes the tensors that it is given; work on copies")
            if not torch.equal(self(student_BC, *batch[1:]), loss_B):
                self.broken("repetition", "the same rows give another loss; draw nothing at random, keep no state")
            self._check_gradient(loss_B, student_BC)

    def _check_values(self, loss_B: Any, batch: tuple[Tensor, ...]) -> None:
        shape = (len(batch[2]),)
        if not isinstance(loss_B, Tensor) or loss_B.shape != shape:
            found = list(loss_B.shape) if isinstance(loss_B, Tensor) else type(loss_B).__name__
            self.broken("shape", f"expected {list(shape)}, found {found}; return one loss a row, without a mean")
        if loss_B.dtype != torch.float32:
            self.broken("precision", f"expected torch.float32 of float32 logits, found {loss_B.dtype}")
        if not loss_B.isfinite().all():
            self.broken("finite values", f"{self._first(loss_B)} at {self._where(batch, loss_B)}")

    def _check_gradient(self, loss_B: Tensor, student_BC: Tensor) -> None:
        if not loss_B.requires_grad:
            self.broken("gradient", NO_GRADIENT)
        try:
            (gradient_BC,) = torch.autograd.grad(loss_B.sum(), student_BC, allow_unused=True)
        except RuntimeError as error:
            raise ValueError(f"{self.name}: its gradient cannot be computed ({error})") from error
        if gradient_BC is None:
            self.broken("gradient", NO_GRADIENT)
        if not gradient_BC.isfinite().all():
            largest = float(student_BC.detach().abs().max())
            self.broken("finite gradients", f"{self._first(gradient_BC)} at logits up to {largest:g}; {STABLE}")

    def reaches_the_student(self) -> bool:
        """Whether some row's gradient is not 0."""
        student_BC, *others = self._rows(64)
        (gradient_BC,) = torch.autograd.grad(self(student_BC.requires_grad_(), *others).sum(), student_BC)
        return bool((gradient_BC != 0).any())

    def changes_with(self, what: str) -> bool:
        """Whether other labels, another teacher, or a number added to a row's teacher logits change the loss."""
        student_BC, teacher_BC, labels_B = self._rows(64)
        other = {
            "labels": (teacher_BC, (labels_B + 1) % self.num_classes),
            "teacher": (teacher_BC.flip(0), labels_B),
            "level": (teacher_BC + torch.linspace(-3, 3, 64)[:, None], labels_B),
        }[what]
        return _differ(self(student_BC, teacher_BC, labels_B), self(student_BC, *other))

    def couples_rows(self) -> bool:
        """Whether a row's loss is another without the rest of its batch."""
        batch = self._rows(64)
        half = tuple(tensor[:32] for tensor in batch)
        return _differ(self(*batch)[:32], self(*half))

    def falls_below_zero(self) -> bool:
        """Whether some row's loss is negative, by more than rounding."""
        return any(bool((self(*batch) < -1e-3).any()) for batch in (*self._extremes(), self._rows(64)))

    def __call__(self, *batch: Tensor) -> Tensor:
        try:
            return self.fn(*batch, **self.options)
        except Exception as error:  # whatever the user's function raises
            shapes = ", ".join(str(list(tensor.shape)) for tensor in batch)
            raise ValueError(
                f"{self.name}: it fails on student, teacher and labels of {shapes}: {type(error).__name__}: {error}"
            ) from error

    def _rows(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Ordinary rows: the teacher is right on some, and the student follows it from afar."""
        generator = torch.Generator().manual_seed(number)
        teacher_BC = 2 * torch.randn(number, self.num_classes, generator=generator)
        student_BC = 0.5 * teacher_BC + torch.randn(number, self.num_classes, generator=generator)
        labels_B = torch.randint(self.num_classes, (number,), generator=generator)
        labels_B[::2] = teacher_BC[::2].argmax(1)
        return student_BC, teacher_BC, labels_B

    def _extremes(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Certain and contrary, certain and agreed, undecided, and one sure against the other's doubt."""
        sure_BC = torch.full((4, self.num_classes), -EXTREME)
        sure_BC[:, 0] = EXTREME
        flat_BC, labels_B = torch.zeros_like(sure_BC), torch.arange(4) % self.num_classes
        for student_BC, teacher_BC in (
            (sure_BC, sure_BC.roll(1, 1)),
            (sure_BC, sure_BC),
            (flat_BC, flat_BC),
            (sure_BC, flat_BC),
            (flat_BC, sure_BC),
        ):
            yield student_BC.clone(), teacher_BC.clone(), labels_B.clone()

    def _where(self, batch: tuple[Tensor, ...], loss_B: Tensor) -> str:
        row = int((~loss_B.isfinite()).nonzero()[0])
        ends = [
            f"{float(row_C.min()):g} to {float(row_C.max()):g}"
            for row_C in (tensor.detach()[row] for tensor in batch[:2])
        ]
        return f"student logits {ends[0]}, teacher logits {ends[1]}; {STABLE}"

    def _first(self, values: Tensor) -> str:
        return f"found {float(values[~values.isfinite()][0].detach())}"

    def broken(self, law: str, found: str) -> NoReturn:
        """Raises ValueError."""
        raise ValueError(f"{self.name} breaks the law of {law}: {found}")


def _differ(a: Tensor, b: Tensor) -> bool:
    return not torch.allclose(a, b, rtol=1e-4, atol=1e-5)
