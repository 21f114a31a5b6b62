"""The pages on losses are what their generator would write today; `python -m docs.generate_losses` writes them anew."""

from __future__ import annotations

import json
import re
from pathlib import Path

from docs.generate_losses import pages
from logitbank.pipeline.train_student.losses import EVERY_LOSS, GROUPS, LOSSES

DOCS = Path(__file__).parent.parent / "docs"


def test_the_pages_are_up_to_date() -> None:
    for path, page in pages().items():
        assert path.read_text() == page, "run python -m docs.generate_losses"


def test_every_loss_that_sees_a_teacher_was_measured() -> None:
    wanted = {name for name, loss in LOSSES.items() if loss.fits == "teacher" or "target" in loss.options}
    for found in json.loads((DOCS / "measurements" / "loss-encoding.json").read_text()).values():
        for encoding in found["encodings"].values():
            for errors in encoding["rules"].values():
                assert set(errors) == wanted, "measure it: docs/measurements/losses-and-encodings.md says how"


def test_every_loss_is_in_one_group() -> None:
    named = sorted(name for group in GROUPS for name in group.names)
    assert named == sorted(EVERY_LOSS), "name it in one group of pipeline/train_student/losses/groups.py"


def test_the_figures_behind_what_to_try_first_are_those_measured() -> None:
    """Differences with their intervals stand on the pages that the advice links to."""
    interval = re.compile(r"\d+\.\d+ (?:±|\+-) \d+\.\d+")
    text = (DOCS / "reference" / "losses.md").read_text()
    advice = text[text.index("## Try these three first") : text.index("## The losses by what")]
    said = {found.replace("+-", "±") for found in interval.findall(" ".join(advice.split()))}
    measured = {
        found.replace("+-", "±")
        for page in ("measurements/students.md", "explanation/unreliable-teachers.md", "explanation/cross-fitting.md")
        for found in interval.findall(" ".join((DOCS / page).read_text().split()))
    }
    assert len(said) >= 5
    assert said <= measured
