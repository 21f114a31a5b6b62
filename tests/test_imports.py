"""The architecture, read from the source: who may import whom."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import logitbank

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stores").rglob("*.py")])
LINKS = ("pipeline", "stores", "cli.py")  # of the folder logitbank, so that there is one name

# what stage one alone needs of the encoding
_FITTING = ("pipeline.encoding.encode", "pipeline.encoding.fitting")

# room -> rooms and libraries that it must not import; the longest matching room rules.
_ABOVE = ("cli", "typer", "pipeline.commands", "pipeline.look", "pipeline.exchange")
_STAGES = ("pipeline.cache_teacher", "pipeline.train_student")
_BELOW_ALL = ("pipeline.", *_ABOVE, "torch", "torchvision", "timm", "zarr", "numpy")
FORBIDDEN = {
    "stores": ("torch", "torchvision", "timm", "pipeline", "cli", "typer"),
    "stores.format": (
        "torch",
        "pipeline",
        "cli",
        "typer",
        "stores.read",
        "stores.write",
        "stores.share",
        "stores.locks",
    ),
    "stores.read": ("torch", "pipeline", "cli", "typer", "stores.write", "stores.share"),
    "stores.write": ("torch", "pipeline", "cli", "typer", "stores.share"),
    "pipeline": (*_ABOVE, *_STAGES),
    "pipeline.spelling": _BELOW_ALL,
    "pipeline.domains": tuple(name for name in _BELOW_ALL if name != "pipeline."),
    "pipeline.files": ("torch", *_ABOVE, *_STAGES, "pipeline.datasets", "pipeline.views", "pipeline.models"),
    "pipeline.datasets": (*_ABOVE, *_STAGES, "pipeline.views", "pipeline.models", "pipeline.answers", "pipeline.fit"),
    "pipeline.views": (*_ABOVE, *_STAGES, "pipeline.models", "pipeline.answers", "pipeline.fit"),
    "pipeline.models": (*_ABOVE, *_STAGES, "pipeline.answers", "pipeline.fit", "pipeline.encoding"),
    "pipeline.processes": ("pipeline.", *_ABOVE),
    "pipeline.encoding": (*_ABOVE, *_STAGES, "pipeline.datasets", "pipeline.views", "pipeline.models", "pipeline.fit"),
    "pipeline.answers": (*_ABOVE, *_STAGES, "pipeline.models", "pipeline.fit", *_FITTING),
    "pipeline.fit": (*_ABOVE, *_STAGES, "pipeline.answers", "pipeline.encoding"),
    "pipeline.cache_teacher": ("cli", "typer", "pipeline.commands", "pipeline.look", "pipeline.train_student"),
    "pipeline.train_student": (*_ABOVE, "pipeline.cache_teacher", *_FITTING),
    "pipeline.train_student.losses": ("cli", "typer", "pipeline.", "stores", "numpy", "zarr"),
    "pipeline.train_student.losses.domains": ("cli", "typer", "pipeline.", "stores", "numpy", "zarr", "torch"),
    "pipeline.use_student": ("cli", "typer", "pipeline.commands", "pipeline.look", "pipeline.cache_teacher", *_FITTING),
    "pipeline.generations": ("cli", "typer", "pipeline.commands", "pipeline.look", "pipeline.exchange"),
    "pipeline.look": ("cli", "typer", "pipeline.commands"),
    "pipeline.exchange": ("cli", "typer", "pipeline.commands", "pipeline.look", *_STAGES, *_FITTING),
    "pipeline.commands": ("cli",),
}
# what a room may import although its rule names it
ALLOWED = {
    "pipeline.train_student.losses": ("pipeline.train_student.losses",),
    "pipeline.train_student.losses.domains": ("pipeline.train_student.losses",),
    "pipeline.processes": ("pipeline.processes",),
    "pipeline.cache_teacher": (),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            yield ".".join(filter(None, ("logitbank" if base else "", base, node.module)))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_keep_the_architecture(path: Path) -> None:
    module = module_name(path)
    package = max((name for name in FORBIDDEN if f"{module}.".startswith(f"{name}.")), key=len)
    for full in imports(path):
        assert not f"{full}.".startswith(("pipeline.", "stores.")), f"{module} imports {full}; say logitbank.{full}"
        imported = full.removeprefix("logitbank.")
        if any(f"{imported}.".startswith(f"{name}.") for name in ALLOWED.get(package, ())):
            continue
        for prefix in FORBIDDEN[package]:
            assert not f"{imported}.".startswith(prefix if prefix.endswith(".") else f"{prefix}."), (
                f"{module} imports {imported}, which {package} must not"
            )


def test_the_reader_of_imports_sees_every_kind() -> None:
    path = ROOT / "pipeline" / "train_student" / "plan.py"
    expected = {"torch", "logitbank.pipeline.views", "logitbank.pipeline.train_student.losses", "pathlib"}
    assert expected <= set(imports(path))
    relative = ROOT / "pipeline" / "train_student" / "losses" / "table_recipes.py"
    assert "logitbank.pipeline.train_student.losses.decoupled" in set(imports(relative))


@pytest.mark.parametrize("folder", ["pipeline/answers", "pipeline/encoding", "stores/format", "stores/read"])
def test_files_of_a_room_import_each_other_in_one_direction(folder: str) -> None:
    """Also what only type checkers import."""
    files = {f"logitbank.{module_name(path)}": path for path in (ROOT / folder).glob("*.py") if path.stem != "__init__"}
    left = {module: {name for name in imports(path) if name in files} for module, path in files.items()}
    while free := {module for module, needs in left.items() if not needs & set(left)}:
        left = {module: needs for module, needs in left.items() if module not in free}
    assert not left, f"a circle: {', '.join(sorted(left))}"


ROOMS = sorted(path.parent for top in ("pipeline", "stores") for path in (ROOT / top).rglob("__init__.py"))


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: str(room.relative_to(ROOT)))
def test_a_room_says_which_files_it_has(room: Path) -> None:
    """And folders."""
    said = set(re.findall(r"\w+", ast.get_docstring(ast.parse((room / "__init__.py").read_text())) or ""))
    there = {path.stem for path in room.glob("[!_]*.py")} | {path.parent.name for path in room.glob("*/__init__.py")}
    assert there <= said, f"the docstring of {room.name}/__init__.py lacks {', '.join(sorted(there - said))}"


def room_of(module: str) -> str:
    """A module's room, as CONTRIBUTING.md names it."""
    top, _, rest = module.partition(".")
    if f"{rest}.".startswith("train_student.losses."):
        return "train_student/losses"
    return "stores/" if top == "stores" else rest.partition(".")[0]


