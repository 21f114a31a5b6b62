"""Shared by all tests: one CPU thread (the networks are tiny), digits, and small trained teachers made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.fit import Training
from logitbank.pipeline.folds import FoldPlan

torch.set_num_threads(1)

# Files that take longest, most of them because they wait for processes of their own.
LONG = [
    "cli",
    "docs",
    "docs_scripts",
    "embedding",
    "evidence",
    "extend",
    "fit_processes",
    "fitted_students",
    "halving",
    "losses",
    "papers",
    "ray",
    "recompute",
    "resume_within_epoch",
    "share_round_trip",
    "shipping",
    "sweep",
    "target_transforms",
    "train_student_resume",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files come first, so that no core is left alone with one of them at the end."""
    items.sort(key=lambda item: item.path.stem.removeprefix("test_") not in LONG)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests, and the processes they start, leave the user's cache alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOGITBANK_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def digits() -> Split:
    return load_split("digits")


@pytest.fixture(scope="session")
def digits_test() -> Split:
    return load_split("digits?split=test")


@pytest.fixture(scope="session")
def plain_teacher(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one teacher trained on all digits."""
    out = tmp_path_factory.mktemp("teacher")
    train_teachers(digits, "mlp:32", Training(epochs=3), out)
    return out


@pytest.fixture(scope="session")
def fold_teachers(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three teachers, each trained without its fold."""
    out = tmp_path_factory.mktemp("folds")
    train_teachers(digits, "mlp:32", Training(epochs=3), out, plan=FoldPlan(num_folds=3))
    return out
