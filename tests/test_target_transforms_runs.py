"""Target transforms in runs: what is fitted on a store, said and recorded, found, gone on with, and refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.augment import Augmentation, partner
from logitbank.pipeline.models.weights import load_state, weights_digest
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.fit_transforms import fit_transforms
from logitbank.pipeline.train_student.folder import SEARCH, SETTINGS, WEIGHTS, read_json
from logitbank.pipeline.train_student.losses import MixedAnswer, Step, parse_objective
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

CALIBRATED = "calibrate + noise_transition?prior=5 + label_mix?alpha=0.25"


@pytest.fixture(scope="module")
def store(digits: Split, fold_teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Three fold teachers' answers, and those of a top-k teacher."""
    path = tmp_path_factory.mktemp("transforms") / "folds"
    teachers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(fold_teachers)), Views())
    cache_teacher(teachers, path, encoding=Encoding(kind="dense", num_classes=10, bits=16), name="dense")
    cache_teacher(teachers, path, encoding=Encoding(kind="topk", num_classes=10, top_k=3), name="top")
    return open_store(path)


@pytest.fixture(scope="module")
def plain(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """One teacher of all rows."""
    folder = tmp_path_factory.mktemp("plain")
    np.save(folder / "l.npy", np.random.default_rng(5).normal(scale=2, size=(len(digits), 10)).astype(np.float32))
    answers = ArrayTeacher(folder / "l.npy", digits, Views())
    cache_teacher(answers, folder / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=16))
    return open_store(folder / "s.zarr")


def asked(text: str, **more: Any) -> dict[str, Any]:
    return {"loss": "soft_ce", "settings": {"target_transform": text}, "teacher": "dense", "epochs": 1, **more}


def test_what_was_fitted_is_said_and_recorded_and_the_run_goes_on_the_same(
    store: Store, digits: Split, tmp_path: Path
) -> None:
    said: list[str] = []
    whole = train(store, digits, None, tmp_path / "a", asked=asked(CALIBRATED, epochs=2), on_warning=said.append)
    fits = [line for line in said if "NLL of the labels" in line]
    assert [line.partition(":")[0] for line in fits] == ["calibrate", "noise_transition"]
    assert "before" in fits[0]
    recorded = read_json(tmp_path / "a" / SETTINGS)["objective"]["target_transforms"]
    assert [each["transform"] for each in recorded] == ["calibrate", "noise_transition", "label_mix"]
    assert recorded[0]["fitted_rows"] == len(digits)
    assert f"T = {recorded[0]['T']:.4g}" in fits[0]
    assert recorded[0]["nll_after"] < recorded[0]["nll_before"]
    assert whole["settings"]["target_transforms"] == recorded

    with pytest.raises(KeyboardInterrupt):
        train(store, digits, None, tmp_path / "b", asked=asked(CALIBRATED, epochs=2), on_epoch=_stop)
    train(store, digits, None, tmp_path / "b", asked=asked(CALIBRATED, epochs=2))
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b")
    train(store, digits, None, tmp_path / "c", asked={**asked("calibrate", epochs=2), "settings": {}})
    assert _digest(tmp_path / "a") != _digest(tmp_path / "c")


def _stop(record: Any) -> None:
    raise KeyboardInterrupt


def _digest(folder: Path) -> str:
    return weights_digest(load_state(folder / WEIGHTS))


def test_a_fit_looks_at_labelled_training_rows_alone(store: Store, digits: Split) -> None:
    answers = open_answers(store, teacher="dense")
    objective = parse_objective("kd", {"target_transform": "calibrate"})
    half = np.arange(0, len(digits), 2)
    fitted, _ = fit_transforms(objective, answers, half)
    logits_NC = answers.logits(torch.from_numpy(half), 0).double()
    labels_N = torch.from_numpy(digits.labels[half])
    found = fitted.transforms[0].found
    assert found["fitted_rows"] == len(half)
    assert found["nll_before"] == pytest.approx(float(torch.nn.functional.cross_entropy(logits_NC, labels_N)), rel=1e-3)
    scaled = torch.nn.functional.cross_entropy(logits_NC / found["T"], labels_N)
    assert found["nll_after"] == pytest.approx(float(scaled), rel=0.02)
    with pytest.raises(ValueError, match="0 rows|expected at least 20, of 2"):
        fit_transforms(objective, answers, half[:5])


def test_the_share_of_the_label_is_found_and_not_looked_for_twice(store: Store, digits: Split, tmp_path: Path) -> None:
    text = "label_mix?alpha=auto"
    result = train(store, digits, None, tmp_path / "a", asked=asked(text))
    (found,) = result["search"]
    assert 0 <= found["label_mix.alpha"] <= 1
    assert result["settings"]["target_transforms"] == [{"transform": "label_mix", "alpha": found["label_mix.alpha"]}]
    given = train(store, digits, None, tmp_path / "b", asked=asked(f"label_mix?alpha={found['label_mix.alpha']!r}"))
    assert given["search"] == []
    assert _digest(tmp_path / "a") == _digest(tmp_path / "b")
    with pytest.raises(KeyboardInterrupt):
        train(store, digits, None, tmp_path / "c", asked=asked(text, epochs=2), on_epoch=_stop)
    assert read_json(tmp_path / "c" / SEARCH)


