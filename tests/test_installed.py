"""What the wheel installs works from a folder whose own modules have the names of this repository's folders."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import logitbank
from tests.pages import ROOT

SOURCE = ("pyproject.toml", "README.md", "LICENSE", "cli.py", "logitbank", "pipeline", "stores")
EVERY_NAME = """
import logitbank, pipeline, stores, cli
print(logitbank.__file__)
store = logitbank.open_store({store!r})
print([getattr(logitbank, name).__name__ for name in ("Views", "train_student")], store.num_examples)
assert pipeline.mine and stores.mine and cli.mine
"""


def python(*arguments: str, cwd: Path, site: Path | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **({} if site is None else {"PYTHONPATH": str(site)})}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of installed packages, made from a wheel made from the files of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in SOURCE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-input", "-q")
    python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", ".", "./source", cwd=folder)
    (wheel,) = folder.glob("*.whl")
    python(*pip, "install", "--no-deps", "--no-index", "--no-compile", "--target", "site", wheel.name, cwd=folder)
    return folder / "site"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A user's folder: other things under the same names."""
    for name in ("pipeline", "stores"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("mine = True")
    (tmp_path / "cli.py").write_text("mine = True")
    return tmp_path


def test_nothing_of_the_users_shadows_it(site: Path, own: Path) -> None:
    store = next((ROOT / "tests" / "golden").glob("*.zarr"))
    said = python("-c", EVERY_NAME.format(store=str(store)), cwd=own, site=site)
    assert said.splitlines()[0] == str(site / "logitbank" / "__init__.py")
    assert "['Views', 'train_student']" in said
    assert "train-student" in python("-m", "logitbank", "--help", cwd=own, site=site)


def test_the_wheel_holds_every_module_once(site: Path) -> None:
    top = {path.name for path in site.iterdir() if not path.name.endswith(".dist-info")} - {"bin"}
    assert top == {"logitbank"}
    here = Path(logitbank.__file__).parent
    wanted = {path.relative_to(here) for name in ("", "pipeline", "stores") for path in (here / name).rglob("*.py")}
    assert wanted == {path.relative_to(site / "logitbank") for path in (site / "logitbank").rglob("*.py")}
