"""What cells leave behind when they are written is what their rows say, and spares whoever finishes reading them."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.begin import begin_pass
from logitbank.pipeline.cache_teacher.passes import Pass
from logitbank.pipeline.cache_teacher.sums import Spread
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding, decode_log_prob
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.views import Views
from logitbank.stores import StoreError, open_store
from tests.test_stores_kill import contents

ENCODINGS = (
    Encoding(kind="topk", num_classes=10, top_k=3, bits=8),
    Encoding(kind="topk", num_classes=10, top_k=3, bits=16),
    Encoding(kind="dense", num_classes=10, bits=8),
    Encoding(kind="dense", num_classes=10, bits=32),
)


def begun(digits: Split, weights: Path, out: Path, encoding: Encoding) -> Pass:
    plan = FoldPlan(num_folds=3)
    teachers = load_teachers(digits, "mlp:32", str(weights), plan=plan)
    views = Views(transform="flip-crop", num_views=2)
    return begin_pass(NetworkTeacher(digits, teachers, views), out, encoding=encoding, block_rows=500)


@pytest.mark.parametrize("encoding", ENCODINGS, ids=lambda encoding: f"{encoding.kind}-{encoding.bits}")
def test_a_store_is_the_same_whoever_left_sums_and_in_whatever_order(
    digits: Split, fold_teachers: Path, tmp_path: Path, encoding: Encoding
) -> None:
    """Cells without sums, or with sums of other rows or damaged ones, are read."""
    written = begun(digits, fold_teachers, tmp_path / "s.zarr", encoding)
    for cell in written.cells()[::-1]:
        written.write(cell)
    notes = tmp_path / "s.zarr/teachers/teacher/notes/c"
    shutil.copytree(tmp_path / "s.zarr", tmp_path / "t.zarr")
    summary = written.finish()
    assert not notes.parent.exists()
    other = tmp_path / "t.zarr/teachers/teacher/notes/c"
    (other / "0/0").unlink()
    shutil.copy(other / "1/0", other / "1/1")
    (other / "0/1").write_bytes((other / "0/1").read_bytes()[:-1])
    begun(digits, fold_teachers, tmp_path / "t.zarr", encoding).finish()
    assert contents(tmp_path / "s.zarr") == contents(tmp_path / "t.zarr")
    stored = StoredAnswers(open_store(tmp_path / "s.zarr"))
    rows = torch.arange(len(digits))
    log_prob = torch.stack([decode_log_prob(stored.logits(rows, view)) for view in range(2)])
    right = (log_prob.argmax(2).numpy() == digits.labels).mean()
    assert summary["accuracy"] == pytest.approx(right)
    sure = sum(b["count"] * b["confidence"] for b in summary["reliability"]) / (2 * len(digits))
    assert sure == pytest.approx(float(log_prob.amax(2).exp().mean()), abs=1e-3)
    assert sum(fold["num_rows"] for fold in summary["per_fold"]) == summary["num_rows"] == len(digits)


def test_rows_are_not_read_where_sums_are(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    """A damaged array of the second view is found by whoever reads it, and by no one else."""
    for name in ("with", "without"):
        written = begun(digits, fold_teachers, tmp_path / name, ENCODINGS[0])
        for cell in written.cells():
            written.write(cell)
        damaged = tmp_path / name / "teachers/teacher/index/c/1/0/0"
        damaged.write_bytes(damaged.read_bytes()[:-1])
    assert begun(digits, fold_teachers, tmp_path / "with", ENCODINGS[0]).finish()["num_rows"] == len(digits)
    shutil.rmtree(tmp_path / "without/teachers/teacher/notes")
    with pytest.raises(StoreError, match="index"):
        begun(digits, fold_teachers, tmp_path / "without", ENCODINGS[0]).finish()


def test_numbers_that_come_in_blocks_have_the_mean_and_spread_of_all() -> None:
    rng = np.random.default_rng(0)
    values, folds = rng.normal(1e4, 1, 1000), rng.integers(0, 3, 1000)
    spread = Spread(4)
    for start in range(0, 1000, 97):
        spread.add(values[start : start + 97], folds[start : start + 97])
    assert list(spread.of_all()) == pytest.approx([1000, values.mean(), values.std()])
    for fold in range(3):
        own = values[folds == fold]
        assert list(spread.of(fold)) == pytest.approx([len(own), own.mean(), own.std()])
    assert spread.of(3) == (0, 0, 0)
