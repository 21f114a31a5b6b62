"""The page on data of tests and benchmarks names them all, and the program that looks for the files tells the truth."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench._data import CIFAR_FOLDER, FILES, MADE, Published, cifar_root, resnet_file
from tests.pages import ROOT
from tests.realdata import needs

PAGE = (ROOT / "docs" / "reference" / "benchmark-data.md").read_text()


def test_every_benchmark_has_a_line() -> None:
    named = set(re.findall(r"^\| `((?:bench|docs)/[\w/.]+)` \| \S", PAGE, flags=re.MULTILINE))
    found = {f"bench/{path.name}" for path in (ROOT / "bench").glob("[!_]*") if path.suffix in (".py", ".sh")}
    measured = (ROOT / "docs" / "measurements").glob("[!_]*.py")
    assert named == found | {str(path.relative_to(ROOT)) for path in measured}


def test_every_benchmark_runs_or_says_that_it_is_skipped() -> None:
    """`python -m bench` gives no arguments."""
    for path in (ROOT / "bench").glob("[!_]*.py"):
        for asked in re.findall(r"add_argument\((.*)\)", path.read_text()):
            optional = asked.startswith('"-') or "nargs=" in asked
            assert optional, f"{path.name} needs {asked}: make it optional, and print a line with `skipped` without it"
            assert "required=True" not in asked, f"{path.name} needs {asked}: print a line with `skipped` without it"


def test_every_file_has_its_place_in_the_page() -> None:
    for path in (*(file.path for file in FILES), *MADE):
        folder, _, name = path.rpartition("/")
        assert f"{folder}/" in PAGE
        assert name.partition(".")[0] in PAGE or folder == "cifar-10-batches-py", path


def test_files_of_tests_that_need_data_are_known() -> None:
    known = {*(file.path for file in FILES), *MADE}
    for test in {*(ROOT / "tests").glob("test_*.py")} - {Path(__file__)}:
        for called in re.findall(r"\bneeds\(([^)]*)\)", test.read_text()):
            for part in re.findall(r'"([^"{}]+)"', called):
                assert part in known, f"{test.name} needs {part}"


def test_a_test_that_lacks_a_file_says_which() -> None:
    mark = needs("nothing/of-the-kind.bin").mark
    assert mark.args == (True,)
    assert "nothing/of-the-kind.bin" in mark.kwargs["reason"]


def test_what_is_here_missing_or_another(tmp_path: Path) -> None:
    file = Published(path="a/b", digest="2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae", source="x")
    assert file.state(tmp_path) == "missing"
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b").write_text("foo")
    assert file.state(tmp_path) == "here"
    (tmp_path / "a" / "b").write_text("bar")
    assert file.state(tmp_path) == "differs"


def test_files_are_found_as_they_are_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no resnet20-.*python -m bench._data says"):
        resnet_file(tmp_path, 20)
    with pytest.raises(ValueError, match=f"no {CIFAR_FOLDER}"):
        cifar_root(tmp_path, tmp_path)
    (tmp_path / CIFAR_FOLDER).mkdir()
    (tmp_path / "weights").mkdir()
    names = [file.path for file in FILES if file.path.startswith("weights/")]
    for name in names:
        (tmp_path / name).touch()
    assert [resnet_file(tmp_path, depth) for depth in (20, 32, 44, 56)] == [tmp_path / name for name in names]
    assert cifar_root(tmp_path, tmp_path / "unused") == tmp_path


def test_the_program_says_what_is_missing_and_fetches_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench._data", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == len(FILES) + len(MADE)
    assert f"missing  {FILES[0].path}  {FILES[0].source}" in done.stdout
    assert not list(tmp_path.iterdir())
    nowhere = subprocess.run(
        [*command[:-1], str(tmp_path / "no")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (nowhere.returncode, nowhere.stderr.count("\n")) == (2, 1)
