"""Which loss with which encoding: what a loss's gradient loses when the teacher comes out of a store.

    python -m bench.loss_encoding --data NAME LOGITS.npy LABELS [--data ...] [--out FILE.json]

LOGITS.npy holds a teacher's raw logits [N, C], LABELS class ids [N] (.npy, or the second column of a .tsv with a
header). Half of the rows fit the tail predictor, the other half is measured: the relative error
||G - G_dense|| / ||G_dense|| of the gradient with respect to the student's logits, over all measured rows.

The student is simulated: s = 0.6 z + noise, z the teacher's logits, with normal noise of the standard deviation of
the row's own logits times 0.5; its accuracy is recorded beside the teacher's. Seed 0. Its tail is the teacher's,
softened: the rule "bucket", which borrows the student's tail, looks better here than with a student at its start.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.fidelity import fit_predictor
from logitbank.pipeline.encoding import Encoding, decode, finite
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.train_student.losses import LOSSES

TEMPERATURES = (1.0, 2.0, 4.0)
TOP_K = (10, 20, 50)
TAIL_RULES = ("predicted", "bucket", "uniform", "renormalise")

Stored = Callable[[Tensor, float], Tensor]
"""(student logits, temperature) -> the teacher's dense logits as the loss would see them."""


def fitted() -> list[str]:
    """Losses that look at the teacher."""
    return [name for name, loss in LOSSES.items() if loss.fits == "teacher" or "target" in loss.options]


def encodings(num_classes: int) -> Iterator[tuple[str, Encoding, tuple[str, ...]]]:
    """Label, encoding and the tail rules to try with it."""
    for k in TOP_K:
        yield f"top-{k}", Encoding(kind="topk", num_classes=num_classes, top_k=k), TAIL_RULES
    for bits in (1, 2):
        tailed = Encoding(kind="topk+tail", num_classes=num_classes, top_k=10, tail_bits=bits)
        yield f"top-10 + {bits}-bit tail", tailed, ("predicted",)
    yield "dense int8", Encoding(kind="dense", num_classes=num_classes, bits=8), ("",)


def stored(
    encoding: Encoding, rule: str, fit_NC: Tensor, logits_BC: Tensor, labels_B: Tensor
) -> tuple[Stored, Tensor | None]:
    """What a store gives back for these rows, and the rows whose label stands in the head."""
    predictor = fit_predictor(fit_NC, encoding) if rule in ("predicted", "bucket") else None
    arrays = {
        name: torch.from_numpy(array)
        for name, array in encode(logits_BC, labels_B, encoding, predictor=predictor).items()
    }
    label_in_head_B = arrays["label_rank"].long() <= encoding.top_k if encoding.top_k else None

    def teacher(student_BC: Tensor, temperature: float) -> Tensor:
        return finite(
            decode(
                arrays,
                labels_B,
                encoding,
                predictor=predictor,
                tail=rule or "predicted",
                student_BC=student_BC,
                temperature=temperature,
            )
        )

    return teacher, label_in_head_B


def gradient(
    name: str,
    student_BC: Tensor,
    teacher_BC: Tensor,
    labels_B: Tensor,
    temperature: float | None,
    label_in_head_B: Tensor | None,
) -> Tensor:
    """Gradient of the summed loss with respect to the student's logits, at the loss's defaults."""
    loss = LOSSES[name]
    options: dict[str, Any] = dict(loss.options)
    if temperature is not None:
        options["temperature"] = temperature
    if "target" in options:
        options["target"] = "teacher"
    if "label_in_head_B" in loss.extras:
        options["label_in_head_B"] = label_in_head_B
    if "progress" in loss.extras:
        options["progress"] = 1.0
    student_BC = student_BC.clone().requires_grad_()
    rows_B = loss.fn(student_BC, teacher_BC, labels_B, **options)
    (grad_BC,) = torch.autograd.grad(rows_B.sum(), student_BC)
    return grad_BC


