"""Features in the store: taken where the head reads them, aligned with the answers, and known to every command.

Shapes: B batch, C classes, D features, K features kept, N examples.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from logitbank.pipeline.alignment import describe_examples
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.cache_teacher.extend import extend_views
from logitbank.pipeline.cache_teacher.recompute import recompute
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.recorded import recorded_teacher
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models.features import PENULTIMATE, Featured, find_place
from logitbank.pipeline.views import Views
from logitbank.stores import Teacher, open_store, verify_store
from logitbank.stores.write.merge import merge_stores, subset_store
from tests.test_cli import fails, run

LOSSLESS = Encoding(kind="dense", num_classes=10, bits=32)
VIEWS = Views(transform="flip-crop", num_views=2)


def teacher(split: Split, weights: Path, views: Views = VIEWS, embedding: str = PENULTIMATE) -> NetworkTeacher:
    return NetworkTeacher(split, load_teachers(split, "mlp:32", str(weights)), views, embedding=embedding)


def written(split: Split, weights: Path, out: Path, **settings: Any) -> Teacher:
    cache_teacher(teacher(split, weights), out, encoding=LOSSLESS, block_rows=500, **settings)
    return open_store(out).teacher()


def check_law(stored: Teacher, split: Split, lost: float = 0.0) -> None:
    """Features times the head are the logits, of every row of every view by its own fold's head."""
    weight_FCK, bias_FC = stored.constant("head_weight"), stored.constant("head_bias")
    folds_N = stored.row_folds
    fold_N = np.zeros(len(split), np.int64) if folds_N is None else folds_N.astype(np.int64)
    for view in range(stored.num_views):
        slab = stored.slab(view, ["embedding", "logit"])
        embedding_NK = slab["embedding"].astype(np.float32)
        logits_NC = np.einsum("nk,nck->nc", embedding_NK, weight_FCK[fold_N]) + bias_FC[fold_N]
        rounding_N = np.abs(embedding_NK).max(1) * np.abs(weight_FCK).sum(2).max() * 2**-11
        assert (np.abs(logits_NC - slab["logit"]).max(1) <= rounding_N + lost + 1e-4).all()


@pytest.mark.parametrize("folds", [False, True], ids=["one teacher", "fold teachers"])
def test_features_times_the_head_are_the_logits(
    digits: Split, plain_teacher: Path, fold_teachers: Path, tmp_path: Path, folds: bool
) -> None:
    weights = fold_teachers if folds else plain_teacher
    stored = written(digits, weights, tmp_path / "s.zarr")
    check_law(stored, digits)
    plain = cache_and_open(NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(weights)), VIEWS), tmp_path / "p")
    for view in range(2):  # answers are those without features, bit for bit
        assert stored.slab(view, ["logit"])["logit"].tobytes() == plain.slab(view, ["logit"])["logit"].tobytes()
    assert stored.constant("head_weight").shape == (3 if folds else 1, 10, 32)
    assert not verify_store(tmp_path / "s.zarr")


def cache_and_open(answers: NetworkTeacher, out: Path) -> Teacher:
    cache_teacher(answers, out, encoding=LOSSLESS, block_rows=500)
    return open_store(out).teacher()


