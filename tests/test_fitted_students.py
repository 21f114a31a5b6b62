"""Students of scikit-learn: the library's own answers from plain arrays, the minimum of their loss, one kind of run."""

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from sklearn import ensemble, tree
from sklearn.metrics import confusion_matrix, precision_score
from torch import Tensor

from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.estimators import EstimatorTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.estimators import CROSS_ENTROPY, ESTIMATORS, SQUARED_ERROR
from logitbank.pipeline.fit.trees import fit_trees
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.look.report import write_report
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.trees import PROB_FLOOR, TreeEnsemble
from logitbank.pipeline.models.weights import load_weights
from logitbank.pipeline.train_student.compare import compare
from logitbank.pipeline.train_student.folder import CLASSES, CONFUSION, HISTORY, RESULT, SETTINGS, WEIGHTS
from logitbank.pipeline.train_student.losses import LOSSES, ExactAnswer, Step, check_fitted, parse_objective
from logitbank.pipeline.train_student.losses.targets import FITS, fitted_targets
from logitbank.pipeline.train_student.planned import Event
from logitbank.pipeline.train_student.runs import choose_baselines, load_runs
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.train_student.sweep import plan_runs, run_sweep
from logitbank.pipeline.use_student.load import load_student
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

FOREST = "sklearn:RandomForestRegressor?n_estimators=3&max_depth=6"
BOOSTED = "sklearn:HistGradientBoostingClassifier?max_iter=5"
SQUARES = {"scale": "probability", "ce_weight": "0"}

REGRESSORS: dict[str, Callable[..., Any]] = {
    "RandomForestRegressor?n_estimators=3": ensemble.RandomForestRegressor,
    "ExtraTreesRegressor?n_estimators=3&bootstrap=true&max_samples=0.5": ensemble.ExtraTreesRegressor,
    "DecisionTreeRegressor?max_leaf_nodes=9": tree.DecisionTreeRegressor,
    "HistGradientBoostingRegressor?max_iter=8&learning_rate=0.3": ensemble.HistGradientBoostingRegressor,
}
CLASSIFIERS: dict[str, Callable[..., Any]] = {
    "RandomForestClassifier?n_estimators=3": ensemble.RandomForestClassifier,
    "ExtraTreesClassifier?n_estimators=3": ensemble.ExtraTreesClassifier,
    "DecisionTreeClassifier?max_depth=4": tree.DecisionTreeClassifier,
    "HistGradientBoostingClassifier?max_iter=8": ensemble.HistGradientBoostingClassifier,
}


def options(spec: str) -> dict[str, Any]:
    return {key: json.loads(value) for key, _, value in (part.partition("=") for part in spec.split("?")[1].split("&"))}