def simulated_student(logits_BC: Tensor) -> Tensor:
    """The teacher's logits, softened and disturbed."""
    generator = torch.Generator().manual_seed(0)
    noise_BC = torch.randn(logits_BC.shape, generator=generator)
    return 0.6 * logits_BC + 0.5 * logits_BC.std(1, keepdim=True) * noise_BC


def measure(logits_NC: Tensor, labels_N: Tensor) -> dict[str, Any]:
    """All errors on one data set: {encoding: {bytes, rules: {rule: {loss: {temperature: error}}}}}."""
    order_N = torch.randperm(len(logits_NC), generator=torch.Generator().manual_seed(0))
    fit_N, seen_N = order_N[: len(order_N) // 2], order_N[len(order_N) // 2 :][:1000]
    teacher_BC, labels_B = logits_NC[seen_N], labels_N[seen_N]
    student_BC = simulated_student(teacher_BC)
    found: dict[str, Any] = {
        "rows_fitted": len(fit_N),
        "rows_measured": len(seen_N),
        "num_classes": logits_NC.shape[1],
        "teacher_accuracy": accuracy(teacher_BC, labels_B),
        "student_accuracy": accuracy(student_BC, labels_B),
        "encodings": {},
    }
    dense = {
        (name, temperature): gradient(name, student_BC, teacher_BC, labels_B, temperature, None)
        for name in fitted()
        for temperature in temperatures(name)
    }
    for label, encoding, rules in encodings(logits_NC.shape[1]):
        entry: dict[str, Any] = {"bytes": round(encoding.row_bytes, 1), "rules": {}}
        found["encodings"][label] = entry
        for rule in rules:
            teacher, label_in_head_B = stored(encoding, rule, logits_NC[fit_N], teacher_BC, labels_B)
            if label_in_head_B is not None:
                entry["label_outside_head"] = round(1.0 - float(label_in_head_B.float().mean()), 4)
            errors: dict[str, dict[str, float]] = {}
            for (name, temperature), want_BC in dense.items():
                decoded_BC = teacher(student_BC, temperature or 1.0)
                got_BC = gradient(name, student_BC, decoded_BC, labels_B, temperature, label_in_head_B)
                error = float((got_BC - want_BC).norm() / want_BC.norm())
                key = "-" if temperature is None else f"{temperature:g}"
                errors.setdefault(name, {})[key] = float(f"{error:.3g}") if math.isfinite(error) else -1.0
            entry["rules"][rule or "-"] = errors
    return found


def temperatures(name: str) -> tuple[float | None, ...]:
    """The temperatures at which a loss is measured."""
    return TEMPERATURES if "temperature" in LOSSES[name].options else (None,)


def accuracy(logits_BC: Tensor, labels_B: Tensor) -> float:
    """Share of rows whose largest logit is the label's."""
    return round(float((logits_BC.argmax(1) == labels_B).float().mean()), 4)


def read_labels(path: Path) -> Tensor:
    """Class ids from .npy or from the second column of a .tsv."""
    if path.suffix == ".npy":
        return torch.from_numpy(np.load(path).astype(np.int64))
    lines = path.read_text().splitlines()[1:]
    return torch.tensor([int(line.split("\t")[1]) for line in lines])


def main() -> None:
    """Measure every data set that was given and write one JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs=3, action="append", default=[], metavar=("NAME", "LOGITS", "LABELS"))
    parser.add_argument("--out", type=Path, default=Path("docs/measurements/loss-encoding.json"))
    arguments = parser.parse_args()
    if not arguments.data:
        print(json.dumps({"name": "loss_encoding", "skipped": "it makes a table of the docs; name logits with --data"}))
        return
    found = {}
    for name, logits, labels in arguments.data:
        logits_NC = torch.from_numpy(np.load(logits).astype(np.float32))
        found[name] = measure(logits_NC, read_labels(Path(labels)))
    text = json.dumps(found, indent=1)
    # One loss to a line: {temperature: error} stays together.
    text = re.sub(r"\{[^{}]*\}", lambda match: " ".join(match[0].split()), text)
    arguments.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
