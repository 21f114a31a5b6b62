"""A picture in parts: each part is drawn alone where a page lays them out, or beside the others in one PNG file."""

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from logitbank.pipeline.look.plots import pyplot

_NAME_WIDTH = 26  # characters of a method's name in a line


class Panel(NamedTuple):
    """One pair of axes.

    Attributes:
        title: What is shown, in words.
        draw: Draws it on axes of matplotlib.
        size: Width and height in inches.
    """

    title: str
    draw: Callable[[Any], None]
    size: tuple[float, float]


def save_png(panels: Sequence[Panel], path: Path, *, columns: int) -> None:
    """All panels of a picture, in lines of ``columns``."""
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    size = (columns * max(panel.size[0] for panel in panels), lines * max(panel.size[1] for panel in panels))
    plt = pyplot()
    figure, axes = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, panel in zip(axes.flat, panels, strict=False):
        _draw(axis, panel)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def as_svg(panel: Panel) -> bytes:
    """One panel, the same bytes each time, with nothing behind it."""
    plt = pyplot()
    file = io.BytesIO()
    with plt.rc_context({"svg.hashsalt": "logitbank"}):
        figure, axis = plt.subplots(figsize=panel.size, layout="constrained")
        _draw(axis, panel)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    plt.close(figure)
    return file.getvalue()


def folded(name: str) -> str:
    """A name in lines that leave room for what is drawn."""
    return "\n".join(textwrap.wrap(name, _NAME_WIDTH, max_lines=4, placeholder=" …")) or " "


def _draw(axis: Any, panel: Panel) -> None:
    panel.draw(axis)
    axis.grid(visible=True, alpha=0.3)
    axis.tick_params(labelsize=8)
    axis.xaxis.label.set_size(9)
    axis.yaxis.label.set_size(9)
    axis.set_title(panel.title, loc="left", fontsize=9)
