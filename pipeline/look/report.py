"""Pictures and one page about finished runs: nothing is fetched, so the page works wherever the file is."""

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.pipeline.look.plots import plot_curves, plot_intervals, plot_reliability
from logitbank.pipeline.train_student.compare import Comparison, against
from logitbank.pipeline.train_student.runs import FinishedRun
from logitbank.stores.write.building import build, build_files

Methods = Mapping[str, Mapping[int, FinishedRun]]

PICTURES = ("accuracy.png", "curves.png", "reliability.png")


def plot_runs(methods: Methods, rows: Sequence[Comparison], folder: Path) -> tuple[list[Path], bool]:
    """Writes ``accuracy.png``, ``curves.png`` and ``reliability.png``; nothing is written over.

    Args:
        methods: Runs by method and seed.
        rows: Their comparison.
        folder: Where to write; it may hold other files.

    Returns:
        The files, and whether they were written: False when all were there already.

    Raises:
        ValueError: Other files of these names are there.
    """
    written = build_files(folder, PICTURES, lambda built: _plot(methods, rows, built))
    return [folder / name for name in PICTURES], written


def _plot(methods: Methods, rows: Sequence[Comparison], folder: Path) -> None:
    accuracy, curves, reliability = (folder / name for name in PICTURES)
    plot_intervals(rows, accuracy)
    plot_curves({name: [run.history() for run in runs.values()] for name, runs in methods.items()}, curves)
    bins = {
        name: [b for run in runs.values() for b in run.result["test"]["reliability"]] for name, runs in methods.items()
    }
    plot_reliability(bins, {row.name: row.ece for row in rows}, reliability)


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
        _plot(methods, rows, built.parent)
        pictures = {name: (built.parent / name).read_bytes() for name in PICTURES}
        built.write_text(_page(methods, rows, pictures, title=title, failed=failed), encoding="utf-8")

    return build(path, make)


def _page(
    methods: Methods,
    rows: Sequence[Comparison],
    pictures: Mapping[str, bytes],
    *,
    title: str,
    failed: Mapping[str, Any],
) -> str:
    body = [
        f"<h1>{html.escape(title)}</h1>",
        f"<p>{sum(map(len, methods.values()))} runs, {len(methods)} methods. Differences are against"
        f" <b>{html.escape(against(rows))}</b>, paired by seed, with 95&nbsp;% intervals over seeds (Student's t), not"
        " corrected for the number of comparisons; <b>bold</b> ones exclude zero. Click a heading to sort.</p>",
        _table(_method_columns(rows[0].heading), [_method_cells(row, methods[row.name]) for row in rows]),
        *(
            f'<img alt="{Path(name).stem}" src="data:image/png;base64,{base64.b64encode(data).decode()}">'
            for name, data in pictures.items()
        ),
        "<h2>Runs</h2>",
        _table(_RUN_COLUMNS, [_run_cells(name, run) for name, runs in methods.items() for run in runs.values()]),
        "<h2>Classes</h2><p>Accuracy by class, %, mean over seeds.</p>",
        _class_table(methods),
    ]
    if failed:
        body += ["<h2>Failed</h2>", _table(("run", "error"), [((n, n), (str(e), str(e))) for n, e in failed.items()])]
    return _PAGE.replace("{title}", html.escape(title)).replace("{body}", "\n".join(body))


Cell = tuple[float | str, str]  # what it is sorted by, and what is shown


def _method_columns(metric: str) -> Sequence[str]:
    return (
        *("method", "baseline", "n", "pairs", metric, "std", "difference", "NLL", "difference", "ECE"),
        *("agreement %", "KL to teacher", "training s", "parameters", "weight KiB"),
    )


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


