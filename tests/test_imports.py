"""The architecture, read from the source: who may import whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted([ROOT / "cli.py", *(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stores").rglob("*.py")])

# package -> prefixes that it must not import; the longest matching package rules.
FORBIDDEN = {
    "stores": ("torch", "torchvision", "timm", "pipeline", "cli", "typer"),
    "pipeline": ("cli", "typer", "pipeline.cache_teacher", "pipeline.train_student"),
    "pipeline.cache_teacher": ("cli", "typer", "pipeline.train_student"),
    "pipeline.train_student": ("cli", "typer", "pipeline.cache_teacher"),
    "pipeline.train_student.losses": ("cli", "typer", "pipeline.", "stores", "numpy", "zarr"),
    "pipeline.train_student.row_weights": ("cli", "typer", "pipeline.", "stores", "numpy", "zarr"),
    "pipeline.train_student.domains": ("cli", "typer", "pipeline.", "stores", "numpy", "zarr", "torch"),
    # what runs both stages one after the other, as the command line does
    "pipeline.demo": ("cli", "typer"),
    "pipeline.plots": ("cli", "typer", "pipeline.cache_teacher"),
    "pipeline.report": ("cli", "typer", "pipeline.cache_teacher"),
    "pipeline.options": ("cli", "pipeline.cache_teacher"),  # the command line's own options
    "cli": (),
}
_LOSSES = tuple(f"pipeline.train_student.{name}" for name in ("losses", "row_weights", "domains"))
ALLOWED = dict.fromkeys(_LOSSES, _LOSSES)


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
            yield ".".join(filter(None, (base, node.module)))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_imports_keep_the_architecture(path: Path) -> None:
    module = module_name(path)
    package = max((name for name in FORBIDDEN if f"{module}.".startswith(f"{name}.")), key=len)
    for imported in imports(path):
        if any(f"{imported}.".startswith(f"{name}.") for name in ALLOWED.get(package, ())):
            continue
        for prefix in FORBIDDEN[package]:
            assert not f"{imported}.".startswith(prefix if prefix.endswith(".") else f"{prefix}."), (
                f"{module} imports {imported}, which {package} must not"
            )


def test_the_reader_of_imports_sees_every_kind() -> None:
    path = ROOT / "pipeline" / "train_student" / "run.py"
    assert {"torch", "stores", "pipeline.train_student.losses", "pathlib"} <= set(imports(path))
    relative = ROOT / "pipeline" / "train_student" / "losses" / "table_recipes.py"
    assert "pipeline.train_student.losses.decoupled" in set(imports(relative))


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint('\\n'.join(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(out.stdout.split())


def test_stage_two_loads_nothing_of_stage_one() -> None:
    loaded = loaded_after("import pipeline.train_student.run")
    assert "pipeline.train_student.run" in loaded
    assert not {name for name in loaded if name.startswith("pipeline.cache_teacher")}


def test_a_store_is_read_without_torch() -> None:
    loaded = loaded_after("import stores")
    assert "zarr" in loaded
    assert not loaded & {"torch", "torchvision", "pipeline"}


def test_help_needs_no_heavy_library() -> None:
    loaded = loaded_after("import cli")
    assert not loaded & {"torch", "torchvision", "zarr", "numpy", "sklearn", "matplotlib"}
