"""Pictures of the pages: they show what is, they are small, and a page shows each of them."""

import json
import re
from pathlib import Path

import pytest

from docs.pictures import FOLDER, folds, rate_distortion, tree
from tests.pages import ROOT

PAGES = {path: path.read_text() for path in (ROOT / "README.md", ROOT / "stores/README.md", *ROOT.glob("docs/**/*.md"))}
FILES = sorted([*FOLDER.glob("*.svg"), *FOLDER.glob("*.png")])


def test_the_tree_is_that_of_a_store(tmp_path: Path) -> None:
    """And every array that a store may have anew must be named in it."""
    paths = tree.entries(tree.small_store(tmp_path))
    assert set(paths) == set(tree.WHAT)
    assert (FOLDER / "store-tree.svg").read_text() == tree.drawn(paths), "run python -m docs.pictures store-tree"


def test_every_fold_is_answered_by_one_teacher_and_learnt_by_the_others() -> None:
    picture = folds.drawn()
    assert (FOLDER / "folds.svg").read_text() == picture, "run python -m docs.pictures folds"
    assert picture.count(">answers<") == folds.FOLDS
    assert picture.count(">learns<") == folds.FOLDS * (folds.FOLDS - 1)


@pytest.mark.parametrize("key", rate_distortion.PANELS)
def test_the_panel_shows_what_was_measured(key: str) -> None:
    measured = json.loads(rate_distortion.FIGURES.read_text())[key]
    found = rate_distortion.points(measured)
    assert set(found) == {name for name, _, _ in rate_distortion.LINES.values()}
    assert {loss for points in found.values() for _, loss in points} <= {row["2"] for row in measured}
    drawn = (FOLDER / f"{rate_distortion.PANELS[key]}.svg").read_text()
    marks = len(re.findall(r"<use ", drawn))
    assert marks >= sum(map(len, found.values())), "run python -m docs.pictures rate-distortion"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_pictures_are_small_and_shown(file: Path) -> None:
    assert file.stat().st_size < 100_000
    shown = [path for path, page in PAGES.items() if f"pictures/{file.name}" in page]
    assert shown, "no page shows it"
    twin = file.with_stem(f"{file.stem}-dark")
    if twin.exists():
        assert all(f"pictures/{twin.name}" in PAGES[path] for path in shown)
