"""The report page and the card as readers see them: photographs of those of a demo, by a headless chromium."""

import tempfile
from pathlib import Path
from typing import Any

from docs.check_rendering import as_html, chromium
from docs.pictures import FOLDER

SEEDS = 5
WIDTH, HEIGHT, SHARPNESS = 520, 1060, 1.5  # CSS pixels; words are still read when a page shows it 368 px wide


def draw() -> list[Path]:
    """`report.png` and `card.png`, each with a dark twin."""
    with tempfile.TemporaryDirectory() as name, chromium() as browser:
        folder = Path(name)
        report, card = made(folder)
        card.write_text(card.read_text().split("---\n", 2)[2])  # hubs read what stands in front, and do not show it
        (folder / "card.html").write_text(as_html(card), encoding="utf-8")
        files = photographed(browser, report, "report")
        return [*files, *photographed(browser, folder / "card.html", "card")]


def made(folder: Path) -> tuple[Path, Path]:
    """The report page of a demo's students, and the card of its store."""
    from logitbank.pipeline.commands.demo import run_demo
    from logitbank.pipeline.look.card import write_card
    from logitbank.pipeline.look.report import write_report
    from logitbank.pipeline.train_student.compare import compare
    from logitbank.pipeline.train_student.runs import choose_baselines, load_runs

    demo = folder / "demo"
    run_demo(demo, seeds=SEEDS, say=print)
    methods = load_runs(demo / "students")
    results = {name: {seed: run.result for seed, run in runs.items()} for name, runs in methods.items()}
    rows = compare(results, choose_baselines(methods, ""))
    write_report(methods, rows, folder / "report.html", title="demo", failed={})
    write_card(demo / "crossfit.zarr", folder / "README.md")
    return folder / "report.html", folder / "README.md"


def photographed(browser: Any, page: Path, name: str) -> list[Path]:
    """The top of a page, light and dark, in few colours so that the files are small."""
    from PIL import Image

    files = []
    for scheme, suffix in (("light", ""), ("dark", "-dark")):
        context = browser.new_context(
            viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=SHARPNESS, color_scheme=scheme
        )
        tab = context.new_page()
        tab.goto(page.as_uri())
        files.append(FOLDER / f"{name}{suffix}.png")
        tab.screenshot(path=files[-1])
        context.close()
        with Image.open(files[-1]) as taken:
            small = taken.convert("RGB").quantize(colors=64, dither=Image.Dither.NONE)
        small.save(files[-1], optimize=True)
    return files
