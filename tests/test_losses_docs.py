"""The page on losses is what its generator would write today; `python -m docs.generate_losses` writes it anew."""

from __future__ import annotations

import json
from pathlib import Path

from docs.generate_losses import page
from logitbank.pipeline.train_student.losses import LOSSES

DOCS = Path(__file__).parent.parent / "docs"


def test_the_page_is_up_to_date() -> None:
    assert (DOCS / "reference" / "losses.md").read_text() == page(), "run python -m docs.generate_losses"


def test_every_loss_that_sees_a_teacher_was_measured() -> None:
    wanted = {name for name, loss in LOSSES.items() if loss.fits == "teacher" or "target" in loss.options}
    for found in json.loads((DOCS / "measurements" / "loss-encoding.json").read_text()).values():
        for encoding in found["encodings"].values():
            for errors in encoding["rules"].values():
                assert set(errors) == wanted
