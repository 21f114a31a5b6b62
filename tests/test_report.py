"""The report page as a browser shows it, and what its pictures draw."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from playwright.sync_api import Browser, sync_playwright

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.look.facts import facts_of
from logitbank.pipeline.look.panels import Panel
from logitbank.pipeline.look.report import write_report
from logitbank.pipeline.look.run_pictures import Methods, by_baseline, run_pictures
from logitbank.pipeline.train_student.compare import Comparison, compare
from logitbank.pipeline.train_student.runs import choose_baselines, load_runs
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.students import train


@pytest.fixture(scope="module")
def runs(
    digits: Split, digits_test: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Methods, list[Comparison]]:
    """Two students, each from labels and from a teacher, with three seeds."""
    folder = tmp_path_factory.mktemp("report")
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, folder / "s.zarr", encoding=Encoding(kind="topk", num_classes=10, top_k=3))
    store = open_store(folder / "s.zarr")
    for student in ("mlp:4", "mlp:64"):
        for loss in ("ce", "kd"):
            for seed in range(3):
                out = folder / f"{student}-{loss}-{seed}"
                train(store, digits, digits_test, out, student=student, loss=loss, seed=seed, epochs=2, val_share=0.1)
    methods = load_runs(folder)
    results = {name: {seed: run.result for seed, run in by_seed.items()} for name, by_seed in methods.items()}
    return methods, by_baseline(compare(results, choose_baselines(methods, "")))


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no chromium here")
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"]) as started,
    ):
        yield started


def drawn(panel: Panel) -> Any:
    axis = Figure(figsize=panel.size).subplots()
    panel.draw(axis)
    return axis


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_in_a_browser(
    runs: tuple[Methods, list[Comparison]], browser: Browser, tmp_path: Path, width: int, scheme: Any
) -> None:
    """With names that are long, with and without places to break them."""
    methods, rows = runs
    long = {name: f"{name} {'x' * 90} {'setting=0.5 ' * 6}" for name in methods}
    rows = [replace(row, name=long[row.name], baseline=long[row.baseline or ""]) for row in rows]
    named = {long[name]: by_seed for name, by_seed in methods.items()}
    for names, shown, failed in ((methods, runs[1], {}), (named, rows, {"a": "y" * 500})):
        path = tmp_path / f"{bool(failed)}.html"
        write_report(names, shown, path, title="t" * 80, failed=failed)
        page = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme).new_page()
        said: list[str] = []
        page.on("console", partial(_note, said))
        page.on("pageerror", partial(_note, said))
        page.goto(path.as_uri())
        assert page.evaluate("document.scrollingElement.scrollWidth <= document.documentElement.clientWidth")
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
        outside = (
            "[...document.querySelectorAll('table, img')].filter(e => e.closest('.wide, .panels') === null).length"
        )
        assert page.evaluate(outside) == 0
        tables = page.evaluate("[...document.querySelectorAll('.wide')].map(e => e.scrollWidth - e.clientWidth)")
        if width == 1200 and not failed:
            assert max(tables) <= 0  # every table is seen whole
        first = page.locator("table.sorted").first
        column = first.locator("th", has_text="NLL").first
        column.click()
        place = int(column.evaluate("e => e.cellIndex"))
        values = [float(cells.nth(place).inner_text()) for cells in _cells_of(first)]
        assert values == sorted(values)
        assert said == []
        page.context.close()


def _note(said: list[str], event: Any) -> None:
    said.append(str(event))


def _cells_of(table: Any) -> list[Any]:
    return [row.locator("td") for row in table.locator("tbody tr").all()]


def test_the_same_runs_make_the_same_page(runs: tuple[Methods, list[Comparison]], tmp_path: Path) -> None:
    for first in (True, False):
        assert write_report(*runs, tmp_path / "page.html", title="t", failed={}) is first


def test_students_of_one_baseline_stand_together(runs: tuple[Methods, list[Comparison]]) -> None:
    assert [row.name for row in runs[1]] == ["ce mlp:4", "kd mlp:4", "ce mlp:64", "kd mlp:64"]
    assert [row.baseline for row in runs[1]] == ["ce mlp:4", "ce mlp:4", "ce mlp:64", "ce mlp:64"]


def test_what_the_cost_curve_shows(runs: tuple[Methods, list[Comparison]]) -> None:
    """Every method at its cost; the line rises, and every method is on or below it."""
    methods, rows = runs
    panels = run_pictures(methods, rows)["cost"].panels
    axes = [drawn(panel) for panel in panels]
    assert [axis.get_xlabel() for axis in axes] == [
        "training, seconds",
        "parameters",
        "answers on disk, bytes an example",
    ]
    for axis, cost in zip(axes, ("seconds", "num_parameters", "answer_bytes"), strict=True):
        points = {(float(bar.lines[0].get_xdata()[0]), float(bar.lines[0].get_ydata()[0])) for bar in axis.containers}
        costs = {row.name: [run.result[cost] for run in methods[row.name].values()] for row in rows}
        assert points == {(sum(costs[row.name]) / 3, 100 * row.mean) for row in rows}
        (line,) = [found for found in axis.lines if found.get_drawstyle() == "steps-post"]
        x, y = line.get_data()
        assert list(x) == sorted(x)
        assert list(y) == sorted(y)
        for point_x, point_y in points:
            assert max(height for place, height in zip(x, y, strict=True) if place <= point_x) >= point_y
        assert [text.get_text() for text in axis.get_legend().get_texts()] == ["mlp:4", "mlp:64"]


def test_the_best_of_what_should_be_low_is_the_lowest(runs: tuple[Methods, list[Comparison]]) -> None:
    methods, _ = runs
    results = {name: {seed: run.result for seed, run in by_seed.items()} for name, by_seed in methods.items()}
    rows = by_baseline(compare(results, choose_baselines(methods, ""), "nll"))
    axis = drawn(run_pictures(methods, rows)["cost"].panels[0])
    (line,) = [found for found in axis.lines if found.get_drawstyle() == "steps-post"]
    assert list(line.get_ydata()) == sorted(line.get_ydata(), reverse=True)
    assert line.get_ydata()[-1] == min(row.mean for row in rows)


def test_ticks_of_curves_are_whole_epochs(runs: tuple[Methods, list[Comparison]]) -> None:
    methods, rows = runs
    for picture_of, epochs in ((methods, 2), ({name: dict([*by.items()][:1]) for name, by in methods.items()}, 2)):
        for panel in run_pictures(picture_of, rows)["curves"].panels:
            axis = drawn(panel)
            axis.figure.canvas.draw()
            ticks = [
                label.get_text() for label in axis.get_xticklabels() if 0.9 <= label.get_position()[0] <= epochs + 0.1
            ]
            assert ticks == ["1", "2"]
            assert all(line.get_ydata().shape == (epochs,) for line in axis.lines)


def test_runs_that_do_not_say_what_they_cost_are_left_out(runs: tuple[Methods, list[Comparison]]) -> None:
    """Runs of earlier versions, and students that have no parameters."""
    methods, rows = runs
    less = {
        name: {
            seed: replace(
                run, result={k: v for k, v in run.result.items() if k not in ("answer_bytes", "num_parameters")}
            )
            for seed, run in by_seed.items()
        }
        for name, by_seed in methods.items()
    }
    assert [drawn(panel).get_xlabel() for panel in run_pictures(less, rows)["cost"].panels] == ["training, seconds"]


def test_the_page_says_how_rows_were_weighed_and_what_a_loss_was_set_to(
    runs: tuple[Methods, list[Comparison]], tmp_path: Path
) -> None:
    """Two methods called dkd and kd may differ in more than their names."""
    methods, _ = runs
    name = next(name for name in methods if name.startswith("kd"))
    run = methods[name][0]
    term = {"loss": "dkd", "weight": 1.0, "temperature": 4.0, "alpha": 0.5, "row_weight": "confidence"}
    other = replace(run, result={**run.result, "settings": {"terms": [term]}})
    _, lines = facts_of({"kd": {0: run}, "dkd": {0: other}})
    assert lines[0] == ["method", "options of the loss"]
    assert lines[2] == ["dkd", "dkd: weight=1 alpha=0.5 row_weight=confidence"]
