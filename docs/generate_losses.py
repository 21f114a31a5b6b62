"""Writes the pages on losses, from the tables of losses and docs/measurements/loss-encoding.json.

`python -m docs.generate_losses` writes docs/reference/losses.md, docs/reference/targets-and-weights.md and
docs/measurements/losses-and-encodings.md; a test compares them with what this module would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from docs._losses_text import FEATURES, INTRODUCTION, MEASURED, MEMORY, NEEDS, ROW_RULES, RULES, TARGETS, WRITTEN
from logitbank.pipeline.train_student.losses import EVERY_LOSS, GROUPS, LOSSES, TRANSFORMS
from logitbank.pipeline.train_student.losses.describe import (
    allowed,
    arguments,
    needs,
    number,
    pairs,
    recipe,
    restriction,
    sections,
)
from logitbank.pipeline.train_student.losses.domains import Option
from logitbank.pipeline.train_student.losses.kinds import Loss
from logitbank.pipeline.train_student.losses.row_rules import ROW_WEIGHTS, TEMPERATURE_RULES
from logitbank.pipeline.train_student.losses.table_features import FEATURE_LOSSES
from logitbank.pipeline.train_student.losses.table_memory import MEMORY_LOSSES

FOLDER = Path(__file__).parent
COLUMNS = (
    ("top-10", "uniform"),
    ("top-10", "predicted"),
    ("top-10", "bucket"),
    ("top-50", "predicted"),
    ("top-10 + 2-bit tail", "predicted"),
    ("dense int8", "-"),
)


def entry(name: str, loss: Loss) -> Iterator[str]:
    """The page's part on one loss."""
    doc = sections(loss.fn.__doc__ or "")
    yield f"### `{name}`\n"
    yield f"{doc['Summary']}\n"
    yield f"```text\n{doc['Body']}\n```\n"
    yield f"- When: {loss.use}."
    waived = "".join(f" ({need} not with `{key}={number(value)}`)" for need, (key, value) in loss.waives.items())
    yield f"- Needs: {needs(loss)}{waived}"
    yield f"- Defaults ({loss.setting}): `{recipe(loss)}`"
    yield from options(loss.takes, doc)
    for preset, values in loss.presets.items():
        yield f"- `preset={preset}`: `{pairs(values)}`"
    if name in MEMORY_LOSSES:
        yield MEMORY
    if loss.unsure:
        yield f"- Not verified: {loss.unsure}."
    yield f"- Source: {' '.join(doc['References'].split())}\n"


def options(takes: Mapping[str, Option], doc: Mapping[str, str]) -> Iterator[str]:
    """One line per option: domain, and what the docstring says of it."""
    explained = arguments(doc.get("Args", ""))
    for key, option in takes.items():
        yield f"- `{key}`, {allowed(option)}: {explained[key]}{restriction(option)}"


def overview() -> Iterator[str]:
    """One line per loss, by group."""
    yield "## The losses by what they are for\n\n| Name | When | Needs | Source |\n|---|---|---|---|"
    for group in GROUPS:
        yield f"| **[{group.title}](#{anchor(group.title)})** | {group.about} | | |"
        for name in group.names:
            loss = EVERY_LOSS[name]
            yield f"| [`{name}`](#{name}) | {loss.use} | {needs(loss)} | {loss.paper} |"
    yield NEEDS


