"""Features of two teachers nested: the small one's as they are, the rest as numpy finds it, and the head still right.

Shapes: N rows, D features of the large teacher.
"""

from pathlib import Path

import numpy as np
import pytest

from logitbank.pipeline.cache_teacher.nested import nest_features
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.views import Views
from logitbank.stores import Teacher, open_store, verify_store

LOSSLESS = Encoding(kind="dense", num_classes=10, bits=32)
VIEWS = Views(transform="flip-crop", num_views=2)
PLAN = FoldPlan(num_folds=2)


@pytest.fixture(scope="module", params=[None, PLAN], ids=["no folds", "folds"])
def store(request: pytest.FixtureRequest, digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("nested") / "s.zarr"
    for name in ("mlp:6", "mlp:10"):
        teacher = build_teacher(digits, name, "random-init", VIEWS, plan=request.param, embedding="penultimate")
        cache_teacher(teacher, path, encoding=LOSSLESS, name=name.replace(":", "-"), block_rows=800)
    return path


def rows(teacher: Teacher, view: int) -> np.ndarray:
    return teacher.slab(view, ["embedding"])["embedding"].astype(np.float64)


def test_nested_features_are_their_reference(store: Path) -> None:
    assert nest_features(store, "mlp-6", "mlp-10", "nested", num_rows=2000) == 10
    opened = open_store(store)
    small, large, nested = (opened.teacher(name) for name in ("mlp-6", "mlp-10", "nested"))
    folds = np.zeros(opened.num_examples, int) if small.row_folds is None else small.row_folds.astype(int)
    for fold in range(folds.max() + 1):
        own = folds == fold
        a, d = rows(small, 0)[own], rows(large, 0)[own]  # all rows were fitted on
        design = np.c_[np.ones(len(a)), a]
        left = d - design @ np.linalg.lstsq(design, d, rcond=None)[0]
        _, size, directions = np.linalg.svd(left - left.mean(0), full_matrices=False)
        found = rows(nested, 0)[own]
        np.testing.assert_array_equal(found[:, :6], a)
        np.testing.assert_allclose(np.abs(found[:, 6:]), np.abs(left @ directions[:4].T), atol=0.02)
        lost = np.linalg.norm(size[4:]) * np.abs(large.constant("head_weight")).max() * 10
        head = nested.constant("head_weight")[fold], nested.constant("head_bias")[fold]
        logits = nested.slab(0, ["logit"])["logit"][own]
        assert np.abs(found @ head[0].T + head[1] - logits).max() < lost + 0.02
    for view in range(2):
        assert nested.slab(view, ["logit"])["logit"].tobytes() == large.slab(view, ["logit"])["logit"].tobytes()
    assert not verify_store(store)
    assert nest_features(store, "mlp-6", "mlp-10", "nested", num_rows=2000) == 10  # it is there already


def test_what_cannot_be_nested_is_refused(store: Path) -> None:
    with pytest.raises(ValueError, match="'mlp-10' has 10 features, 'mlp-6' 6; the second must have more"):
        nest_features(store, "mlp-10", "mlp-6", "other")
    with pytest.raises(ValueError, match="are too few for 10 features; raise --rows"):
        nest_features(store, "mlp-6", "mlp-10", "other", num_rows=8)
    assert "other" not in open_store(store, allow_incomplete=True).teachers


def test_a_store_has_one_assignment_of_folds(store: Path, digits: Split) -> None:
    """So nesting need not compare them: a teacher of other folds does not come into the store."""
    if open_store(store).teacher("mlp-6").row_folds is None:
        pytest.skip("no folds")
    plan = FoldPlan(num_folds=2, seed=1)
    teacher = build_teacher(digits, "mlp:12", "random-init", VIEWS, plan=plan, embedding="penultimate")
    with pytest.raises(ValueError, match="examples/fold differs"):
        cache_teacher(teacher, store, encoding=LOSSLESS, name="mlp-12", block_rows=800)
