"""How often teachers are right about a row, over views and teachers, as a row weight of a run."""

from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.answers.pass_rates import pass_rates
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

ENCODINGS = {
    "one": Encoding(kind="dense", num_classes=10, bits=16),
    "two": Encoding(kind="topk", num_classes=10, top_k=3),
}


@pytest.fixture(scope="module")
def store(digits: Split, fold_teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Fold teachers in three views, twice: dense, and their top three."""
    path = tmp_path_factory.mktemp("rates") / "store"
    views = Views(transform="flip-crop", num_views=3)
    teachers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(fold_teachers)), views)
    for name, encoding in ENCODINGS.items():
        cache_teacher(teachers, path, encoding=encoding, name=name)
    return open_store(path)


@pytest.mark.parametrize("teacher", ["one", "two", "one,two"])
def test_the_rate_is_the_share_of_right_answers(store: Store, digits: Split, teacher: str) -> None:
    answers, rows = open_answers(store, teacher=teacher), torch.arange(len(digits))
    right = [
        (part.logits(rows, view).argmax(1).numpy() == digits.labels) for part in answers.parts for view in range(3)
    ]
    rates = pass_rates(answers)
    np.testing.assert_allclose(rates.numpy(), np.mean(right, 0), rtol=1e-6)
    assert len(torch.unique(rates)) > 3
    answers.parts[0].labels[5] = -1
    assert bool(pass_rates(answers)[5].isnan())


def test_a_run_weighs_by_the_rates(store: Store, digits: Split, tmp_path: Path) -> None:
    asked = {"loss": "kd", "teacher": "one", "epochs": 1, "settings": {"row_weight": "paced", "paced_by": "views"}}
    by_views = train(store, digits, None, tmp_path / "views", asked=asked)
    by_student = train(store, digits, None, tmp_path / "student", asked={**asked, "settings": {"row_weight": "paced"}})
    assert by_views["weights_sha256"] != by_student["weights_sha256"]