def test_the_map_of_rooms_is_true() -> None:
    """Every room stands in the map of CONTRIBUTING.md, and imports only from lines below its own."""
    rows = re.findall(r"^\| (`.*?`) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    line_of = {room: line for line, row in enumerate(rows) for room in re.findall(r"`(.+?)`", row)}
    modules = {room_of(module_name(path)) for path in SOURCES} - {""}
    assert set(line_of) == modules
    for path in SOURCES:
        room = room_of(module_name(path))
        for full in imports(path):
            top, _, name = full.partition(".")
            imported = room_of(name) if top == "logitbank" else ""
            assert not room or imported in ("", "cli", room) or line_of[imported] > line_of[room], f"{path}: {full}"


def table_of_rules() -> str:
    """What ``FORBIDDEN`` says, in Markdown."""
    lines = ["| module | must not import |", "|---|---|"]
    for module, names in FORBIDDEN.items():
        allowed = "".join(f"; but for `{name}`" for name in ALLOWED.get(module, ()))
        said = [f"`{name}`" if name != "pipeline." else "anything of `pipeline`" for name in names]
        lines.append(f"| `{module}` | {', '.join(said)}{allowed} |")
    return "\n".join(lines) + "\n"


def test_the_page_for_maintainers_has_the_rules() -> None:
    page = ROOT / "docs" / "reference" / "maintaining.md"
    assert table_of_rules() in page.read_text(), f"put this into {page}:\n{table_of_rules()}"


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_stage_two_loads_nothing_of_stage_one() -> None:
    loaded = loaded_after("import logitbank.pipeline.train_student.run")
    assert "logitbank.pipeline.train_student.run" in loaded
    fitting = {f"logitbank.{name}" for name in _FITTING}
    assert not {name for name in loaded if name.startswith("logitbank.pipeline.cache_teacher") or name in fitting}


def test_a_store_is_read_and_written_without_torch_or_network() -> None:
    loaded = loaded_after("from logitbank.stores import create_store, open_store")
    assert "zarr" in loaded
    assert not loaded & {"torch", "torchvision", "logitbank.pipeline", "fsspec.implementations.http", "aiohttp"}
    assert not {name for name in loaded if name.startswith(("logitbank.stores.share", "urllib.request", "http.client"))}


def test_help_needs_no_heavy_library() -> None:
    loaded = loaded_after("from logitbank import cli")
    assert not loaded & {"torch", "torchvision", "zarr", "numpy", "sklearn", "matplotlib"}


def test_the_public_names_load_nothing_until_they_are_asked_for() -> None:
    loaded = loaded_after("import logitbank; dir(logitbank)")
    assert not loaded & {"torch", "zarr", "numpy", "logitbank.pipeline", "logitbank.stores"}


@pytest.mark.parametrize("name", logitbank.__all__)
def test_every_public_name_is_there_and_says_what_it_is(name: str) -> None:
    assert getattr(logitbank, name).__doc__
    assert name in dir(logitbank)


def test_the_version_is_that_of_what_is_installed() -> None:
    assert logitbank.__version__ == version("logitbank")


def test_type_checkers_see_the_same_names() -> None:
    homes: dict[str, str] = {}
    for node in ast.walk(ast.parse((ROOT / "logitbank" / "__init__.py").read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None and node.module.startswith("logitbank."):
            homes |= {alias.name: node.module.removeprefix("logitbank.") for alias in node.names}
    assert homes == logitbank._HOMES


def test_a_name_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(AttributeError, match="train_student"):
        _ = logitbank.train_students


@pytest.mark.parametrize("name", LINKS)
def test_the_package_is_the_folders_at_the_top(name: str) -> None:
    assert (ROOT / "logitbank" / name).samefile(ROOT / name)


def test_no_more_than_eight_loose_files() -> None:
    assert len(list((ROOT / "pipeline").glob("*.py"))) <= 8
    assert len(list((ROOT / "stores").glob("*.py"))) <= 8


def test_the_command_line_only_builds_the_application() -> None:
    assert len((ROOT / "cli.py").read_text().splitlines()) < 150