@pytest.mark.parametrize("folds", [False, True], ids=["one teacher", "fold teachers"])
def test_principal_components_are_those_of_numpy(
    digits: Split, plain_teacher: Path, fold_teachers: Path, tmp_path: Path, folds: bool
) -> None:
    weights = fold_teachers if folds else plain_teacher
    whole = written(digits, weights, tmp_path / "whole.zarr")
    stored = written(digits, weights, tmp_path / "s.zarr", embedding_dim=6, predictor_rows=10_000)
    order = np.random.default_rng(VIEWS.seed).permutation(len(digits))
    fitted = np.sort(order[min(1000, max(256, len(order) // 50), len(order) // 4) :])
    full_ND = whole.slab(0, ["embedding"])["embedding"].astype(np.float64)
    fold_N = np.zeros(len(digits), np.uint16) if whole.row_folds is None else whole.row_folds
    for fold in np.unique(fold_N):
        own_ND = full_ND[fitted[fold_N[fitted] == fold]]
        _, size_K, directions_KD = np.linalg.svd(own_ND - own_ND.mean(0), full_matrices=False)
        overlap_KK = np.abs(stored.constant("embedding_basis")[fold].T @ directions_KD[:6].T)
        np.testing.assert_allclose(overlap_KK, np.eye(6), atol=0.02)
        rest = np.sqrt((size_K[6:] ** 2).sum() / (size_K**2).sum())
        assert 0 < rest < 0.7
        here = fold_N == fold
        basis_DK, mean_D = stored.constant("embedding_basis")[fold], stored.constant("embedding_mean")[fold]
        want_NK = (full_ND[here] - mean_D) @ basis_DK
        np.testing.assert_allclose(stored.slab(0, ["embedding"])["embedding"][here], want_NK, atol=0.02)
        # the head on what is kept is the head on what it stands for
        back_ND = want_NK @ basis_DK.T + mean_D
        want_NC = back_ND @ whole.constant("head_weight")[fold].T + whole.constant("head_bias")[fold]
        found_NC = want_NK @ stored.constant("head_weight")[fold].T + stored.constant("head_bias")[fold]
        np.testing.assert_allclose(found_NC, want_NC, atol=1e-3)


def test_a_stopped_pass_goes_on_to_the_same_bytes_and_another_one_is_refused(
    digits: Split, plain_teacher: Path, tmp_path: Path
) -> None:
    asked = {"embedding_dim": 5, "predictor_rows": 600}
    whole = written(digits, plain_teacher, tmp_path / "whole.zarr", **asked)

    def stop(_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "s.zarr"
    with pytest.raises(KeyboardInterrupt):
        written(digits, plain_teacher, out, on_progress=stop, **asked)
    for other in ({}, {**asked, "embedding_dim": 4}, {**asked, "predictor_rows": 500}):
        with pytest.raises(ValueError, match="another one: (embedding_dim|predictor_rows) is"):
            written(digits, plain_teacher, out, **other)
    with pytest.raises(ValueError, match="embedding is"):
        cache_and_open(teacher(digits, plain_teacher, embedding=""), out)
    stored = written(digits, plain_teacher, out, **asked)
    assert (stored.committed() == whole.committed()).all()
    assert written(digits, plain_teacher, out, **asked).complete  # finished: found to be the same


def test_extended_merged_and_copied_stores_keep_their_features(
    digits: Split, fold_teachers: Path, tmp_path: Path
) -> None:
    asked = {"embedding_dim": 5, "predictor_rows": 900}
    whole = written(digits, fold_teachers, tmp_path / "whole.zarr", **asked)
    one = Views(transform="flip-crop", num_views=1)
    answers = teacher(digits, fold_teachers, one)
    cache_teacher(
        answers, tmp_path / "one.zarr", encoding=LOSSLESS, block_rows=500, embedding_dim=5, predictor_rows=900
    )
    short = open_store(tmp_path / "one.zarr")
    more = recorded_teacher(short, short.teacher(), digits, str(fold_teachers), architecture="mlp:32", num_views=2)
    extend_views(short, more, tmp_path / "two.zarr")
    extended = open_store(tmp_path / "two.zarr").teacher()
    for name in ("embedding_basis", "head_weight"):
        assert extended.constant(name).tobytes() == whole.constant(name).tobytes()
    for view in range(2):
        assert extended.slab(view)["embedding"].tobytes() == whole.slab(view)["embedding"].tobytes()
    parts = {"half": np.arange(0, 800), "rest": np.arange(800, len(digits))}
    for name, rows in parts.items():
        subset_store(tmp_path / "whole.zarr", tmp_path / f"{name}.zarr", rows, describe=describe_examples)
    merge_stores([tmp_path / f"{name}.zarr" for name in parts], tmp_path / "joined.zarr", describe=describe_examples)
    joined = open_store(tmp_path / "joined.zarr").teacher()
    assert joined.slab(1)["embedding"].tobytes() == whole.slab(1)["embedding"].tobytes()
    assert not verify_store(tmp_path / "joined.zarr")


def test_recomputing_looks_at_features(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    written(digits, plain_teacher, tmp_path / "s.zarr", embedding_dim=5, predictor_rows=900)
    store = open_store(tmp_path / "s.zarr")
    again = recorded_teacher(
        store, store.teacher(), digits, str(plain_teacher), architecture="mlp:32", compute=Compute(batch_size=7)
    )
    found = recompute(store, store.teacher(), again)
    assert found.problems == []
    assert found.features_distance is not None
    assert found.features_distance < 1e-3
    assert "of their size apart" in str(found)
    model = again.teachers[0].model
    with torch.no_grad():  # a layer that gives twice as much to a head of half the size
        for name, factor in (("1.weight", 2.0), ("1.bias", 2.0), ("3.weight", 0.5)):
            model.get_parameter(name).mul_(factor)
    assert recompute(store, store.teacher(), again).problems[-1].startswith("its features are 1.")


def test_rows_are_decoded_without_their_features(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    stored = written(digits, plain_teacher, tmp_path / "s.zarr")
    assert "embedding" not in TeacherRows(open_store(tmp_path / "s.zarr"), stored).names


class Plain(nn.Module):
    """Logits that are no linear layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.maps, self.head = nn.Conv2d(1, 6, 3), nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.maps(images).mean((2, 3)))
        return scores * 2


def shown(images: Tensor) -> Callable[[nn.Module], Any]:
    return lambda model: model(images)


def test_a_named_layer_is_pooled_and_what_has_no_features_is_refused() -> None:
    model, images = Plain().eval(), torch.rand(2, 1, 8, 8)
    place, size = find_place("plain", model, "maps", shown(images))
    assert (size, place.head) == (6, None)
    featured = Featured(model, {"maps": place})
    logits_BC, captured = featured(images)
    features_BD = captured["maps"]
    torch.testing.assert_close(features_BD, model.maps(images).mean((2, 3)))
    torch.testing.assert_close(logits_BC, model(images))
    featured.leave()
    assert not model.maps._forward_hooks
    with pytest.raises(ValueError, match="'plain' has no linear layer whose output are its logits"):
        find_place("plain", model, PENULTIMATE, shown(images))
    with pytest.raises(ValueError, match="'plain' has no layer 'map'; did you mean 'maps'"):
        find_place("plain", model, "map", shown(images))


@pytest.mark.parametrize("name", ["timm:resnet10t", "timm:vit_tiny_patch16_224", "torchvision:mobilenet_v3_small"])
def test_libraries_networks_have_a_head(name: str) -> None:
    prepare_torchvision()
    import timm
    import torchvision

    library, _, architecture = name.partition(":")
    make = timm.create_model if library == "timm" else torchvision.models.get_model
    model, images = make(architecture, num_classes=7).eval(), torch.rand(2, 3, 224, 224)
    place, size = find_place(name, model, PENULTIMATE, shown(images))
    assert place.head is not None
    featured = Featured(model, {"head": place})
    with torch.no_grad():
        logits_BC, captured = featured(images)
        features_BD = captured["head"]
        assert features_BD.shape == (2, size)
        torch.testing.assert_close(place.head(features_BD), logits_BC)
        if library == "timm":
            parts: Any = model
            want_BD = parts.forward_head(parts.forward_features(images), pre_logits=True)
            torch.testing.assert_close(features_BD, want_BD)


def test_who_has_no_features_is_refused(digits: Split, tmp_path: Path) -> None:
    np.save(tmp_path / "l.npy", np.random.default_rng(0).normal(size=(len(digits), 10)).astype(np.float32))
    for name in (f"array:{tmp_path / 'l.npy'}", "sklearn:LogisticRegression"):
        with pytest.raises(ValueError, match="is no network with features here; leave it out"):
            build_teacher(digits, name, "", Views(), embedding=PENULTIMATE)


@pytest.mark.slow
def test_the_command_keeps_features_and_says_so(plain_teacher: Path, tmp_path: Path) -> None:
    cache = ["cache-teacher", "--data", "digits", "--teacher", "mlp:32", "--weights", str(plain_teacher)]
    out = str(tmp_path / "s.zarr")
    said = run(*cache, "--embedding", "penultimate", "--dry-run", "--out", out).stdout
    assert "64 bytes of features a row" in said
    run(*cache, "--embedding", "penultimate", "--embedding-dim", "6", "--out", out)
    assert "features  6 principal components of layer 'penultimate', float16" in run("inspect", out).stdout
    teacher_here = ("--teacher", "mlp:32", "--weights", str(plain_teacher))
    checked = run("verify", out, "--data", "digits", "--recompute", "32", *teacher_here)
    assert "of their size apart" in checked.stdout, checked
    assert "--embedding keeps no features" in fails(*cache, "--embedding-dim", "6", "--out", out, cwd=tmp_path)
    other = [*cache, "--out", str(tmp_path / "t.zarr"), "--embedding"]
    too_many = fails(*other, "penultimate", "--embedding-dim", "32", cwd=tmp_path)
    assert "--embedding-dim is 32, the teacher has 32 features" in too_many
    assert not (tmp_path / "t.zarr").exists()
