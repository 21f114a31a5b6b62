"""The commands of the pages on sharing run as they stand."""

import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import typer

from logitbank import cli
from logitbank.pipeline.exchange.decode import decode_to_file
from logitbank.stores import open_store

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "how-to" / "sharing.md").read_text()


def blocks(kind: str) -> list[str]:
    found = re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)
    return [line for block in found for line in re.sub(r"\\\n\s*", " ", block).replace("$ ", "").splitlines()]


def test_the_page_s_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All commands of the bash blocks, in order, in one empty folder and in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / "cache"))
    commands = [line for line in blocks("bash") if line.startswith("cli ")]
    assert len(commands) > 4
    for command in commands:
        monkeypatch.setattr(sys, "argv", shlex.split(command))
        with pytest.raises(SystemExit) as exited:
            cli.main()
        assert not exited.value.code, command
    decoded = np.load("dense.npy")  # of the store in a zip file
    decode_to_file(open_store("mine.zarr"), Path("same.npy"), rows="0:100", temperature=4.0)
    assert np.array_equal(decoded, np.load("same.npy"))


@pytest.mark.parametrize("line", [line for line in blocks("console") if line.startswith("cli ")])
def test_the_other_commands_are_spelled_right(line: str) -> None:
    _, name, *arguments = shlex.split(line)
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    known = {option for parameter in group.commands[name].params for option in parameter.opts}
    assert {argument for argument in arguments if argument.startswith("--")} <= known
