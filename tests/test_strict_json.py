"""What is written as JSON can be read by anybody: its standard knows neither NaN nor infinity."""

import ast
import math
from pathlib import Path

import pytest

from logitbank.pipeline.files.strict_json import to_json
from logitbank.pipeline.train_student.folder import write_json

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_named_and_nothing_is_written(value: float, tmp_path: Path) -> None:
    content = {"accuracy": 0.5, "test": {"per_class": [{"nll": 0.1}, {"nll": value}]}}
    with pytest.raises(ValueError, match=f"test.per_class.1.nll is {value}"):
        write_json(tmp_path / "result.json", content)
    assert list(tmp_path.iterdir()) == []
    assert to_json({"a": [1.5, None]}) == '{"a": [1.5, null]}'


def test_nothing_in_the_program_writes_json_without_looking() -> None:
    """Every ``json.dumps`` says ``allow_nan=False``."""
    found = []
    for path in [ROOT / "cli.py", *(ROOT / "pipeline").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            called = ast.unparse(node.func) if isinstance(node, ast.Call) else ""
            if called in ("json.dumps", "json.dump"):
                assert isinstance(node, ast.Call)
                strict = any(
                    keyword.arg == "allow_nan" and ast.unparse(keyword.value) == "False" for keyword in node.keywords
                )
                found += [] if strict else [f"{path.relative_to(ROOT)}:{node.lineno}"]
    assert found == []
