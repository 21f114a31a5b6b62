"""The measured part of docs/explanation/unreliable-teachers.md: figures as JSON, tables and a plot made of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench._marked import rewrite
from logitbank.pipeline.train_student.compare import half_width

SCRIPT, NAME = "bench.unreliable_teachers", "unreliable-teachers"
BASELINE, LABELS = "kd", "ce"
WORST = "40 % swapped"
README_ROWS = {
    "ce": "`ce`, hard labels",
    "kd": "`kd`",
    "redistill, lambda -1/2": "`redistill`",
    "rld, preset=imagenet": "`rld`, preset=imagenet",
    "lr": "`lr`",
}
MEASURES = ("accuracy", "nll", "ece", "teacher", "label", "repeats", "new_label")

Values = dict[int, float]  # by seed
Document = dict[str, Any]


def gather(records: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Document:
    """Every measure of every pair, corruption and method, a list over the seeds."""
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for record in sorted(records, key=lambda one: int(one["seed"])):
        groups.setdefault((record["pair"], record["corruption"], record["method"]), []).append(record)
    found = [
        {
            "pair": pair,
            "corruption": corruption,
            "method": method,
            "seeds": [one["seed"] for one in group],
            **{measure: [one[measure] for one in group] for measure in MEASURES},
        }
        for (pair, corruption, method), group in groups.items()
    ]
    return {**settings, "found": found}


class Figures:
    """The figures of one pair, asked for by corruption and method; hard labels hear no teacher, so they have one."""

    def __init__(self, document: Document, pair: str) -> None:
        self.own = [one for one in document["found"] if one["pair"] == pair]
        facts = document["pairs"][pair]
        self.about, self.corruptions, self.methods = facts["about"], facts["corruptions"], facts["methods"]

    def values(self, corruption: str, method: str, measure: str) -> Values:
        where = self.corruptions[0] if method == LABELS else corruption
        for one in self.own:
            if (one["corruption"], one["method"]) == (where, method):
                return dict(zip(one["seeds"], one[measure], strict=True))
        return {}

    def num_seeds(self, corruption: str) -> int:
        """Seeds of every method under a corruption."""
        return min(len(self.values(corruption, method, "nll")) for method in self.methods)


def difference(own: Values, base: Values, scale: float, digits: int) -> str:
    """Paired by seed, with its 95 % interval; a star where that leaves out zero."""
    pairs = [scale * (own[seed] - base[seed]) for seed in own if seed in base]
    half = half_width(pairs)
    if half is None:
        return ""
    star = "\\*" if abs(np.mean(pairs)) > half > 0 else ""
    return f", {np.mean(pairs):+.{digits}f} ± {half:.{digits}f}{star}"


def interval(values: Values, digits: int = 0) -> str:
    """A mean of shares in percent with its 95 % interval."""
    shares = [100 * value for value in values.values()]
    if not shares:
        return ""
    half = half_width(shares)
    return f"{np.mean(shares):.{digits}f}" + ("" if half is None else f" ± {half:.{digits}f}")


def compared(figures: Figures, measure: str, scale: float, digits: int) -> str:
    """Markdown: each method's mean and its difference to KD."""
    lines = head(figures)
    for method in figures.methods:
        cells = []
        for corruption in figures.corruptions:
            own, base = (figures.values(corruption, name, measure) for name in (method, BASELINE))
            mean = f"{scale * np.mean(list(own.values())):.{digits}f}" if own else ""
            cells.append(mean + ("" if method == BASELINE else difference(own, base, scale, digits)))
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def on_wrong_rows(figures: Figures) -> str:
    """Markdown: what students say on the rows that their teacher got wrong, in percent."""
    lines = head(figures)
    wrong = [figures.values(corruption, BASELINE, "teacher") for corruption in figures.corruptions]
    lines.append(f"| rows that the answers get wrong, % | {' | '.join(wrong_share(one) for one in wrong)} |")
    for method in figures.methods:
        cells = [
            " / ".join(interval(figures.values(one, method, measure)) for measure in ("label", "repeats", "new_label"))
            if method != LABELS or one == figures.corruptions[0]
            else ""
            for one in figures.corruptions
        ]
        lines.append(f"| `{method}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def wrong_share(right: Values) -> str:
    return f"{100 - 100 * float(np.mean(list(right.values()))):.1f}"


def head(figures: Figures) -> list[str]:
    names = [f"{one}, n = {figures.num_seeds(one)}" for one in figures.corruptions]
    return [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]


def tables(document: Document) -> str:
    """Markdown of all figures."""
    parts = []
    for pair in document["pairs"]:
        figures = Figures(document, pair)
        parts += [
            f"### {figures.about}",
            "Accuracy on new images, %, and its difference to `kd`:",
            compared(figures, "accuracy", 100, 2),
            "NLL on new images, nats, and its difference to `kd`:",
            compared(figures, "nll", 1, 3),
            "Where the teacher is wrong, in %: training rows on which the student says the label / on which it repeats"
            " the\nstored mistake / new images that the teacher gets wrong, on which the student says the label.",
            on_wrong_rows(figures),
        ]
    return "\n\n".join(parts)


def readme_table(document: Document) -> str:
    """Markdown of the few rows that README.md has: the first pair, the worst answers, against hard labels."""
    figures = Figures(document, "features")
    lines = ["| loss | accuracy, % (std) | difference | NLL | difference |", "|---|---|---|---|---|"]
    for method, name in README_ROWS.items():
        cells = []
        for measure, scale, digits in (("accuracy", 100, 2), ("nll", 1, 3)):
            own, base = (figures.values(WORST, one, measure) for one in (method, LABELS))
            values = [scale * value for value in own.values()]
            spread = f" ({np.std(values, ddof=1):.{digits}f})" if measure == "accuracy" else ""
            cells.append(f"{np.mean(values):.{digits}f}{spread}")
            gained = "" if method == LABELS else difference(own, base, scale, digits)
            cells.append(gained.removeprefix(", ").replace("\\*", " *"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(document: Document, path: Path) -> None:
    """Accuracy of every method under each corruption, with 95 % intervals of the mean, one pair below the other.

    Beside `path`, on a light ground, lies `NAME-dark.png`.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    pairs = list(document["pairs"])
    for style, suffix in (("default", ""), ("dark_background", "-dark")):
        with plt.style.context(style):
            size = (5.4, 5.2 * len(pairs))
            drawn, panels = plt.subplots(len(pairs), 1, figsize=size, layout="constrained", squeeze=False)
            for panel, pair in zip(panels[:, 0], pairs, strict=True):
                _plot_pair(panel, Figures(document, pair))
            panels[0, 0].legend(fontsize=8)
            file = path.with_stem(path.stem + suffix)
            drawn.savefig(file, dpi=110)
            plt.close(drawn)
        with Image.open(file) as image:  # few colours: a third of the bytes
            few = image.convert("RGB").quantize(colors=64, dither=Image.Dither.NONE)
        few.save(file, optimize=True)


def _plot_pair(panel: Any, figures: Figures) -> None:
    methods = [method for method in figures.methods if method != LABELS]
    for number, corruption in enumerate(figures.corruptions):
        found = [list(figures.values(corruption, method, "accuracy").values()) for method in methods]
        panel.errorbar(
            [100 * float(np.mean(values)) if values else np.nan for values in found],
            [row + 0.16 * (number - 1.5) for row in range(len(methods))],
            xerr=[100 * (half_width(values) or 0) for values in found],
            fmt="o",
            markersize=4,
            capsize=2,
            color=f"C{number}",
            label=corruption,
        )
    labels = list(figures.values("", LABELS, "accuracy").values())
    panel.axvline(100 * float(np.mean(labels)), color="grey", linestyle="--", label="hard labels")
    panel.set_yticks(range(len(methods)), methods)
    panel.invert_yaxis()
    panel.set_title(figures.about.replace("`", "").replace(", which", ",\nwhich"), fontsize=9)
    panel.set_xlabel("accuracy on new images, %")
    panel.grid(alpha=0.3)


def write_page(docs: Path, document: Document) -> None:
    """Tables, plot and figures of explanation/unreliable-teachers.md."""
    page = docs / "explanation" / f"{NAME}.md"
    lines = ",\n".join(json.dumps(one) for one in document["found"])
    settings = json.dumps({**document, "found": []}, indent=1).replace('"found": []', f'"found": [\n{lines}\n]')
    page.with_suffix(".json").write_text(f"{settings}\n")
    rewrite(page, SCRIPT, tables(document))
    plot(document, page.with_suffix(".png"))
