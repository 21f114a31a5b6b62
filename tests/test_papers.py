"""The page on papers has each paper in one place: served with a command, or with the reason why not.

The commands themselves run in test_docs.py.
"""

import re
from pathlib import Path

PAGE = (Path(__file__).parents[1] / "docs" / "explanation" / "papers.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL))
PLACES = {"Served": 13, "Served in part": 10, "Not served, by their nature": 18}


def paragraphs(section: str) -> list[str]:
    """What stands from one paper in bold to the next."""
    return re.findall(r"^\*\*.*?(?=^\*\*|^\|)", f"{section}|", flags=re.MULTILINE | re.DOTALL)


def rows(section: str) -> list[list[str]]:
    lines = [line.strip("|").split(" | ") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def test_each_paper_has_its_place() -> None:
    found = {
        name: len(paragraphs(SECTIONS[name])) + sum(len(row[0].split("; ")) for row in rows(SECTIONS[name]))
        for name in PLACES
    }
    assert found == PLACES


def test_what_is_served_is_a_command() -> None:
    for name in ("Served", "Served in part"):
        for paragraph in paragraphs(SECTIONS[name]):
            assert re.search(r"```bash\ncli ", paragraph), paragraph[:60]
    assert not rows(SECTIONS["Served"])


def test_what_is_not_served_has_its_reason() -> None:
    for name in ("Served in part", "Not served, by their nature", "Losses of other papers"):
        for row in rows(SECTIONS[name]):
            assert all(row), row
