"""The pages hold what they promise: commands run, programs run, outputs look as shown, links lead somewhere.

``tests/pages.py`` says how the blocks of a page are read.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import logitbank
from docs import generate_api, generate_cli, generate_parts
from logitbank import cli
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.stores.format.schema import CELL_ARRAYS, CONSTANTS, EXAMPLE_ARRAYS, ROW_ARRAYS
from tests.pages import ROOT, anchors, blocks, commands, known_options, links, options_of, run_page

DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
ALSO_LINKED = {name: (ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md", "stores/README.md")}
RUN_ELSEWHERE = {"how-to/sharing.md": "test_share_docs.py"}  # by tests of their own
RUNNABLE = [
    name
    for name, page in PAGES.items()
    if name not in RUN_ELSEWHERE and any(block.kind in ("bash", "python", "py") for block in blocks(page))
]
CALLS = [
    (name, words)
    for name, page in PAGES.items()
    for block in blocks(page)
    if block.kind in ("bash", "console") or block.text.startswith("cli ")
    for words in commands(block.text)
]


@pytest.mark.parametrize("name", RUNNABLE)
@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 with torch 2.13
def test_what_a_page_tells_to_do_works(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of the page, in order, in an empty folder."""
    prepare_torchvision()  # which Lightning imports
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = set(sys.modules)
    try:
        printed = "".join(text for _, text in run_page(PAGES[name]))
    finally:
        for own in tmp_path.glob("*.py"):  # another page may have a module of the same name
            if own.stem not in modules:
                sys.modules.pop(own.stem, None)
    learnt = re.search(r"^training accuracy (.*)$", printed, flags=re.MULTILINE)
    assert learnt is None or float(learnt[1]) > 0.8


@pytest.mark.parametrize(("name", "words"), CALLS, ids=[f"{name}-{' '.join(words[:3])}" for name, words in CALLS])
def test_options_in_pages_exist(name: str, words: list[str]) -> None:
    called = options_of(words)
    if called is not None:
        command, options = called
        assert options <= known_options(command)


@pytest.mark.parametrize("name", [*PAGES, *ALSO_LINKED])
def test_links_lead_somewhere(name: str) -> None:
    page, folder = (PAGES[name], DOCS / name) if name in PAGES else (ALSO_LINKED[name], ROOT / name)
    for path, anchor in links(page):
        target = (folder.parent / path) if path else folder
        assert target.exists(), path
        assert not anchor or anchor in anchors(target.read_text()), f"{path}#{anchor}"


@pytest.mark.parametrize("name", [*PAGES, *ALSO_LINKED])
def test_files_and_programs_that_a_page_names_are_there(name: str) -> None:
    page = PAGES[name] if name in PAGES else ALSO_LINKED[name]
    for path in re.findall(r"(?<![\w./-])((?:pipeline|stores|tests|docs|bench|logitbank)/[\w./*-]*)", page):
        assert list(ROOT.glob(path.rstrip("."))), path
    for module in re.findall(r"python -m ((?:docs|bench|tests)[\w.]*)", page):
        file = ROOT / module.rstrip(".").replace(".", "/")
        assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), module


def test_the_map_names_every_page() -> None:
    mapped = {(DOCS / path).resolve() for path, _ in links(PAGES["README.md"]) if path}
    missing = [name for name in PAGES if name != "README.md" and (DOCS / name).resolve() not in mapped]
    assert not missing, "link them in docs/README.md"


def test_pages_run_elsewhere_are_run_there() -> None:
    for name, test in RUN_ELSEWHERE.items():
        assert Path(name).stem in (ROOT / "tests" / test).read_text()


def test_the_reference_is_up_to_date() -> None:
    assert generate_cli.PAGE.read_text() == generate_cli.page(), "run python -m docs.generate_cli"
    assert generate_api.PAGE.read_text() == generate_api.page(), "run python -m docs.generate_api"
    assert generate_parts.PAGE.read_text() == generate_parts.page(), "run python -m docs.generate_parts"


def test_the_reference_has_every_public_name() -> None:
    assert sorted(name for names in generate_api.GROUPS.values() for name in names) == sorted(logitbank.__all__)


