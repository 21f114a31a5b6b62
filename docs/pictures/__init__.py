"""Pictures of the pages, each by a file of its own: `python -m docs.pictures [NAME ...]` (`make pictures`).

A diagram is one SVG file that follows the reader's light or dark ground by itself; a chart or a screenshot is two,
`NAME.svg` and `NAME-dark.svg`, which pages show with `<picture>`. All stay readable at 400 px.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
INK = {"light": "#1f2328", "dark": "#f0f6fc"}
QUIET = {"light": "#59636e", "dark": "#9198a1"}
GROUND = {"light": "#ffffff", "dark": "#0d1117"}
COLOURS = {
    "light": ("#0969da", "#bc4c00", "#8250df", "#1a7f37"),
    "dark": ("#4493f8", "#f0883e", "#ab7df8", "#3fb950"),
}  # told apart by those who see no red or green: beside each line stands its name, and marks differ

DIAGRAM = """
    text { font: 12px system-ui, sans-serif; fill: #1f2328; }
    .middle { text-anchor: middle; }
    .small { font-size: 10.5px; fill: #59636e; }
    .strong { font-weight: 600; }
    .code { font: 11px ui-monospace, "Liberation Mono", monospace; }
    .box { fill: #f6f8fa; stroke: #8c959f; rx: 4px; }
    .chosen { fill: #ddf4ff; stroke: #0969da; rx: 4px; }
    .ground { fill: #ffffff; }
    .line { fill: none; stroke: #59636e; stroke-width: 1.4; }
    .head { fill: #59636e; }
    @media (prefers-color-scheme: dark) {
      text { fill: #f0f6fc; }
      .small { fill: #9198a1; }
      .box { fill: #151b23; stroke: #656c76; }
      .chosen { fill: #0c2d4a; stroke: #4493f8; }
      .ground { fill: #0d1117; }
      .line { stroke: #9198a1; }
      .head { fill: #9198a1; }
    }
"""


def diagram(parts: list[str], *, width: int, height: int, title: str) -> str:
    """An SVG document in the colours of `docs/flow.svg`."""
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    inside = [f'<rect class="ground" width="{width}" height="{height}"/>', *parts]
    lines = [f'{head} role="img" aria-labelledby="title">', f'  <title id="title">{title}</title>']
    lines += [f"  <style>{DIAGRAM}  </style>", *(f"  {part}" for part in inside), "</svg>"]
    return "\n".join(lines) + "\n"


def chart(name: str, draw: Callable[[Any, str], None], *, size: tuple[float, float]) -> list[Path]:
    """Draws a figure of matplotlib on a light and on a dark ground; `draw` takes it and the ground's name."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    files = []
    for ground, suffix in (("light", ""), ("dark", "-dark")):
        settings: Any = {
            "svg.hashsalt": name,
            "svg.fonttype": "none",  # words stay words: a fifth of the bytes, and in the reader's font
            "text.parse_math": False,
            "font.sans-serif": ["DejaVu Sans", "Verdana", "Helvetica"],
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK[ground]),
            "axes.edgecolor": QUIET[ground],
            "axes.facecolor": GROUND[ground],
            "figure.facecolor": GROUND[ground],
        }
        with plt.rc_context(settings):
            figure = plt.figure(figsize=size, layout="constrained")
            draw(figure, ground)
            files.append(FOLDER / f"{name}{suffix}.svg")
            figure.savefig(files[-1], format="svg", metadata={"Date": None})
            plt.close(figure)
    return files


def log_axes(axes: Any, x: Sequence[float], y: Sequence[float]) -> None:
    """Logarithmic scales with these marks alone, in plain numbers."""
    from matplotlib.ticker import NullLocator

    axes.set(xscale="log", yscale="log")
    for axis, marks in ((axes.xaxis, x), (axes.yaxis, y)):
        axis.set_minor_locator(NullLocator())
        axis.set_ticks(marks, [f"{mark:,.10f}".rstrip("0").rstrip(".") for mark in marks])
    axes.tick_params(labelsize=8, color=axes.spines["left"].get_edgecolor())
