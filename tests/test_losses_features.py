"""Losses that look at features: their references, their laws, and students that are trained by them from a store.

Shapes: B batch, C classes, D and K features of student and teacher, F folds, S subclasses of a class, G = C S, N rows.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.models import build_model, spell_model
from logitbank.pipeline.models.weights import load_state, weights_digest
from logitbank.pipeline.train_student.folder import CHECKPOINT, RESULT, WEIGHTS
from logitbank.pipeline.train_student.losses import (
    ExactAnswer,
    Material,
    Objective,
    Step,
    StoredFeatures,
    TeacherFeatures,
    parse_objective,
)
from logitbank.pipeline.train_student.losses.features import (
    Critics,
    Projection,
    Subclasses,
    mutual_information_bound,
    subclass_cross_entropy,
    subclass_target,
)
from logitbank.pipeline.train_student.losses.wasserstein import ClassDistance
from logitbank.pipeline.use_student.load import load_student
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train
from tests.test_fit_processes import train as torchrun

B, C, D, K, F, S = 7, 3, 5, 12, 2, 4
FIRST = Step(step=0, steps_per_epoch=1, num_epochs=1)
SETTINGS = [
    *(("feature", {"distance": distance}) for distance in ("cosine", "l1", "mse")),
    *(("mi_alpha", {"alpha": alpha}) for alpha in (0.1, 0.5, 1.0)),
    *(("lelp", {"directions": directions}) for directions in ("principal", "random")),
    ("lelp", {"temperature": 3.0, "beta": 0.3}),
]


def material(num_folds: int = F, *, with_head: bool = True, num_rows: int = 200) -> Material:
    generator = torch.Generator().manual_seed(1)
    class_N = torch.randint(C, (num_rows,), generator=generator)
    values_NK = torch.randn(num_rows, K, generator=generator) * torch.arange(1, K + 1) / 4 + class_N[:, None]
    stored = StoredFeatures(
        values_NK=values_NK,
        fold_N=torch.randint(num_folds, (num_rows,), generator=generator),
        class_N=class_N,
        head_FCK=torch.randn(num_folds, C, K, generator=generator) if with_head else None,
        num_folds=num_folds,
    )
    return Material(num_classes=C, student_features=D, subclasses=S, teacher=stored)


def batch(num_rows: int = B, scale: float = 1.0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    shapes = {"student": (C,), "teacher": (C,), "student_features_BD": (D,), "subclass_logits_BG": (C * S,), "h": (K,)}
    found = {name: scale * torch.randn(num_rows, *shape, generator=generator) for name, shape in shapes.items()}
    return {
        **found,
        "labels": torch.randint(C, (num_rows,), generator=generator),
        "folds": torch.randint(F, (num_rows,), generator=generator),
    }


def equipped(name: str, settings: dict[str, Any], num_folds: int = F) -> Objective:
    return parse_objective(f"{name}:1", settings).equipped(material(num_folds), 0)


def asked(objective: Objective, rows: dict[str, Tensor]) -> Tensor:
    (term,) = objective.terms
    extras: dict[str, Any] = {name: rows[name] for name in objective.captures}
    teacher = TeacherFeatures(rows["h"], rows["folds"])
    found: Tensor = term.loss.fn(
        rows["student"],
        rows["teacher"],
        rows["labels"],
        module=objective.modules[term.name],
        teacher_features=teacher,
        **extras,
        **term.options,
    )
    return found


def reference_feature(module: Projection, rows: dict[str, Tensor], distance: str) -> list[float]:
    found = []
    for h_s, h_t, fold in zip(
        rows["student_features_BD"].numpy(), rows["h"].numpy(), rows["folds"].tolist(), strict=True
    ):
        w, b = (part[fold].detach().numpy().astype(float) for part in (module.layer.weight_FOI, module.layer.bias_FO))
        mine, theirs = w @ h_s + b, h_t.astype(float)
        if distance == "mse":
            stored = material().teacher
            assert stored is not None
            own = stored.values_NK[stored.fold_N == fold].numpy()
            found.append(np.mean((mine - theirs / np.sqrt(np.mean(own**2))) ** 2))
            continue
        mine, theirs = mine / np.linalg.norm(mine), theirs / np.linalg.norm(theirs)
        found.append(1 - mine @ theirs if distance == "cosine" else np.abs(mine - theirs).sum())
    return found


@pytest.mark.parametrize("distance", ["cosine", "l1", "mse"])
def test_feature_distance_is_its_reference(distance: str) -> None:
    objective, rows = equipped("feature", {"distance": distance}), batch()
    module = objective.modules["feature"]
    assert isinstance(module, Projection)
    np.testing.assert_allclose(
        asked(objective, rows).detach().numpy(), reference_feature(module, rows, distance), rtol=1e-5, atol=1e-6
    )


def reference_bound(score_BB: np.ndarray, baseline_B: np.ndarray, alpha: float) -> list[float]:
    """-I_alpha of Poole et al., row by row, from the scores."""
    found = []
    for i in range(len(score_BB)):
        others = [j for j in range(len(score_BB)) if j != i]

        def interpolated(j: int, i: int = i) -> float:
            rest = [np.exp(score_BB[i, k]) for k in range(len(score_BB)) if k != j]
            return float(alpha * np.mean(rest) + (1 - alpha) * np.exp(baseline_B[i]))

        joint = np.mean([np.log(np.exp(score_BB[i, i]) / interpolated(j)) for j in others])
        marginal = np.mean([np.exp(score_BB[i, j]) / interpolated(i) for j in others])
        found.append(-(1 + joint - marginal))
    return found


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("num_rows", [2, B])
def test_mutual_information_bound_is_its_reference(alpha: float, num_rows: int) -> None:
    objective, rows = equipped("mi_alpha", {"alpha": alpha}), batch(num_rows, scale=4.0)
    module = objective.modules["mi_alpha"]
    assert isinstance(module, Critics)
    score_BB, baseline_B = module(rows["student_features_BD"], TeacherFeatures(rows["h"], rows["folds"]))
    want = reference_bound(score_BB.detach().double().numpy(), baseline_B.detach().double().numpy(), alpha)
    np.testing.assert_allclose(asked(objective, rows).detach().numpy(), want, rtol=1e-4, atol=1e-5)


def test_the_bound_approaches_what_is_known_of_gaussians() -> None:
    """InfoNCE of two features with correlation 0.9 in each of two dimensions: 1.66 nats, of which log 64 shows most."""
    torch.manual_seed(0)
    zeros = torch.zeros(4, dtype=torch.int64)
    stored = StoredFeatures(values_NK=torch.zeros(4, 2), fold_N=zeros, class_N=zeros, head_FCK=None, num_folds=1)
    critics = Critics(Material(num_classes=2, student_features=2, teacher=stored), alpha=1.0)
    optimizer = torch.optim.Adam(critics.parameters(), lr=1e-3)
    found = []
    for _ in range(200):
        one = torch.randn(64, 2)
        other = 0.9 * one + (1 - 0.81) ** 0.5 * torch.randn(64, 2)
        loss_B = mutual_information_bound(
            one,
            one,
            torch.zeros(64).long(),
            module=critics,
            student_features_BD=one,
            teacher_features=TeacherFeatures(other, torch.zeros(64).long()),
            alpha=1.0,
        )
        optimizer.zero_grad()
        torch.autograd.backward(loss_B.mean())
        optimizer.step()
        found.append(-float(loss_B.mean().detach()))
    assert 1.2 < np.mean(found[-50:]) < 1.75


def test_subclasses_are_their_reference() -> None:
    """Directions that the head does not read, of the variance that the class has there, rotated and scaled."""
    known = material()
    stored = known.teacher
    assert stored is not None
    assert stored.head_FCK is not None
    module = Subclasses(known, temperature=1.0, beta=1.0, directions="principal")
    for fold in range(F):
        head_CK = stored.head_FCK[fold].double().numpy()
        head_CK = head_CK - head_CK.mean(0)
        free_KK = np.eye(K) - np.linalg.pinv(head_CK, rcond=1e-6) @ head_CK
        for label in range(C):
            own_NK = stored.of_fold(fold, label).double().numpy()
            spread_NK = (own_NK - own_NK.mean(0)) @ free_KK
            found_KS = module.direction_FCKS[fold, label].double().numpy()
            np.testing.assert_allclose(head_CK @ found_KS, 0, atol=1e-5)
            _, vectors = np.linalg.eigh(spread_NK.T @ spread_NK)
            span_KK = vectors[:, -S:] @ vectors[:, -S:].T
            np.testing.assert_allclose(span_KK @ found_KS, found_KS, atol=1e-5)  # those of most variance
            gram_SS = found_KS.T @ found_KS
            np.testing.assert_allclose(gram_SS, gram_SS[0, 0] * np.eye(S), atol=1e-5)
            np.testing.assert_allclose(np.mean((spread_NK @ found_KS) ** 2), 1, rtol=1e-4)
            np.testing.assert_allclose(module.mean_FCK[fold, label].numpy(), own_NK.mean(0), rtol=1e-4, atol=1e-4)
    rows, want = batch(), []
    for b in range(B):
        fold, t, beta = int(rows["folds"][b]), 2.0, 0.7
        p_C = np.exp(rows["teacher"][b].numpy() / t)
        p_C = p_C / p_C.sum()
        target = []
        for label in range(C):
            centred_K = rows["h"][b].numpy() - module.mean_FCK[fold, label].numpy()
            share_S = np.exp(module.direction_FCKS[fold, label].numpy().T @ centred_K / beta)
            target += list(p_C[label] * share_S / share_S.sum())
        logits_G = rows["subclass_logits_BG"][b].numpy() / t
        want.append(-(t**2) * np.dot(target, logits_G - np.log(np.exp(logits_G).sum())))
    found_B = subclass_cross_entropy(
        rows["student"],
        rows["teacher"],
        rows["labels"],
        module=module,
        subclass_logits_BG=rows["subclass_logits_BG"],
        teacher_features=TeacherFeatures(rows["h"], rows["folds"]),
        temperature=2.0,
        beta=0.7,
    )
    np.testing.assert_allclose(found_B.numpy(), want, rtol=1e-4)
    mass_BC = subclass_target(module, rows["teacher"], TeacherFeatures(rows["h"], rows["folds"]), 2.0, 0.7)
    torch.testing.assert_close(mass_BC.reshape(B, C, S).sum(2), (rows["teacher"] / 2).softmax(1))


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_laws(name: str, settings: dict[str, Any]) -> None:
    """One finite number a row, from ordinary and from extreme features; gradients reach the student and are finite."""
    objective = equipped(name, settings)
    captured = next(iter(objective.captures))
    for scale in (0.0, 1.0, 100.0):
        rows = batch(scale=scale)
        rows[captured].requires_grad_()
        loss_B = asked(objective, rows)
        assert loss_B.shape == (B,)
        assert loss_B.isfinite().all()
        parameters = list(objective.modules.parameters())
        gradients = torch.autograd.grad(loss_B.sum(), [rows[captured], *parameters], allow_unused=True)
        assert all(bool(each.isfinite().all()) for each in gradients if each is not None)
        if scale == 1.0:
            assert gradients[0] is not None
            assert gradients[0].abs().sum() > 0
    one = asked(objective, batch(1))
    assert one.shape == (1,)
    assert one.isfinite().all()
    if name == "mi_alpha":
        assert float(one.detach()) == 0.0


@pytest.mark.parametrize(("name", "settings"), SETTINGS)
def test_gradients_are_derivatives(name: str, settings: dict[str, Any]) -> None:
    objective = equipped(name, settings)
    objective.modules.double()
    rows = {key: value.double() if value.is_floating_point() else value for key, value in batch(4).items()}
    captured = next(iter(objective.captures))
    rows[captured].requires_grad_()
    assert torch.autograd.gradcheck(
        lambda value: asked(objective, {**rows, captured: value}), rows[captured], atol=1e-4
    )


def test_features_of_rows_that_are_not_served_are_left_out() -> None:
    class Some(ExactAnswer):
        def served(self) -> Tensor:
            return torch.arange(B) != 2

    rows, objective = batch(), equipped("feature", {}, 1)
    answer = Some(rows["teacher"], features_BK=rows["h"])
    captured = {"student_features_BD": rows["student_features_BD"]}
    loss_B = objective(rows["student"], answer, rows["labels"], FIRST, captured)
    assert loss_B[2] == 0
    rows["folds"] = torch.zeros(B).long()
    torch.testing.assert_close(loss_B[torch.arange(B) != 2], asked(objective, rows)[torch.arange(B) != 2])
    with pytest.raises(ValueError, match="needs the student's student_features_BD; pass it as captured"):
        objective(rows["student"], answer, rows["labels"], FIRST)
    with pytest.raises(ValueError, match="needs one teacher's features: cache it with --embedding penultimate"):
        objective(rows["student"], ExactAnswer(rows["teacher"]), rows["labels"], FIRST, captured)


@pytest.mark.parametrize("with_head", [True, False])
def test_a_fold_that_is_left_out_has_no_rows_to_fit(*, with_head: bool) -> None:
    whole = material(F, with_head=with_head)
    stored = whole.teacher
    assert stored is not None
    kept_N = stored.fold_N == 0
    values_NK, fold_N, class_N = (part[kept_N] for part in (stored.values_NK, stored.fold_N, stored.class_N))
    some = replace(whole, teacher=replace(stored, values_NK=values_NK, fold_N=fold_N, class_N=class_N))
    assert Projection(some, distance="mse").scale_F.isfinite().all()
    torch.testing.assert_close(
        Projection(some, distance="mse").scale_F[0], Projection(whole, distance="mse").scale_F[0]
    )
    options: dict[str, Any] = {"temperature": 1.0, "beta": 1.0, "directions": "principal"}
    torch.testing.assert_close(
        Subclasses(some, **options).direction_FCKS[0], Subclasses(whole, **options).direction_FCKS[0]
    )
    if not with_head:  # classes are as far apart as the one fold says
        alone = replace(some, teacher=replace(stored, values_NK=values_NK, fold_N=fold_N, class_N=class_N, num_folds=1))
        torch.testing.assert_close(ClassDistance(some).cost_CC, ClassDistance(alone).cost_CC)


def test_too_many_subclasses_are_refused() -> None:
    for subclasses, num_rows in ((K - C + 2, 200), (S, 10)):
        asked_for = Material(
            num_classes=C, subclasses=subclasses, teacher=material(num_rows=num_rows).teacher, student_features=D
        )
        with pytest.raises(ValueError, match=f"{subclasses} subclasses of class 0 need as many directions"):
            Subclasses(asked_for, temperature=1.0, beta=1.0, directions="principal")


def test_a_network_of_subclasses_answers_for_classes(digits: Split) -> None:
    name = "subclasses:4:mlp:16x1"
    assert spell_model(name) == "subclasses:4:mlp:16"
    model: Any = build_model(name, digits)
    inputs = torch.rand(3, 8, 8, 1)
    prob_BC = model(inputs).softmax(1)
    torch.testing.assert_close(prob_BC, model.model(inputs).softmax(1).reshape(3, 10, 4).sum(2))
    with pytest.raises(ValueError, match="unknown model"):
        build_model("subclasses:4:sklearn:RandomForestRegressor", digits)


@pytest.fixture(scope="module", params=["one teacher", "fold teachers"])
def store(
    request: pytest.FixtureRequest,
    digits: Split,
    plain_teacher: Path,
    fold_teachers: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Store:
    path = tmp_path_factory.mktemp("stores") / "s.zarr"
    weights = plain_teacher if request.param == "one teacher" else fold_teachers
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(weights)), Views(), embedding="penultimate")
    cache_teacher(answers, path, encoding=Encoding(kind="topk", num_classes=10, top_k=3), name="t")
    return open_store(path)


@pytest.mark.parametrize("loss", ["kd:0.9 + ce:0.1 + feature:1", "kd:1 + mi_alpha:0.5", "lelp"])
def test_a_student_is_trained_and_a_stopped_run_goes_on_to_the_same_bits(
    store: Store, digits: Split, digits_test: Split, tmp_path: Path, loss: str
) -> None:
    student = "subclasses:3:mlp:16" if "lelp" in loss else "mlp:16"

    def stop(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    def run(name: str, on_epoch: Any = None) -> None:
        asked = {"student": student, "loss": loss, "epochs": 3, "lr": 0.05}
        train(store, digits, digits_test, tmp_path / name, on_epoch=on_epoch, asked=asked)

    run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", stop)
    assert (tmp_path / "stopped" / CHECKPOINT).exists()
    run("stopped")
    first, second = (weights_digest(load_state(tmp_path / name / WEIGHTS)) for name in ("whole", "stopped"))
    assert first == second
    result = json.loads((tmp_path / "whole" / RESULT).read_text())
    assert result["accuracy"] > 0.6
    loaded = load_student(tmp_path / "whole")
    logits_NC = loaded.logits(np.asarray(digits_test.samples[:5]))
    assert logits_NC.shape == (5, 10)


def test_what_cannot_be_captured_is_refused_before_the_first_step(
    store: Store, digits: Split, plain_teacher: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"'mlp:16' has none; take --student subclasses:4:mlp:16"):
        train(store, digits, None, tmp_path / "a", loss="lelp")
    with pytest.raises(ValueError, match="subclasses of class 0 need as many directions"):
        train(store, digits, None, tmp_path / "a", loss="lelp", student="subclasses:30:mlp:16")
    bare = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(bare, tmp_path / "bare.zarr", encoding=Encoding(kind="dense", num_classes=10))
    with pytest.raises(ValueError, match="loss 'feature' needs one teacher's features"):
        train(open_store(tmp_path / "bare.zarr"), digits, None, tmp_path / "a", loss="feature")
    assert not (tmp_path / "a").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(store: Store, tmp_path: Path) -> None:
    """The projection, which no process wraps, gets the gradients of the whole batch in both."""
    options = ("--loss", "kd:0.9 + feature:1", "--epochs", "2")
    for count in (1, 2):
        done = torchrun(count, store.path, tmp_path / str(count), *options)
        assert done.returncode == 0, done.stderr
    one, two = (load_state(tmp_path / name / WEIGHTS) for name in "12")
    for name, values in one.items():  # sums in another order, through AdamW
        torch.testing.assert_close(two[name], values, rtol=1e-2, atol=1e-3)
