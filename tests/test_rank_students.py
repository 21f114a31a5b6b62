"""Students ranked before training: the scores are those of gradients and features, and the teacher itself is best.

Shapes: B batch, C classes, D features.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.look.rank import rank_students, relations
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.test_cli import run

LOSSLESS = Encoding(kind="dense", num_classes=10, bits=32)


def test_gradients_are_those_of_autograd_and_rows_have_length_one() -> None:
    torch.manual_seed(0)
    features_BD, labels_B, head = torch.randn(9, 6), torch.randint(4, (9,)), nn.Linear(6, 4)
    logits_BC = head(features_BD)
    (gradient_CD,) = torch.autograd.grad(nn.functional.cross_entropy(logits_BC, labels_B), head.weight)
    semantic_CC, relation_BB = relations(logits_BC.detach(), features_BD, labels_B)
    for found, side in ((semantic_CC, gradient_CD), (relation_BB, features_BD)):
        products = side.numpy() @ side.numpy().T
        np.testing.assert_allclose(found.numpy(), products / np.linalg.norm(products, axis=1, keepdims=True), rtol=1e-4)


def test_the_teacher_itself_is_best_and_a_score_is_reproduced(digits: Split, tmp_path: Path) -> None:
    teacher = build_teacher(digits, "mlp:16", "random-init", Views(), embedding="penultimate")
    cache_teacher(teacher, tmp_path / "s.zarr", encoding=LOSSLESS)
    store = open_store(tmp_path / "s.zarr")
    ranked = rank_students(store, digits, ["mlp:4", "mlp:16", "cnn"], seeds=(0,))  # of the seed of random-init
    assert ranked[0].student == "mlp:16"
    assert ranked[0].score == pytest.approx(0, abs=1e-5)
    assert all(each.score < -1e-3 for each in ranked[1:])
    assert ranked == rank_students(store, digits, ["cnn", "mlp:16x1", "mlp:4"], seeds=(0,))
    several = rank_students(store, digits, ["mlp:4"], seeds=(0, 1, 2))[0]
    assert several.spread > 0
    assert several.score == pytest.approx(several.semantic + several.relation)


def test_the_command_ranks_says_what_it_is_not_and_refuses(digits: Split, fold_teachers: Path, tmp_path: Path) -> None:
    for name, embedding in (("s", "penultimate"), ("bare", "")):
        teacher = build_teacher(digits, "mlp:32", str(fold_teachers), Views(), embedding=embedding)
        cache_teacher(teacher, tmp_path / f"{name}.zarr", encoding=LOSSLESS)
    said = run("rank-students", str(tmp_path / "s.zarr"), "--data", "digits", "--student", "mlp:8,linear").stdout
    assert "only trained students can be compared" in said
    assert {line.split()[0] for line in said.splitlines()[1:3]} == {"mlp:8", "linear"}
    with pytest.raises(ValueError, match="no teacher's features to rank by; cache it with --embedding penultimate"):
        rank_students(open_store(tmp_path / "bare.zarr"), digits, ["mlp:8"])
