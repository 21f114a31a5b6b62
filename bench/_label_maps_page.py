"""The measured part of docs/explanation/views.md about label maps: figures as JSON, and a table made of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench._marked import rewrite
from logitbank.pipeline.train_student.compare import Comparison, compare

SCRIPT = "bench.label_maps"

Record = Mapping[str, Any]


def table(records: Sequence[Record]) -> str:
    """Markdown: how it was measured, and of each transform a table against a fresh view in every epoch."""
    setting = {key: sorted({str(record[key]) for record in records}) for key in ("rows", "epochs", "tests", "torch")}
    said = {key: " or ".join(values) for key, values in setting.items()}
    seeds = sorted({record["seed"] for record in records})
    parts = [
        f"{said['rows']} pictures, {said['epochs']} epochs, {said['tests']} test pictures; seeds"
        f" {', '.join(map(str, seeds))}; torch {said['torch']}."
    ]
    for transform in dict.fromkeys(record["transform"] for record in records):
        own = [record for record in records if record["transform"] == transform]
        parts += [f"Crops of `{transform}`:", of_transform(own)]
    return "\n\n".join(parts)


def of_transform(records: Sequence[Record]) -> str:
    """Accuracy and NLL, with differences paired by seed."""
    runs: dict[str, dict[int, Record]] = {}
    for record in records:
        runs.setdefault(record["method"], {})[record["seed"]] = {"seconds": 0.0, **record}  # figures have none
    baseline = f"views-{records[0]['epochs']}"
    lines = [
        "| answers | passes | bytes an example | n | accuracy, % (std) | against fresh views | NLL | against fresh |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in compare(runs, dict.fromkeys(runs, baseline if baseline in runs else None)):
        own = list(runs[row.name].values())
        accuracy = f"{100 * row.mean:.2f} ({100 * row.std:.2f})"
        cells = [
            shown(row.name),
            own[0]["passes"],
            f"{sum(one['bytes'] for one in own) / len(own):.0f}",
            row.num_seeds,
            accuracy,
        ]
        cells += [difference(row), f"{row.nll:.3f}", difference(row, nll=True)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def shown(method: str) -> str:
    kind, _, count = method.partition("-")
    return {"views": f"views, {count}", "map": f"map, {count} x {count}"}.get(kind, "labels alone")


def difference(row: Comparison, *, nll: bool = False) -> str:
    if row.name == row.baseline:
        return "fresh"
    return row.difference_text(nll=nll).replace("+-", "±").strip().replace("*", "\\*")


def in_order(records: Sequence[Record]) -> list[Record]:
    """By transform, views before maps before labels, then by seed: processes write their lines as they end."""

    def place(record: Record) -> tuple[Any, ...]:
        kind, _, count = record["method"].partition("-")
        number = int(count or 0)
        kinds = ("views", "map", "labels")
        return record["transform"], kinds.index(kind), -number if kind == "views" else number, int(record["seed"])

    return sorted(records, key=place)


def write_page(docs: Path, records: Sequence[Record]) -> None:
    """The table of explanation/views.md, and its figures in label-maps.json."""
    lines = ",\n".join(json.dumps({key: record[key] for key in record if key != "seconds"}) for record in records)
    (docs / "explanation" / "label-maps.json").write_text(f"[\n{lines}\n]\n")
    rewrite(docs / "explanation" / "views.md", SCRIPT, table(records))
