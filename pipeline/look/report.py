"""Pictures and one page about finished runs: nothing is fetched, so the page works wherever the file is."""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from logitbank.pipeline.look.facts import facts_of
from logitbank.pipeline.look.panels import as_svg, save_png
from logitbank.pipeline.look.plot_costs import COSTS, costs_of
from logitbank.pipeline.look.run_pictures import Methods, by_baseline, run_pictures
from logitbank.pipeline.train_student.compare import Comparison, against
from logitbank.pipeline.train_student.runs import FinishedRun
from logitbank.stores.write.building import build, build_files

_MOST_CONFUSED = 50


def plot_runs(methods: Methods, rows: Sequence[Comparison], folder: Path) -> tuple[list[Path], bool]:
    """Writes a PNG file for each picture of ``run_pictures``; nothing is written over.

    Args:
        methods: Runs by method and seed.
        rows: Their comparison.
        folder: Where to write; it may hold other files.

    Returns:
        The files, and whether they were written: False when all were there already.

    Raises:
        ValueError: Other files of these names are there.
    """
    pictures = {f"{name}.png": picture for name, picture in run_pictures(methods, by_baseline(rows)).items()}

    def make(built: Path) -> None:
        for name, picture in pictures.items():
            save_png(picture.panels, built / name, columns=picture.columns)

    written = build_files(folder, list(pictures), make)
    return [folder / name for name in pictures], written


def write_report(
    methods: Methods,
    rows: Sequence[Comparison],
    path: Path,
    *,
    title: str,
    failed: Mapping[str, Any],
) -> bool:
    """Writes one HTML file with the comparison, every run, the pictures and the errors; whole or not at all.

    Returns:
        False when this very file was there already.

    Raises:
        ValueError: Another one is there.
    """

    def make(built: Path) -> None:
        built.write_text(_page(methods, by_baseline(rows), title=title, failed=failed), encoding="utf-8")

    return build(path, make)


def _page(methods: Methods, rows: Sequence[Comparison], *, title: str, failed: Mapping[str, Any]) -> str:
    methods = {row.name: methods[row.name] for row in rows}
    shared, settings = facts_of(methods)
    folder = FileSystemLoader(Path(__file__).parent)
    page = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return page.get_template("page.html").render(
        title=title,
        num_runs=sum(map(len, methods.values())),
        num_methods=len(methods),
        against=against(rows),
        methods=Table(_method_columns(rows[0].heading), [_method_cells(row) for row in rows]),
        pictures={
            name: (picture.heading, [(panel.title, _data_url(as_svg(panel))) for panel in picture.panels])
            for name, picture in run_pictures(methods, rows).items()
        },
        teachers=_teacher_table(methods),
        costs=Table(
            ("method", *COSTS.values(), "weights, KiB"), [_cost_cells(name, runs) for name, runs in methods.items()]
        ),
        shared=shared,
        settings=Table(settings[0], [[_words(value) for value in line] for line in settings[1:]]) if settings else None,
        runs=Table(_RUN_COLUMNS, [_run_cells(name, run) for name, runs in methods.items() for run in runs.values()]),
        classes=_class_table(methods),
        confusions=_confusion_table(methods),
        failed=Table(("run", "error"), [(_words(name), _words(str(error))) for name, error in failed.items()])
        if failed
        else None,
    )


class Cell(NamedTuple):
    """Of a table that can be sorted."""

    key: float | str
    """What it is sorted by."""
    text: str
    strong: bool = False


