"""What README and pages promise names the tests that keep it, in a comment that a reader does not see."""

import re
from pathlib import Path

import pytest

from tests.pages import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_CLAIM = re.compile(r"<!-- kept by\s+(.*?) -->", flags=re.DOTALL)
_TEST = re.compile(r"(tests/test_\w+\.py)::(test_\w+)")
LEAST = 12


def claims(page: Path) -> list[list[str]]:
    """The tests of each claim of a page."""
    return [found.split() for found in _CLAIM.findall(page.read_text())]


@pytest.mark.parametrize("page", [page for page in PAGES if claims(page)], ids=lambda page: page.name)
def test_claims_name_tests_that_exist(page: Path) -> None:
    for tests in claims(page):
        for test in tests:
            match = _TEST.fullmatch(test)
            assert match, f"{test} is no test"
            assert f"def {match[2]}(" in (ROOT / match[1]).read_text(), f"{test} is not there"


def test_a_page_spells_every_claim_so() -> None:
    for page in PAGES:
        assert page.read_text().count("kept by tests/") == len(claims(page)), page


def test_all_that_the_readme_says_to_rely_on_is_kept() -> None:
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## What to rely on") :].split("\n## ")[0]
    promises = section.split("\n- ")[1:]
    assert len(promises) >= 5
    assert all(_CLAIM.search(promise) for promise in promises)
    assert sum(len(claims(page)) for page in PAGES) >= LEAST
