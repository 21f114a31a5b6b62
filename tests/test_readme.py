"""The README's commands run as they stand, and name every command; its links are held by ``test_docs``."""

import re
from pathlib import Path

import pytest

from logitbank.pipeline.train_student.losses.table import EVERY_LOSS
from tests.pages import ROOT, blocks, commands, known_options, options_of, run_page
from tests.test_cli import OPTIONS

README = (ROOT / "README.md").read_text()
CALLS = [words for block in blocks(README) if block.kind in ("bash", "console") for words in commands(block.text)]


def test_the_newcomers_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of the bash blocks, in order, in one empty folder."""
    monkeypatch.chdir(tmp_path)
    assert len(list(run_page(README))) >= 1
    assert (tmp_path / "runs" / "kd" / "result.json").is_file()


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_commands_are_spelled_right(words: list[str]) -> None:
    """Also those that need data of the reader's own: their names and options exist."""
    called = options_of(words)
    if called is not None:
        command, options = called
        assert options <= known_options(command)


def test_the_makefile_has_the_two_commands() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {words[1] for words in CALLS if words[0] == "make"}
    assert named == {"demo", "test"}
    assert named <= targets


def test_every_command_stands_in_the_readme() -> None:
    missing = [command for command in OPTIONS if f"`{command}`" not in README]
    assert not missing, "name them in the table of commands"


def test_the_readme_is_short_and_counts_the_losses() -> None:
    assert len(README.splitlines()) < 200
    assert "any of more than 40 losses" in " ".join(README.split())
    assert len(EVERY_LOSS) > 40