def draw(num_rows: int = 300, num_classes: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Features float32 [N, 4], probabilities [N, C] that follow them."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_rows, 4)).astype(np.float32)
    logits = features @ rng.normal(size=(4, num_classes)) + rng.normal(size=(num_rows, num_classes))
    return features, torch.from_numpy(logits).softmax(1).numpy()


def answers(model: TreeEnsemble, features: Any) -> Any:
    return model(torch.from_numpy(features)).numpy()


@pytest.mark.parametrize("spec", REGRESSORS)
@pytest.mark.parametrize("scale", ["logit", "probability"])
def test_a_regressor_answers_what_scikit_learn_answers(spec: str, scale: str) -> None:
    features, target = draw()
    weight = np.linspace(1, 2, len(target))
    model = fit_trees(f"sklearn:{spec}", features, target, weight, scale=scale, seed=5)
    boosted = "Hist" in spec
    fitted = [
        REGRESSORS[spec](**options(spec), random_state=5).fit(features, each, weight)
        for each in (target.T if boosted else [target])
    ]
    said = [each.predict(features) for each in fitted]
    want = np.stack(said, axis=1) if boosted else said[0]
    want = np.log(np.maximum(want, PROB_FLOOR)) if scale == "probability" else want
    np.testing.assert_allclose(answers(model, features), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("spec", CLASSIFIERS)
@pytest.mark.parametrize("num_classes", [2, 3])
def test_a_classifier_of_labels_is_scikit_learns(spec: str, num_classes: int) -> None:
    features, prob = draw(num_classes=num_classes)
    labels = prob.argmax(1)
    model = fit_trees(f"sklearn:{spec}", features, np.eye(num_classes)[labels], np.ones(len(labels)), seed=5)
    fixed = {"early_stopping": False} if "Hist" in spec else {"criterion": "log_loss"}
    want = CLASSIFIERS[spec](**options(spec), **fixed, random_state=5).fit(features, labels).predict_proba(features)
    got = torch.from_numpy(answers(model, features)).softmax(1).numpy()
    np.testing.assert_allclose(got, want, atol=num_classes * PROB_FLOOR)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_a_classifier_of_soft_targets_fits_them(temperature: float) -> None:
    """A tree with a leaf for every row knows every target; boosting comes near, at the temperature of the loss."""
    features, target = draw()
    for spec, within in (("DecisionTreeClassifier", 1e-6), ("HistGradientBoostingClassifier?max_iter=100", 0.1)):
        more = "" if within < 0.01 else "&min_samples_leaf=1&learning_rate=0.3"
        model = fit_trees(f"sklearn:{spec}{more}", features, target, np.ones(300), temperature=temperature)
        got = (torch.from_numpy(answers(model, features)) / temperature).softmax(1).numpy()
        assert np.abs(got - target).mean() < within, spec


def test_a_class_that_no_row_has_is_the_least_likely() -> None:
    features, _ = draw()
    target = np.eye(4)[(features[:, 0] > 0).astype(int) * 2]
    for spec in CLASSIFIERS:
        model = fit_trees(f"sklearn:{spec}", features, target, np.ones(len(target)))
        got = torch.from_numpy(answers(model, features)).softmax(1)
        assert (got.argmax(1).numpy() == target.argmax(1)).mean() > 0.9
        assert got[:, [1, 3]].max() < 1e-4


def batch(num_rows: int = 50, num_classes: int = 4) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(num_rows, num_classes, generator=generator, dtype=torch.float64) * 2
    return teacher, torch.randint(num_classes, (num_rows,), generator=generator)


OBJECTIVES = {
    "sel_corrected?c=0.1:0.5 + sel_corrected?c=1:0.5": {},
    "mse": {},
    "sel:1": {},
    "sel_corrected:1": {"c": "0.3"},
    "sel_corrected:0.5": {"c": "0.3", "scale": "probability", "smoothing": "0.1"},
    "sel_slow:1": {"c": "0.3"},
    "sel_gamma:1": {"gamma": "one_minus_p"},
    "sel_ortho:1": {"floor": "0.05", "smoothing": "0.1"},
    "sel:0.4 + sel_corrected:0.6": {"row_weight": "confidence", "confidence_power": "2"},
    "ce": {"smoothing": "0.1"},
    "kd:2": {"temperature": "3"},
    "soft_ce:1": {"temperature": "1"},
    "kd": {"temperature": "1", "kd.row_weight": "entropy", "ce.smoothing": "0.1"},
}


@pytest.mark.parametrize("text", OBJECTIVES)
def test_no_student_does_better_than_the_target(text: str) -> None:
    """The law of targets: at each one the gradient of the very loss that networks are trained with is zero."""
    teacher_NC, labels_N = batch()
    objective = parse_objective(text, OBJECTIVES[text])
    fits = next(kind for kind in FITS if objective.terms[0].kind in FITS[kind])
    check_fitted(objective, fits, "sklearn:X")
    answer = ExactAnswer(teacher_NC, out_of_fold=True)
    found = fitted_targets(objective, answer, labels_N, teacher_NC.shape[1], fits)
    inside_N = (found.target_NC > 0).all(1) | (found.scale == "logit")  # outside, no distribution meets the target
    assert inside_N.float().mean() > 0.5
    target_NC, labels_N = found.target_NC[inside_N], labels_N[inside_N]
    answer = ExactAnswer(teacher_NC[inside_N], out_of_fold=True)
    best_NC = target_NC if found.scale == "logit" else target_NC.log() * found.temperature
    student_NC = best_NC.clone().requires_grad_()
    step = Step(step=0, steps_per_epoch=1, num_epochs=1)
    (slope_NC,) = torch.autograd.grad(objective(student_NC, answer, labels_N, step).sum(), student_NC)
    assert slope_NC.abs().max() < 1e-6
    moved = objective(best_NC + 0.1 * torch.randn_like(best_NC), answer, labels_N, step)
    assert (moved > objective(best_NC, answer, labels_N, step)).float().mean() > 0.95


def test_rows_count_as_the_loss_counts_them() -> None:
    """A row without a label has no part in a term that needs one; twice the loss is twice the weight."""
    teacher_NC, labels_N = batch()
    labels_N[:10] = -1
    answer = ExactAnswer(teacher_NC)
    alone = fitted_targets(parse_objective("ce"), answer, labels_N, 4, CROSS_ENTROPY)
    assert (alone.weight_N == (labels_N >= 0)).all()
    both = fitted_targets(parse_objective("kd", {"temperature": "1"}), answer, labels_N, 4, CROSS_ENTROPY)
    torch.testing.assert_close(both.weight_N[:10], torch.full((10,), 0.9, dtype=torch.float64))
    torch.testing.assert_close(both.target_NC[:10], teacher_NC[:10].softmax(1))
    weighed = parse_objective("mse", {"row_weight": "confidence"})
    found = fitted_targets(weighed, answer, labels_N, 4, SQUARED_ERROR)
    want_N = teacher_NC.softmax(1).amax(1)
    torch.testing.assert_close(found.weight_N, want_N / want_N.max())


@pytest.mark.parametrize("name", sorted(set(LOSSES) - set(FITS[SQUARED_ERROR])))
def test_other_losses_are_refused_with_those_that_are_served(name: str) -> None:
    with pytest.raises(ValueError, match=r"serves mse, sel, sel_corrected, .*sel_ortho and sums of them, but not"):
        check_fitted(parse_objective(name), SQUARED_ERROR, FOREST)


@pytest.mark.parametrize(
    ("fits", "text", "settings", "said"),
    [
        (SQUARED_ERROR, "sel", {}, "not the ce of loss 'sel'; --set ce_weight=0"),
        (SQUARED_ERROR, "kd:1", {}, "students fitted by cross-entropy"),
        (SQUARED_ERROR, "sel:1 + sel_corrected:1", {"scale": "probability"}, "logits and probabilities"),
        (SQUARED_ERROR, "mse", {"warmup": "3"}, "warmup of mse"),
        (SQUARED_ERROR, "mse", {"ramp_to": "0"}, "the schedule of mse"),
        (SQUARED_ERROR, "mse", {"standardise": "1"}, "standardise of mse"),
        (SQUARED_ERROR, "mse", {"row_weight": "paced"}, "row_weight=paced of mse"),
        (CROSS_ENTROPY, "kd", {}, "several temperatures"),
        (CROSS_ENTROPY, "kd:1", {"temperature_rule": "difficulty"}, "temperature_rule of kd"),
        (CROSS_ENTROPY, "dkd", {}, "serves ce, kd, soft_ce"),
    ],
)
def test_what_has_no_target_is_refused(fits: str, text: str, settings: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        check_fitted(parse_objective(text, settings), fits, "sklearn:X")


@pytest.fixture(scope="module")
def table() -> Split:
    features, prob = draw(num_rows=240, seed=1)
    rng = np.random.default_rng(1)
    labels = np.array([rng.choice(3, p=row) for row in prob])
    return Split(name="drawn", split="train", spec="drawn?split=train", samples=features, labels=labels, num_classes=3)


@pytest.fixture(scope="module")
def held_out(table: Split) -> Split:
    return replace(
        table, split="test", spec="drawn?split=test", samples=np.asarray(table.samples, np.float32) + np.float32(0.01)
    )


@pytest.fixture(scope="module")
def store(table: Split, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("fitted") / "s.zarr"
    plan = FoldPlan(num_folds=3, strategy="kfold")
    teacher = EstimatorTeacher("sklearn:RandomForestClassifier?n_estimators=10&floor=0.01", table, plan=plan)
    cache_teacher(teacher, path, encoding=Encoding(kind="dense", num_classes=3, bits=32))
    return open_store(path)


def test_a_run_is_a_run_like_any_other(store: Store, table: Split, held_out: Split, tmp_path: Path) -> None:
    asked = {"student": FOREST, "loss": "sel_corrected", "settings": SQUARES, "val_share": 0.2}
    result = train(store, table, held_out, tmp_path / "run", asked=asked)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {SETTINGS, RESULT, HISTORY, WEIGHTS}
    check_tables(tmp_path / "run", result, held_out)
    assert result["validation"]["num_rows"] == 48
    assert result["num_parameters"] > 0
    assert len((tmp_path / "run" / HISTORY).read_text().splitlines()) == 2
    again = train(store, table, held_out, tmp_path / "again", asked=asked)
    assert again["weights_sha256"] == result["weights_sha256"]
    other = train(store, table, held_out, tmp_path / "other", asked=asked, seed=1)
    assert other["weights_sha256"] != result["weights_sha256"]
    there = (tmp_path / "run" / RESULT).stat().st_mtime_ns
    assert train(store, table, held_out, tmp_path / "run", asked=asked) == result
    assert (tmp_path / "run" / RESULT).stat().st_mtime_ns == there
    with pytest.raises(ValueError, match="a finished run with other settings"):
        train(store, table, held_out, tmp_path / "run", asked={**asked, "student": FOREST.replace("6", "5")})


def check_tables(out: Path, result: dict[str, Any], test: Split) -> None:
    """The files of classes and confusions are scikit-learn's figures of the student's own answers."""
    found = load_student(out).logits(np.asarray(test.samples)).argmax(1).numpy()
    want = confusion_matrix(test.labels, found)
    with (out / CONFUSION).open(newline="") as file:
        told = {(int(row["class"]), int(row["predicted"])): int(row["num_rows"]) for row in csv.DictReader(file)}
    assert told == {(a, b): want[a, b] for a, b in np.argwhere(want)}
    with (out / CLASSES).open(newline="") as file:
        classes = list(csv.DictReader(file))
    assert [float(row["precision"]) for row in classes] == pytest.approx(
        precision_score(test.labels, found, average=None)
    )
    assert [float(row["accuracy"]) for row in classes] == [row["accuracy"] for row in result["test"]["per_class"]]
    assert "confusion" not in result["test"]


def test_the_targets_are_the_stores_and_the_file_is_the_student(store: Store, table: Split, tmp_path: Path) -> None:
    """The forest of a run is scikit-learn's of the out-of-fold answers, and comes back from its file."""
    asked = {"student": FOREST, "loss": "mse"}
    train(store, table, None, tmp_path / "run", asked=asked, seed=4)
    student = load_student(tmp_path / "run")
    logits_NC = open_answers(store).logits(torch.arange(len(table)), 0).double().numpy()
    forest = ensemble.RandomForestRegressor(3, max_depth=6, random_state=4).fit(table.samples, logits_NC)
    want = forest.predict(table.samples)
    np.testing.assert_allclose(student.logits(np.asarray(table.samples)).numpy(), want, rtol=1e-5, atol=1e-6)


def test_every_view_is_fitted(digits: Split, tmp_path: Path) -> None:
    """A tree with a leaf for each row knows the answers to both views of the pictures that it was shown."""
    few = load_split("digits?limit=40")
    views = Views(transform="flip-crop", num_views=2, seed=1)
    logits = np.random.default_rng(0).normal(size=(2, len(few), 10)).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    teacher = ArrayTeacher(tmp_path / "logits.npy", few, views)
    cache_teacher(teacher, tmp_path / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=32))
    student = "sklearn:DecisionTreeRegressor"
    train(open_store(tmp_path / "s.zarr"), few, None, tmp_path / "run", asked={"student": student, "loss": "mse"})
    model = build_model(student, few)
    load_weights(model, tmp_path / "run" / WEIGHTS, architecture=student)
    pixels = [views.samples(few, np.arange(len(few)), view) for view in range(2)]
    differ = (pixels[0] != pixels[1]).any(axis=(1, 2, 3))
    assert differ.sum() > 20
    for view in range(2):
        shown = torch.from_numpy(pixels[view][differ]).permute(0, 3, 1, 2) / 255
        np.testing.assert_allclose(model(shown).numpy(), logits[view][differ], atol=2e-3)


def test_class_weights_are_scikit_learns(store: Store, table: Split, tmp_path: Path) -> None:
    """A tree of labels, weighed by the inverse frequency of their classes, is the library's of balanced classes."""
    student = "sklearn:DecisionTreeClassifier?max_depth=3"
    rule = {"row_weight": "inverse_frequency", "row_weight_floor": "0"}
    train(store, table, None, tmp_path / "run", asked={"student": student, "loss": "ce", "settings": rule})
    want = tree.DecisionTreeClassifier(max_depth=3, criterion="log_loss", class_weight="balanced", random_state=0)
    want_NC = want.fit(table.samples, table.labels).predict_proba(table.samples)
    got = load_student(tmp_path / "run").predict(np.asarray(table.samples))
    np.testing.assert_allclose(got, want_NC, atol=1e-5)


def test_auto_is_searched(store: Store, table: Split, tmp_path: Path) -> None:
    asked = {"student": "sklearn:DecisionTreeRegressor?max_depth=2", "loss": "sel_corrected"}
    result = train(store, table, None, tmp_path / "run", asked=asked, settings={**SQUARES, "c": "auto"})
    assert len(result["search"]) == 9
    assert isinstance(result["settings"]["terms"][0]["c"], float)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": "sklearn:RandomForestRegresor"}, "did you mean 'RandomForestRegressor'"),
        ({"student": "sklearn:SVR"}, "unknown scikit-learn student 'SVR'"),
        ({"student": f"{FOREST}&trees=3"}, "unknown option 'trees'"),
        ({"student": f"{FOREST}&random_state=3"}, "random_state is set by --seed"),
        ({"student": f"{FOREST}&n_estimators=3"}, "n_estimators is given twice"),
        ({"student": "sklearn:RandomForestRegressor?n_estimators=-1"}, "must be an int in the range"),
        ({"student": "sklearn:RandomForestRegressor?bootstrap=false&max_samples=0.5"}, "max_samples does nothing"),
        ({"tail": "bucket", "loss": "mse"}, "--tail bucket follows"),
        ({"loss": "kd"}, "it serves mse, sel"),
        ({"epochs": 3}, "--epochs does nothing here"),
        ({"lr": 0.1}, "--lr does nothing here"),
        ({"init": "x.safetensors"}, "--init does nothing here"),
        ({"device": "cpu"}, "--device does nothing here"),
        ({"mean": "0", "std": "1"}, "--mean does nothing here"),
    ],
)
def test_what_does_nothing_or_is_not_there_is_refused(
    changes: dict[str, Any], said: str, store: Store, table: Split, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        train(store, table, None, tmp_path / "run", asked={"student": FOREST, "loss": "mse", **changes})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_sweep_takes_both_kinds_and_a_comparison_shows_them(
    store: Store, table: Split, held_out: Split, tmp_path: Path
) -> None:
    np.savez(tmp_path / "d.npz", x=table.samples, y=table.labels, x_test=held_out.samples, y_test=held_out.labels)
    base = Run(store=str(store.path), data=f"npz:{tmp_path}/d.npz", training=Training(epochs=2), workers=0)
    grid = {"temperature": ["1"]}
    planned = plan_runs(base, tmp_path / "sweep", losses=["ce", "kd"], students=["mlp:4", BOOSTED], grid=grid, seeds=1)
    assert [each.run.training.epochs for each in planned if "sklearn" not in each.run.student] == [2, 2]
    events: list[Event] = []
    run_sweep(planned, tmp_path / "sweep", jobs=1, threads=1, on_event=events.append)
    assert [event.kind for event in events if event.kind in ("done", "failed")] == ["done"] * 4, events
    methods = load_runs(tmp_path / "sweep")
    results = {name: {seed: run.result for seed, run in runs.items()} for name, runs in methods.items()}
    chosen = choose_baselines(methods, "")
    assert chosen[f"kd {BOOSTED}"] == f"ce {BOOSTED}"
    write_report(methods, compare(results, chosen, "auc"), tmp_path / "page.html", title="both", failed={})
    page = (tmp_path / "page.html").read_text()
    assert "HistGradientBoostingClassifier" in page
    assert "taken for" in page
    with pytest.raises(ValueError, match="serves mse, sel"):
        plan_runs(base, tmp_path / "s", losses=["kd"], students=["mlp:4", FOREST], grid={}, seeds=1)
    with pytest.raises(ValueError, match="--epochs does nothing"):
        plan_runs(base, tmp_path / "s", losses=["ce"], students=[BOOSTED], grid={}, seeds=1)


def damaged(state: dict[str, Tensor], fault: str) -> dict[str, Tensor]:
    inner = int((state["left"] != torch.arange(len(state["left"]))).nonzero()[0])
    if fault == "circle":
        state["left"][inner] = inner
    elif fault == "nowhere":
        state["right"][inner] = 10**6
    elif fault == "column":
        state["feature"][inner] = 99
    elif fault == "class":
        state["output"][0] = -1
    elif fault == "root":
        state["root"][0] = 10**6
    elif fault == "infinite":
        state["value"][0] = torch.inf
    elif fault == "short":
        state["left"] = state["left"][:-1].clone()
    else:
        state["value"] = state["value"][:, :2].clone()
    return state


@pytest.mark.parametrize("fault", ["circle", "nowhere", "column", "class", "root", "infinite", "short", "narrow"])
def test_a_strangers_nodes_are_checked(fault: str, tmp_path: Path, table: Split) -> None:
    features, target = draw()
    model = fit_trees(FOREST, features, target, np.ones(len(target)))
    save_file(damaged(dict(model.state_dict()), fault), tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"w\.safetensors: ") as caught:
        load_weights(build_model(FOREST, table), tmp_path / "w.safetensors", architecture=FOREST)
    assert "\n" not in str(caught.value)


def test_every_line_of_the_table_is_tried_here() -> None:
    tried = {spec.partition("?")[0] for spec in {**REGRESSORS, **CLASSIFIERS}}
    assert tried == set(ESTIMATORS)
