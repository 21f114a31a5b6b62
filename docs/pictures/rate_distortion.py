"""Bytes against fidelity in one panel, for 1,000 classes, 100 classes and a vocabulary, as they were measured."""

import json
from functools import partial
from pathlib import Path
from typing import Any

from docs.pictures import COLOURS, FOLDER, QUIET, chart, log_axes

FIGURES = FOLDER.parent / "measurements" / "rate-distortion.json"
PANELS = {"classes_1000": "rate-distortion-1000", "classes_100": "rate-distortion-100", "text": "rate-distortion-text"}
TEMPERATURE = "2"
LINES = {  # how a line's names begin and end -> its name, mark, colour (None: of other tools), where the name stands
    ("top-", "uniform tail (peers)"): ("top K in fp16, uniform tail", "o", None),
    ("polynomial", ""): ("polynomial", "D", None),
    ("dense int4", ""): ("dense int4", "s", None),
    ("topk+tail 10", ""): ("topk+tail, 10 classes", "^", 0),
    ("topk ", ""): ("topk, predicted tail", "o", 1),
    ("dense ", "8"): ("dense, 8 bits", "s", 2),
}
"""What the panel shows; the page's table has the rest."""


def draw() -> list[Path]:
    """One picture for each set of logits, each light and dark."""
    measured = json.loads(FIGURES.read_text())
    files = []
    for key, name in PANELS.items():
        files += chart(name, partial(_draw, lines=measured[key]), size=(4.8, 4.1))
    return files


def points(lines: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """(bytes, KL T^2) of each line of the panel, by name."""
    found: dict[str, list[tuple[float, float]]] = {}
    for line in lines:
        for (start, end), (name, _, _) in LINES.items():
            uniform = line["name"] == "topk 10, uniform tail"  # the first line at another width
            if line["name"].startswith(start) and line["name"].endswith(end) and not uniform:
                found.setdefault(name, []).append((line["bytes"], line[TEMPERATURE]))
                break
    return found


def _draw(figure: Any, ground: str, *, lines: list[dict[str, Any]]) -> None:
    axis = figure.subplots()
    found = points(lines)
    for name, mark, number in LINES.values():
        if name in found:
            colour = QUIET[ground] if number is None else COLOURS[ground][number]
            size, loss = zip(*sorted(found[name]), strict=True)
            axis.plot(size, loss, mark, linestyle="-" if number is not None else ":", color=colour, ms=5, label=name)
    log_axes(axis, (10, 30, 100, 300, 1000), (0.0001, 0.001, 0.01, 0.1, 1))
    axis.set_xlabel("bytes a row")
    axis.set_ylabel(f"KL(teacher || decoded) T² at T = {TEMPERATURE}, nats")
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False, labelcolor="linecolor")
    axis.grid(alpha=0.2)
