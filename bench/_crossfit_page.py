"""The measured part of docs/explanation/cross-fitting.md: figures as JSON, and a table made of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench._marked import rewrite
from logitbank.pipeline.train_student.compare import half_width

SCRIPT = "bench.crossfit_images"
MEASURES = (("accuracy", "accuracy, %", 100, 2), ("nll", "NLL, nats", 1, 3))

Record = Mapping[str, Any]


def table(records: Sequence[Record]) -> str:
    """Markdown: teachers, students, and differences paired by seed with 95 % intervals."""
    seeds = [record["seed"] for record in records]
    parts = [f"n = {len(seeds)}, seeds {', '.join(map(str, seeds))}. Teachers:", teachers(records)]
    for measure, heading, scale, digits in MEASURES:
        labels = [scale * record["labels"][measure] for record in records]
        parts.append(f"Students, {heading} on new images; of the labels alone {mean(labels, digits)}:")
        parts.append(students(records, measure, scale, digits))
    return "\n\n".join(parts)


def teachers(records: Sequence[Record]) -> str:
    """How good the stored answers are: a teacher's to rows that it saw, and to those that it did not."""
    lines = [
        "| teacher | accuracy, rows it saw | new images | stored, cross-fitted | NLL of the same three |",
        "|---|---|---|---|---|",
    ]
    for name in records[0]["teachers"]:
        own = [record["teachers"][name] for record in records]
        cells = [mean([100 * one[where]["accuracy"] for one in own], 1) for where in ("seen", "test", "crossfit")]
        nll = " / ".join(f"{np.mean([one[where]['nll'] for one in own]):.2f}" for where in ("seen", "test", "crossfit"))
        lines.append(f"| {name} | {' | '.join(cells)} | {nll} |")
    return "\n".join(lines)


def students(records: Sequence[Record], measure: str, scale: float, digits: int) -> str:
    """What each loss makes of the answers of either kind."""
    lines = ["| teacher | loss | seen | cross-fitted | difference | corrected | corrected - cross-fitted |"]
    lines.append("|---|---|---|---|---|---|---|")
    for teacher in records[0]["students"]:
        found = [record["students"][teacher] for record in records]

        def values(method: str, found: list[Any] = found) -> list[float]:
            return [scale * one[method][measure] for one in found if method in one]

        for loss in ("kd", "squared"):
            seen, crossfit, corrected = (values(f"{loss}, {how}") for how in ("seen", "cross-fitted", "corrected"))
            cells = [mean(seen, digits), mean(crossfit, digits), difference(crossfit, seen, digits)]
            cells += [mean(corrected, digits), difference(corrected, crossfit, digits)] if corrected else ["", ""]
            lines.append(f"| {teacher} | {loss} | {' | '.join(cells)} |")
    return "\n".join(lines)


def mean(values: Sequence[float], digits: int) -> str:
    """With the standard deviation over seeds."""
    return f"{np.mean(values):.{digits}f}" + (f" ({np.std(values, ddof=1):.{digits}f})" if len(values) > 1 else "")


def difference(own: Sequence[float], base: Sequence[float], digits: int) -> str:
    """Paired by seed; a star where the interval leaves out zero."""
    pairs = [one - other for one, other in zip(own, base, strict=True)]
    half = half_width(pairs)
    if half is None:
        return f"{np.mean(pairs):+.{digits}f}"
    return f"{np.mean(pairs):+.{digits}f} ± {half:.{digits}f}" + ("\\*" if abs(np.mean(pairs)) > half > 0 else "")


def write_page(docs: Path, records: Sequence[Record], facts: Mapping[str, Any]) -> None:
    """The table of explanation/cross-fitting.md, and its figures."""
    page = docs / "explanation" / "cross-fitting.md"
    ordered = sorted(records, key=lambda record: int(record["seed"]))
    lines = ",\n".join(json.dumps(record) for record in ordered)
    document = json.dumps({**facts, "seeds": []}, indent=1).replace('"seeds": []', f'"seeds": [\n{lines}\n]')
    page.with_suffix(".json").write_text(f"{document}\n")
    rewrite(page, SCRIPT, table(ordered))
