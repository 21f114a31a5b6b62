"""Help says what was written; versions and completion are there."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from logitbank import cli
from tests.pages import run_command

GROUP: Any = typer.main.get_command(cli.app)


def shown(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What a command prints, without frames and line breaks."""
    monkeypatch.setenv("COLUMNS", "200")
    code, text = run_command(["cli", *words])
    assert code == 0
    return " ".join(text.replace("│", " ").split())


@pytest.mark.parametrize("name", GROUP.commands)
def test_help_swallows_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every word of the docstring and of each option's help, in order: rich takes words in brackets for tags."""
    text = shown([name, "--help"], monkeypatch)
    command = GROUP.commands[name]
    for written in (command.help, *(parameter.help for parameter in command.params)):
        assert " ".join(written.split()) in text


def test_the_commands_stand_in_their_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(["--help"], monkeypatch)
    places = [text.index(f"─ {panel} ─") for panel in cli.GROUPS]
    assert places == sorted(places)
    for start, end, commands in zip(places, [*places[1:], len(text)], cli.GROUPS.values(), strict=True):
        for command in commands:
            assert f" {command.__name__.replace('_', '-')} " in text[start:end]
    assert "float32 [rows, classes]" in text


def test_help_fits_a_narrow_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = run_command(["cli", "--help"])[1].splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("…" in line for line in lines)


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(["--version"], monkeypatch)
    assert "logitbank 0." in text
    assert "torch 2." in text


def script(*words: str, home: Path, **environment: str) -> str:
    """What the installed command prints."""
    command = [str(Path(sys.executable).with_name("cli")), *words]
    environment = {**os.environ, "HOME": str(home), "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def test_completion_is_installed_and_completes(tmp_path: Path) -> None:
    script("--install-completion", "bash", home=tmp_path)
    assert "cli" in (tmp_path / ".bashrc").read_text()
    assert "_CLI_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "cli.sh").read_text()
    asked = {"_CLI_COMPLETE": "complete_bash", "COMP_WORDS": "cli train-", "COMP_CWORD": "1"}
    assert script(home=tmp_path, **asked).split() == ["train-teacher", "train-student"]
    asked |= {"COMP_WORDS": "cli decode --temp", "COMP_CWORD": "2"}
    assert script(home=tmp_path, **asked).split() == ["--temperature"]
