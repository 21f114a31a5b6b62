"""The program in docs/python_api.md runs as it stands."""

import re
from pathlib import Path
from typing import Any

import pytest

from pipeline.cache_teacher.answers import NetworkAnswers
from pipeline.cache_teacher.run import cache_teacher
from pipeline.cache_teacher.teachers import load_teachers
from pipeline.datasets import Split
from pipeline.encoding import Encoding
from pipeline.views import Views

PAGE = (Path(__file__).parents[1] / "docs" / "python_api.md").read_text()


def test_the_page_s_program_runs_and_learns(
    digits: Split, plain_teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = NetworkAnswers(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, tmp_path / "digits.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=8))
    monkeypatch.chdir(tmp_path)
    program: dict[str, Any] = {}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert len(blocks) == 3
    for block in blocks:
        exec(compile(block, "docs/python_api.md", "exec"), program)
    best = program["student"](program["x"]).argmax(1)
    assert float((best == program["y"]).float().mean()) > 0.8
