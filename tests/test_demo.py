"""The demo from end to end, with fewer epochs; `make demo` runs it whole."""

import json
from pathlib import Path

import pytest

from logitbank.pipeline.commands import demo
from logitbank.pipeline.fit import Training

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "TEACHER_TRAINING", Training(epochs=2))
    monkeypatch.setattr(demo, "STUDENT_EPOCHS", 2)


def test_the_demo_does_the_whole_job(short: None, tmp_path: Path) -> None:
    said: list[str] = []
    out = tmp_path / "demo"
    report = demo.run_demo(out, seeds=3, say=said.append)
    text = "\n".join(said)
    for method in demo.METHODS:
        assert text.count(method) >= 2
    assert {"hard labels", "KD (Hinton)", "cross-fitting + correction"} <= {row["name"] for row in report["rows"]}
    assert all(row["num_seeds"] == 3 for row in report["rows"])
    assert "within noise" in text
    assert "(out-of-fold)" in text
    assert (out / "demo.png").read_bytes().startswith(PNG_SIGNATURE)
    assert json.loads((out / demo.MARKER).read_text())["seeds"] == 3
    assert len(list(out.glob("students/*/result.json"))) == 3 * len(demo.METHODS)
    said.clear()
    assert demo.run_demo(out, seeds=3, say=said.append) == json.loads((out / demo.MARKER).read_text())
    assert said[0].startswith(f"already there: {out}\n")
    with pytest.raises(ValueError, match="is a demo with --seeds 3"):
        demo.run_demo(out, seeds=4, say=said.append)
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_the_demo_touches_only_a_demo(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="not a demo"):
        demo.run_demo(tmp_path, seeds=3, say=lambda _: None)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_an_interval_needs_three_seeds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 3"):
        demo.run_demo(tmp_path / "demo", seeds=2, say=lambda _: None)
    assert list(tmp_path.iterdir()) == []