def anchor(title: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def grouped() -> Iterator[str]:
    """Every loss, by group."""
    for group in GROUPS:
        yield f"## {group.title}\n\n{group.about}\n"
        if any(name in FEATURE_LOSSES for name in group.names):
            yield FEATURES
        for name in group.names:
            yield from entry(name, EVERY_LOSS[name])


def rules() -> Iterator[str]:
    """Row weights and temperature rules."""
    yield "## Row weights and temperature rules\n"
    yield ROW_RULES
    for name, weight in ROW_WEIGHTS.items():
        doc = sections(weight.fn.__doc__ or "")
        yield f"### `row_weight={name}`\n\n{doc['Summary']}\n\n```text\n{doc['Body']}\n```\n"
        yield f"- When: {weight.use}.\n- Needs: {', '.join(sorted(weight.needs)) or '-'}"
        yield f"- Defaults: `{pairs(weight.options)}`"
        yield from options(weight.takes, doc)
        yield f"- Source: {' '.join(doc['References'].split())}\n"
    yield "`--set temperature_rule=NAME`, for every loss that fits a teacher at a temperature.\n"
    for name, rule in TEMPERATURE_RULES.items():
        doc = sections(rule.fn.__doc__ or "")
        yield f"### `temperature_rule={name}`\n\n{doc['Summary']}\n\n```text\n{doc['Body']}\n```\n"
        yield f"- When: {rule.use}.\n- Defaults: `{pairs(rule.options)}`"
        yield from options(rule.takes, doc)
        yield f"- Source: {' '.join(doc['References'].split())}\n"


def transforms() -> Iterator[str]:
    """Target transforms."""
    yield "## Target transforms\n"
    yield TARGETS
    for name, rule in TRANSFORMS.items():
        doc = sections(rule.fn.__doc__ or "")
        yield f"### `target_transform={name}`\n\n{doc['Summary']}\n\n```text\n{doc['Body']}\n```\n"
        yield f"- When: {rule.use}.\n- Needs: {', '.join(sorted(rule.needs)) or '-'}"
        yield f"- Defaults: `{pairs(rule.options)}`" if rule.options else "- Defaults: -"
        yield from options(rule.takes, doc)
        yield f"- Source: {' '.join(doc['References'].split())}\n"


def measured(data: Mapping[str, Any]) -> Iterator[str]:
    """The tables of gradient errors, one per data set and temperature."""
    yield MEASURED
    for name, found in data.items():
        yield (
            f"## {name}\n\nC = {found['num_classes']}, {found['rows_fitted']} rows fitted the predictor, "
            f"{found['rows_measured']} measured; accuracy of the teacher {found['teacher_accuracy']}, of the "
            f"simulated student {found['student_accuracy']}; labels outside the top 10: "
            f"{found['encodings']['top-10']['label_outside_head']:.1%}.\n"
        )
        for temperature in ("1", "4"):
            yield f"T = {temperature}\n"
            heads = [label if rule == "-" else f"{label} {rule[0]}" for label, rule in COLUMNS]
            yield f"| Loss | {' | '.join(heads)} |\n|---|{'---|' * len(heads)}"
            for loss in found["encodings"]["top-10"]["rules"]["predicted"]:
                errors = [found["encodings"][label]["rules"][rule][loss] for label, rule in COLUMNS]
                if temperature in errors[0] or temperature == "1":
                    cells = [figure(error.get(temperature, error.get("-"))) for error in errors]
                    if "fixed_tail" in LOSSES[loss].needs:
                        cells = [
                            "-" if rule == "bucket" else cell for cell, (_, rule) in zip(cells, COLUMNS, strict=True)
                        ]
                    yield f"| `{loss}` | {' | '.join(cells)} |"
            yield ""


def figure(error: float) -> str:
    """An error in two digits."""
    return "overflow" if error < 0 else f"{error:.2g}" if error < 10 else f"{error:.0f}"


def pages() -> dict[Path, str]:
    """Every page that this module writes, whole."""
    data = json.loads((FOLDER / "measurements" / "loss-encoding.json").read_text())
    parts = {
        FOLDER / "reference" / "losses.md": [INTRODUCTION, *overview(), WRITTEN.lstrip(), *grouped()],
        FOLDER / "reference" / "targets-and-weights.md": [RULES, *transforms(), *rules()],
        FOLDER / "measurements" / "losses-and-encodings.md": list(measured(data)),
    }
    return {path: "\n".join(lines).rstrip() + "\n" for path, lines in parts.items()}


if __name__ == "__main__":
    for path, page in pages().items():
        path.write_text(page)
