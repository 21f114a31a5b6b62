"""Reads Markdown pages, and does what they tell a reader to do.

A page's blocks are run in order, in one empty folder:

- ``bash``: commands that run here; ``cli`` runs in this process, ``python FILE`` in one of its own;
- ``text`` right behind them: what they print. Numbers and hashes may differ, a line ``...`` stands for others, and a
  block that starts with ``error:`` says that the last command is refused;
- ``python``: part of one program, or, when the first line is a comment with a file's name, that file;
- ``console``: commands for a machine, a network or data that tests do not have: their options exist. The same holds for
  ``bash``;
- ``py``: Python that needs what tests do not have: it compiles.
"""

import contextlib
import io
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from logitbank import cli

ROOT = Path(__file__).parents[1]
_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"# (\S+\.\w+)\n")
_HASH = re.compile(r"\b(?=[0-9a-f]*\d)[0-9a-f]{7,}\b")
_NUMBER = re.compile(r"[-+]?\d+(?:[.,]\d+)*(?:e[-+]?\d+)?\*?")

PROGRAM = """
import runpy, sys
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
prepare_torchvision()  # transformers imports torchvision, whose default wheel does not fit every torch
sys.argv[:] = sys.argv[1:]
sys.path.insert(0, "")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: its kind, its text, and whether only blanks stand between it and the block before."""

    kind: str
    text: str
    follows: bool


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, end = [], -1
    for match in _FENCE.finditer(page):
        follows = end >= 0 and not page[end : match.start()].strip()
        found.append(Block(kind=match[1], text=match[2], follows=follows))
        end = match.end()
    return found


def commands(text: str) -> list[list[str]]:
    """The commands of a block, in words."""
    joined = re.sub(r"\\\n\s*", " ", text)
    lines = [shlex.split(line.removeprefix("$ "), comments=True) for line in joined.splitlines()]
    return [words for words in lines if words]


def options_of(words: list[str]) -> tuple[str, set[str]] | None:
    """The command of this program that a line calls, with the options it passes; None for other programs."""
    if words[0] == "torchrun":
        start = words.index("-m") + 2
        assert words[start - 1] == "logitbank", f"{words[start - 1]} is no module that installs"
    elif "cli" in words:
        start = words.index("cli") + 1
    else:
        return None
    name = words[start]
    passed = {word.partition("=")[0] for word in words[start + 1 :] if word.startswith("--")}
    return name, passed


def known_options(name: str) -> set[str]:
    """The options of a command; those of ``train-student`` belong to ``sweep`` as well."""
    group: Any = typer.main.get_command(cli.app)
    names = ["sweep", "train-student"] if name == "sweep" else [name]
    return {option for each in names for parameter in group.commands[each].params for option in parameter.opts}


def run_page(page: str) -> Iterator[tuple[str, str]]:
    """Runs a page in the current folder and yields (what was run, what it printed).

    Raises:
        AssertionError: A command fails that should not, the other way round, or it prints something else.
    """
    program: dict[str, Any] = {"__name__": "page"}
    here = blocks(page)
    for block, after in zip(here, [*here[1:], None], strict=True):
        expected = after.text if after is not None and after.kind == "text" and after.follows else None
        if block.kind == "bash":
            printed = run_commands(commands(block.text), refused=(expected or "").startswith("error:"))
        elif block.kind == "python" and (name := _FILE.match(block.text)):
            Path(name[1]).write_text(block.text)
            continue
        elif block.kind == "python":
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(block.text, "page", "exec"), program)
            printed = out.getvalue()
        elif block.kind == "py":
            compile(block.text, "page", "exec")
            continue
        else:
            continue
        if expected is not None:
            missing = first_missing(expected, printed)
            assert missing is None, f"{block.text}\nthe page has\n{missing}\nbut it prints\n{printed}"
        yield block.text, printed


def run_commands(lines: list[list[str]], *, refused: bool) -> str:
    """Runs the commands of a block; all succeed, or the last one is refused with exit code 2."""
    printed = ""
    for number, words in enumerate(lines):
        code, text = run_command(words)
        printed += text
        wanted = 2 if refused and number == len(lines) - 1 else 0
        assert code == wanted, f"{shlex.join(words)}: exit code {code}: {text}"
    return printed


def run_command(words: list[str]) -> tuple[int, str]:
    """Exit code and output of one command."""
    if words[0] == "python":
        done = subprocess.run([sys.executable, "-c", PROGRAM, *words[1:]], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr
    assert words[0] == "cli", f"expected cli or python, found {words[0]}"
    argv, sys.argv = sys.argv, words
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            cli.main()
    except SystemExit as exited:
        return int(exited.code or 0), said.getvalue()
    finally:
        sys.argv = argv
    return 0, said.getvalue()


def first_missing(expected: str, printed: str) -> str | None:
    """The first line of a page's output that the program did not print in that order; None when all are there."""
    lines = iter([masked(line) for line in printed.splitlines()])
    for line in expected.splitlines():
        if line.strip() in ("", "..."):
            continue
        wanted = masked(line)
        if not any(found.startswith(wanted[:-3]) if wanted.endswith("...") else found == wanted for found in lines):
            return line
    return None


def masked(line: str) -> str:
    """A line without what differs between machines: numbers, hashes and the width of columns."""
    return " ".join(_NUMBER.sub("#", _HASH.sub("#", line)).split())


def links(page: str) -> list[tuple[str, str]]:
    """(path, anchor) of the links that lead to files of this repository."""
    prose = _FENCE.sub("", page)
    return [(path, anchor) for path, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)#?([^)\s]*)\)", prose)]


def anchors(page: str) -> set[str]:
    """The names that headings can be linked by."""
    heads = re.findall(r"^#+ (.*)$", _FENCE.sub("", page), flags=re.MULTILINE)
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", head) for head in heads]
    return {re.sub(r"[^\w\- ]", "", head).lower().replace(" ", "-") for head in plain}
