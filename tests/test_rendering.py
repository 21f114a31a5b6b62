"""Pages in a browser: ``python -m docs.check_rendering`` finds what it should, and finds nothing in ours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from docs import check_rendering
from docs.check_rendering import ROOT, as_html, broken_links, chromium, faults_of

LOOKED_AT = ("README.md", "docs/tutorial.md", "docs/how-to/choose-an-encoding.md")  # all: `make rendering`


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if check_rendering.browser_path() is None:
        pytest.skip("no chromium here")
    with chromium() as started:
        yield started


@pytest.mark.parametrize("name", LOOKED_AT)
def test_pages_fit_telephones_tablets_and_laptops(browser: Any, name: str) -> None:
    assert faults_of(browser, ROOT / name) == []


def test_what_is_wrong_is_found(browser: Any, tmp_path: Path) -> None:
    word = "x" * 200
    page = tmp_path / "page.md"
    page.write_text(
        f"# A *page*: `of` faults\n\n| a | b |\n|---|---|\n| {word} | 1 |\n\n<p style='width: 500px'>wide</p>\n\n"
        "![words](none.png) ![](none.png)\n\n"
        "[a](none.md) [b](#a-page-of-fault) [c](#a-page-of-faults) [d](page.md#a)\n\n"
        f"```text\n{word}\n```\n\n{word}\n"
    )
    said = faults_of(browser, page)
    assert [fault for fault in said if "link" in fault] == [
        "link none.md: no such file",
        "link #a-page-of-fault: no such heading",
        "link page.md#a: no such heading",
    ]
    assert sum("does not load" in fault for fault in said) == 4  # two pictures, light and dark
    assert "picture none.png has no words" in said
    assert sum("the page scrolls sideways" in fault for fault in said) == 1  # on the telephone
    assert [fault.split(" px")[0] for fault in said if "table" in fault] == ["400", "800", "1200"]
    assert not any("pre " in fault or ": p " in fault for fault in said)


def test_headings_have_the_names_that_github_gives_them(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# `cli` & [more](page.md)\n\n## Twice\n\n## Twice\n\n[a](#cli--more) [b](#twice) [c](#twice-1)\n")
    assert broken_links(page) == []
    assert 'id="cli--more"' in as_html(page)