def _method_cells(row: Comparison, runs: Mapping[int, FinishedRun]) -> list[Cell]:
    results = [run.result for run in runs.values()]
    against = [result["against_teacher"] for result in results if result.get("against_teacher")]
    return [
        (row.name, row.name),
        (row.baseline or "none", row.baseline or "none"),
        _number(row.num_seeds, "{:d}"),
        _number(row.num_pairs, "{:d}"),
        _number(row.scale * row.mean, f"{{:.{row.digits}f}}"),
        _number(row.scale * row.std, f"{{:.{row.digits}f}}"),
        _difference(row.difference, row.difference_text()),
        _number(row.nll, "{:.4f}"),
        _difference(row.nll_difference, row.difference_text(nll=True)),
        _number(row.ece, "{:.4f}"),
        _number(_mean([100 * found["agreement"] for found in against]), "{:.2f}"),
        _number(_mean([found["kl"] for found in against]), "{:.4f}"),
        _number(row.seconds, "{:.1f}"),
        _number(results[0]["num_parameters"], "{:,d}"),
        _number(results[0]["weight_bytes"] / 1024, "{:.1f}"),
    ]


def _run_cells(name: str, run: FinishedRun) -> list[Cell]:
    test, validation = run.result["test"], run.result["validation"]
    return [
        (name, name),
        _number(run.seed, "{:d}"),
        _number(100 * test["accuracy"], "{:.2f}"),
        _number(100 * test["top5_accuracy"], "{:.2f}"),
        _number(test["nll"], "{:.4f}"),
        _number(test["brier"], "{:.4f}"),
        _number(test["ece"], "{:.4f}"),
        _number(100 * validation["accuracy"] if validation else None, "{:.2f}"),
        _number(run.result["seconds"], "{:.1f}"),
        (run.folder.name, run.folder.name),
    ]


def _class_table(methods: Methods) -> str:
    classes: dict[str, dict[str, list[float]]] = {}
    for name, runs in methods.items():
        for run in runs.values():
            for row in run.result["test"]["per_class"]:
                classes.setdefault(row["class"], {}).setdefault(name, []).append(100 * row["accuracy"])
    lines = [
        [(label, label), *(_number(_mean(found.get(name, [])), "{:.2f}") for name in methods)]
        for label, found in classes.items()
    ]
    return _table(("class", *methods), lines)


def _number(value: float | None, form: str) -> Cell:
    return (-1e300, "") if value is None else (value, form.format(value))


def _difference(value: float | None, text: str) -> Cell:
    shown = text.strip().replace("+-", "±")
    return (value or 0, f"*{shown.removesuffix('*')}" if shown.endswith("*") else shown)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _table(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    head = "".join(f'<th scope="col"><button>{html.escape(column)}</button></th>' for column in columns)
    return f"<div><table><thead><tr>{head}</tr></thead><tbody>{''.join(map(_row, rows))}</tbody></table></div>"


def _row(cells: Sequence[Cell]) -> str:
    parts = []
    for key, text in cells:
        shown = html.escape(text.removeprefix("*"))
        shown = f"<b>{shown}</b>" if text.startswith("*") else shown
        kind = "" if isinstance(key, str) else " class=n"
        parts.append(f'<td{kind} data-key="{html.escape(str(key))}">{shown}</td>')
    return f"<tr>{''.join(parts)}</tr>"


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline';
 script-src 'unsafe-inline'">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
div { overflow-x: auto } img { max-width: 100%; display: block; margin: 1.5rem 0 }
table { border-collapse: collapse; white-space: nowrap } td, th { padding: .25rem .7rem; border-bottom: 1px solid #ddd }
th { text-align: left } th button { all: unset; cursor: pointer; font-weight: 600 } .n { text-align: right }
th[aria-sort=ascending] button::after { content: " \\2191" }
th[aria-sort=descending] button::after { content: " \\2193" }
th button:focus-visible { outline: 2px solid #1f6feb } td.n { font-variant-numeric: tabular-nums }
</style></head><body>
{body}
<script>
for (const th of document.querySelectorAll("th")) th.firstChild.addEventListener("click", () => {
  const body = th.closest("table").tBodies[0], column = th.cellIndex;
  const up = th.getAttribute("aria-sort") !== "ascending";
  for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = (row) => row.cells[column].dataset.key;
  const compare = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  body.append(...[...body.rows].sort((a, b) => (up ? 1 : -1) * compare(key(a), key(b))));
});
</script></body></html>
"""