class Table(NamedTuple):
    """A table that can be sorted."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def _method_columns(metric: str) -> Sequence[str]:
    return (
        *("method", metric, "std", "difference", "NLL", "NLL difference", "ECE"),
        *("n", "pairs", "baseline"),
    )


_WHERE_TEACHER_ERRS = {
    "accuracy_teacher_right": "accuracy where it is right %",
    "accuracy_teacher_wrong": "where it is wrong %",
    "agreement_teacher_wrong": "its mistakes repeated %",
}

_RUN_COLUMNS = (
    "method",
    "seed",
    "accuracy %",
    "top-5 %",
    "NLL",
    "Brier",
    "ECE",
    "validation %",
    "training s",
    "folder",
)


def _method_cells(row: Comparison) -> list[Cell]:
    return [
        _words(row.name),
        _number(row.scale * row.mean, f"{{:.{row.digits}f}}"),
        _number(row.scale * row.std if row.num_seeds > 1 else None, f"{{:.{row.digits}f}}"),
        _difference(row.difference, row.difference_text()),
        _number(row.nll, "{:.4f}"),
        _difference(row.nll_difference, row.difference_text(nll=True)),
        _number(row.ece, "{:.4f}"),
        _number(row.num_seeds, "{:d}"),
        _number(None if row.baseline in (None, row.name) else row.num_pairs, "{:d}"),
        _words(row.baseline or "none"),
    ]


def _teacher_table(methods: Methods) -> Table | None:
    """How near the students of each method are to their teacher; None: no run was compared with one."""
    lines = []
    for name, runs in methods.items():
        against = [run.result["against_teacher"] for run in runs.values() if run.result.get("against_teacher")]
        if against:
            agreement, kl = _mean(_percent(against, "agreement")), _mean([found["kl"] for found in against])
            errs = (_number(_mean(_percent(against, key)), "{:.2f}") for key in _WHERE_TEACHER_ERRS)
            rows = _words(" and ".join(sorted({str(found["rows"]) for found in against})))
            lines.append([_words(name), rows, _number(agreement, "{:.2f}"), _number(kl, "{:.4f}"), *errs])
    return Table(("method", "rows", "agreement %", "KL to it", *_WHERE_TEACHER_ERRS.values()), lines) if lines else None


def _percent(against: Sequence[Mapping[str, Any]], name: str) -> list[float]:
    """A share of every run that has it, in percent."""
    return [100 * found[name] for found in against if found.get(name) is not None]


def _cost_cells(name: str, runs: Mapping[int, FinishedRun]) -> list[Cell]:
    found, weights = costs_of(runs), next(iter(runs.values())).result.get("weight_bytes")
    return [
        _words(name),
        _number(found["seconds"], "{:.1f}"),
        _number(found["num_parameters"], "{:,.0f}"),
        _number(found["answer_bytes"], "{:,.1f}"),
        _number(None if weights is None else weights / 1024, "{:,.1f}"),
    ]


def _run_cells(name: str, run: FinishedRun) -> list[Cell]:
    test, validation = run.result["test"], run.result["validation"]
    return [
        _words(name),
        _number(run.seed, "{:d}"),
        _number(100 * test["accuracy"], "{:.2f}"),
        _number(100 * test["top5_accuracy"], "{:.2f}"),
        _number(test["nll"], "{:.4f}"),
        _number(test["brier"], "{:.4f}"),
        _number(test["ece"], "{:.4f}"),
        _number(100 * validation["accuracy"] if validation else None, "{:.2f}"),
        _number(run.result["seconds"], "{:.1f}"),
        _words(run.folder.name),
    ]


def _class_table(methods: Methods) -> Table:
    classes: dict[str, dict[str, list[float]]] = {}
    for name, runs in methods.items():
        for run in runs.values():
            for row in run.result["test"].get("per_class", []):
                classes.setdefault(row["class"], {}).setdefault(name, []).append(100 * row["accuracy"])
    lines = [
        [_words(label), *(_number(_mean(found.get(name, [])), "{:.2f}") for name in methods)]
        for label, found in classes.items()
    ]
    return Table(("class", *methods), lines)


def _confusion_table(methods: Methods) -> Table | None:
    """Which classes are taken for which, in percent of the class's rows: the pairs that are confused most."""
    shares: dict[tuple[str, str], dict[str, list[float]]] = {}
    for name, runs in methods.items():
        for run in runs.values():
            found = run.confusion()
            sizes = Counter[str]()
            for (label, _), count in found.items():
                sizes[label] += count
            for (label, predicted), count in found.items():
                if label != predicted:
                    share = 100 * count / sizes[label]
                    shares.setdefault((label, predicted), {}).setdefault(name, []).append(share)
    lines = []
    for (label, predicted), of_methods in shares.items():
        # a run that does not confuse the two has no line of them
        means = [sum(of_methods.get(name, [])) / len(runs) for name, runs in methods.items()]
        lines.append((max(means), [_words(label), _words(predicted), *(_number(mean, "{:.2f}") for mean in means)]))
    lines.sort(key=lambda line: -line[0])
    return Table(("class", "taken for", *methods), [cells for _, cells in lines[:_MOST_CONFUSED]]) if lines else None


def _number(value: float | None, form: str) -> Cell:
    return Cell(-1e300, "") if value is None else Cell(value, form.format(value))


def _data_url(svg: bytes) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"


def _words(text: str) -> Cell:
    return Cell(text, text)


def _difference(value: float | None, text: str) -> Cell:
    shown = text.strip().replace("+-", "±")
    return Cell(value or 0, shown.removesuffix("*"), strong=shown.endswith("*"))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
