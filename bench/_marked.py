"""The measured part of a page: what stands between two marks is written by the script that the first one names."""

from pathlib import Path


def rewrite(page: Path, script: str, part: str) -> None:
    """Writes the part anew.

    Raises:
        ValueError: The page has no such part.
    """
    begin, end = f"<!-- written by {script} -->", "<!-- to here -->"
    before, found, rest = page.read_text().partition(begin)
    if not found or end not in rest:
        raise ValueError(f"{page} has no part between {begin!r} and {end!r}; put them where it belongs")
    page.write_text(f"{before}{begin}\n{part}\n{end}{rest.partition(end)[2]}")


def part_of(page: Path, script: str) -> str:
    """What stands there."""
    rest = page.read_text().partition(f"<!-- written by {script} -->\n")[2]
    return rest.partition("\n<!-- to here -->")[0]
