"""Where the real logits are that some tests and benches use; they skip when there are none."""

import os
from pathlib import Path

import pytest


def _find() -> Path | None:
    named = os.environ.get("LOGITBANK_DATA")
    path = Path(named) if named else Path(__file__).parents[2] / "shared" / "data"
    return path if (path / "logits").is_dir() else None


DATA: Path | None = _find()
needs_real_data = pytest.mark.skipif(DATA is None, reason="set LOGITBANK_DATA to a folder with real logits")
