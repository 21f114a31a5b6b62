"""The README's commands run as they stand, and its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONSOLE = [
    line
    for block in re.findall(r"```console\n(.*?)```", README, flags=re.DOTALL)
    for line in re.sub(r"\\\n\s*", " ", block).replace("$ ", "").splitlines()
]
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL) for line in block.splitlines()]


def test_the_newcomers_commands_run(tmp_path: Path) -> None:
    """All commands of the bash blocks, in order, in one empty folder."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}
    assert len(COMMANDS) > 8
    for command in COMMANDS:
        program, *arguments = shlex.split(command)
        assert program == "cli"
        done = subprocess.run(
            [sys.executable, str(ROOT / "cli.py"), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
    assert (tmp_path / "runs" / "kd" / "result.json").is_file()


@pytest.mark.parametrize("line", [line for line in CONSOLE if line.startswith("cli")])
def test_the_other_commands_are_spelled_right(line: str) -> None:
    """Commands that need data of the reader's own: their names and options exist."""
    _, name, *arguments = shlex.split(line, comments=True)
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    known = {option for parameter in group.commands[name].params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known


def test_the_makefile_has_the_two_commands() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    named = {line.split("#")[0].split()[1] for line in CONSOLE if line.startswith("make")}
    assert named == {"demo", "test"}
    assert named <= targets


def test_every_command_stands_in_the_readme() -> None:
    for command in typer.main.get_command(cli.app).commands:  # type: ignore[attr-defined]
        assert f"cli {command}" in README or f"`{command}`" in README or command == "demo", command


@pytest.mark.parametrize("target", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_links_lead_somewhere(target: str) -> None:
    assert (ROOT / target).exists()