@pytest.mark.parametrize("name", [*PAGES, *ALSO_LINKED])
def test_programs_of_the_pages_use_public_names(name: str) -> None:
    page = PAGES[name] if name in PAGES else ALSO_LINKED[name]
    for block in blocks(page):
        if block.kind in ("python", "py"):
            assert not re.search(r"logitbank\.(pipeline|stores|cli)\b", block.text), "take it from logitbank"


QUOTED = [  # page, what its row begins with, classes, name in the measurements
    ("README.md", "| top-10 in fp16, uniform tail (the common way)", 1000, "top-10 fp16, uniform tail (peers)"),
    ("README.md", "| `topk`, 10 classes, predicted tail", 1000, "topk 10"),
    ("README.md", "| `topk+tail`, 10 classes, 2 bits", 1000, "topk+tail 10, 2 bits"),
    ("README.md", "| `dense`, 8 bits", 1000, "dense 8"),
    ("docs/explanation/tail-rules.md", "| C = 1000, uniform tail", 1000, "topk 10, uniform tail"),
    ("docs/explanation/tail-rules.md", "| C = 1000, predicted tail", 1000, "topk 10"),
    ("docs/explanation/tail-rules.md", "| C = 100, uniform tail", 100, "topk 10, uniform tail"),
    ("docs/explanation/tail-rules.md", "| C = 100, predicted tail", 100, "topk 10"),
]


@pytest.mark.parametrize(("page", "start", "num_classes", "name"), QUOTED)
def test_quoted_figures_are_those_measured(page: str, start: str, num_classes: int, name: str) -> None:
    """Bytes, where a page has them, and KL T^2 at T = 1, 2, 4, to the digits that the page shows."""
    measured = json.loads((DOCS / "measurements/rate-distortion.json").read_text())[f"classes_{num_classes}"]
    found = next(row for row in measured if row["name"] == name)
    line = next(line for line in (ROOT / page).read_text().splitlines() if line.startswith(start))
    shown = [cell.strip() for cell in line.removeprefix(start).strip("| ").split("|")]
    wanted = [found["bytes"], found["1"], found["2"], found["4"]][-len(shown) :]
    for text, value in zip(shown, wanted, strict=True):
        assert f"{value:.{len(text.partition('.')[2])}f}" == text


def test_quoted_intervals_are_those_measured() -> None:
    """Differences in docs/explanation/cross-fitting.md stand in docs/measurements/semiparametric.md."""
    interval = re.compile(r"[+-]\d\.\d{4} ± \d\.\d{4}")
    quoted = set(interval.findall(" ".join(PAGES["explanation/cross-fitting.md"].split())))
    assert quoted
    assert quoted <= set(interval.findall(PAGES["measurements/semiparametric.md"]))


def test_the_glossary_names_what_is_there() -> None:
    """Arrays of the format, commands, options, and public names."""
    group: Any = typer.main.get_command(cli.app)
    there = {f"cli {name}" for name in group.commands}
    there |= {option for name in group.commands for option in known_options(name)}
    there |= {f"examples/{name}" for name in EXAMPLE_ARRAYS}
    there |= {f"teachers/*/{name}" for name in [*ROW_ARRAYS, *CELL_ARRAYS, *CONSTANTS]}
    there |= set(logitbank.__all__)
    lines = re.findall(r"^In code: (.*)$", PAGES["reference/glossary.md"], flags=re.MULTILINE)
    named = {name for line in lines for name in re.findall(r"`(.+?)`", line)}
    assert len(named) > 50
    assert not {name for name in named - there if not hasattr(logitbank.Teacher, name.removeprefix("Teacher."))}


@pytest.mark.parametrize("name", [*PAGES, *ALSO_LINKED])
def test_a_student_learns_from_answers_and_a_loss_tolerates_mistakes(name: str) -> None:
    """One term for one thing, as in docs/reference/glossary.md; other words are riddles to many readers."""
    page = PAGES[name] if name in PAGES else ALSO_LINKED[name]
    assert not re.findall(r".*\b(?:hears?|heard|bears?)\b.*", page)