def test_mixed_inputs_have_mixed_answers(plain: Store, digits: Split, tmp_path: Path) -> None:
    """One step by hand: the loss of the pair's mixed logits, with the shares that mixed the inputs."""
    settings: dict[str, str | float] = {"ce_weight": 0, "temperature": 30, "target_transform": "mix_targets"}
    run = {"loss": "kd", "settings": settings, "mixup": 0.8, "epochs": 1}
    train(plain, digits, None, tmp_path / "mixed", asked=run)
    train(plain, digits, None, tmp_path / "losses", asked={**run, "settings": {"ce_weight": 0, "temperature": 30}})
    assert _digest(tmp_path / "mixed") != _digest(tmp_path / "losses")
    answers, objective = open_answers(plain), parse_objective("kd", settings)
    loss = DistillationLoss(objective, answers, digits, epochs=1)
    augmentation = Augmentation(Training(mixup=0.8), digits.keys)
    rows_B, student_BC = torch.arange(40, 47), torch.randn(7, 10)

    def ask(rows: torch.Tensor, **mixed: Any) -> torch.Tensor:
        return loss(student_BC, rows, view=0, step=0, steps_per_epoch=1, **mixed)

    got_B = augmentation.loss(ask, rows_B, 0, mixes_answers=loss.mixes_answers)
    inputs_B = augmentation.apply(rows_B.double()[:, None], rows_B, 0)[:, 0]  # s a + (1 - s) b, of the row numbers
    partners_B = rows_B[partner(7)]
    share_B = torch.where(rows_B == partners_B, 1.0, (inputs_B - partners_B) / (rows_B - partners_B))
    answer = MixedAnswer(answers.of(rows_B, 0), answers.of(partners_B, 0), share_B)
    unlabelled_B = torch.full((7,), -1)
    want_B = objective(student_BC, answer, unlabelled_B, Step(step=0, steps_per_epoch=1, num_epochs=1))
    torch.testing.assert_close(got_B, want_B)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (asked("calibrate", loss="kd"), "needs answers of a teacher that did not see the row|out-of-fold"),
        (asked("label_mix?alpha=auto"), "out-of-fold"),
        ({"loss": "kd", "settings": {"ce_weight": 0, "target_transform": "mix_targets"}}, "pass --mixup 0.8"),
        (asked("label_mx"), "did you mean 'label_mix'"),
    ],
)
def test_what_a_store_does_not_allow_is_refused_before_the_run(
    plain: Store, digits: Split, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        train(plain, digits, None, tmp_path / "run", asked={**settings, "teacher": ""})
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / SETTINGS).exists()


def test_labels_and_the_order_of_classes_are_asked_for(store: Store, digits: Split, tmp_path: Path) -> None:
    nothing = replace(digits, labels=np.full(len(digits), -1))
    with pytest.raises(ValueError, match="needs labels|labels"):
        train(store, nothing, None, tmp_path / "run", asked=asked("calibrate"))
    reorders = asked("calibrate?method=vector", loss="rld", teacher="top")
    with pytest.raises(ValueError, match="goes by the classes above the label, which calibrate reorders"):
        train(store, digits, None, tmp_path / "run", asked=reorders)
    private = {"dp_sgd": 1.0, "grad_clip": 1.0, "mean": "0.5", "std": "0.25", "student": "linear"}
    for text in ("calibrate", "label_mix?alpha=auto"):
        with pytest.raises(ValueError, match="--dp-sgd does not go with .*: it is fitted to the labels of all rows"):
            train(store, digits, None, tmp_path / "run", asked=asked(text, **private))
    both = {"target_transform": "label_mix?alpha=auto", "c": "auto", "scale": "probability"}
    with pytest.raises(ValueError, match="are both auto; give one of them a number"):
        train(store, digits, None, tmp_path / "run", asked=asked("", loss="sel_corrected") | {"settings": both})


def test_a_transform_from_a_file_is_part_of_the_run(plain: Store, digits: Split, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("def sharper(logits_BC, labels_B, *, power=2.0):\n    return power * logits_BC\n")
    run = asked(f"{file}:sharper?power=1.5") | {"teacher": ""}
    result = train(plain, digits, None, tmp_path / "run", asked=run)
    (said,) = result["settings"]["target_transforms"]
    assert (said["transform"], said["power"]) == ("mine.py:sharper", 1.5)
    assert len(said["sha256"]) == 64
