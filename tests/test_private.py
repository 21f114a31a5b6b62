"""Private students: each example's gradient clipped, noise as promised, and an epsilon that is the accountant's."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.fit.private import PrivateSteps, epsilon, sample_rate
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.models.weights import load_state, read_training_keys
from logitbank.pipeline.train_student.folder import WEIGHTS
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

PLAIN: dict[str, Any] = {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0, "schedule": "constant", "epochs": 1}
SCALING = Preprocessing(mean=(0.5,), std=(0.25,))
RUN: dict[str, Any] = {"loss": "soft_ce", "epochs": 1, "dp_sgd": 1.0, "mean": "0.5", "std": "0.25", "grad_clip": 1.0}


class SumOfSquares(BatchLoss):
    """A loss whose gradients differ in size from row to row."""

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, *, view: int, step: int, steps_per_epoch: int) -> Tensor:
        return ((1 + rows_B[:, None]) * logits_BC**2).sum(1)


@pytest.fixture(scope="module")
def few(digits: Split) -> Split:
    return replace(digits, samples=np.asarray(digits.samples)[:20], labels=digits.labels[:20])


@pytest.fixture(scope="module")
def store(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("private")
    np.save(folder / "a.npy", 4 * np.eye(10, dtype=np.float32)[digits.labels])
    teacher = ArrayTeacher(folder / "a.npy", digits, Views())
    cache_teacher(teacher, folder / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=32))
    return open_store(folder / "s.zarr")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 3, 3), nn.GroupNorm(3, 3), nn.Flatten(), nn.Linear(108, 10), nn.LayerNorm(10))
    return nn.Sequential(*layers)


def train_network(split: Split, training: Training) -> nn.Sequential:
    model = network()
    fit(model, split, SumOfSquares(), training, views=Views(), preprocessing=SCALING)
    return model


def test_a_step_goes_along_the_mean_of_clipped_gradients_of_each_example(few: Split) -> None:
    """As a loop over the examples finds them; all are drawn, and noise is next to none."""
    clip, model = 3.0, network()
    inputs = SCALING(torch.from_numpy(np.asarray(few.samples)))
    mean = [torch.zeros_like(parameter) for parameter in model.parameters()]
    norms = []
    for row in range(20):
        loss = ((1 + row) * model(inputs[row : row + 1]) ** 2).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norms.append(math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients)))
        for total, gradient in zip(mean, gradients, strict=True):
            total += min(1.0, clip / norms[-1]) * gradient / 20
    assert max(norms) > clip
    training = Training(**PLAIN, batch_size=20, lr=0.1, dp_sgd=1e-9, grad_clip=clip)
    private = train_network(few, training)
    for before, after, gradient in zip(model.parameters(), private.parameters(), mean, strict=True):
        torch.testing.assert_close(after, before - 0.1 * gradient, rtol=1e-4, atol=1e-5)
    assert not any(hasattr(part, "autograd_grad_sample_hooks") for part in private.modules())


def test_noise_is_as_large_as_it_says(few: Split) -> None:
    """Where gradients are clipped to next to nothing, a step is noise alone: of std noise * clip / batch."""
    training = Training(**PLAIN, batch_size=20, lr=1.0, dp_sgd=2e4, grad_clip=1e-4)
    before, after = network(), train_network(few, training)
    steps = torch.cat([(b - a).flatten() for a, b in zip(before.parameters(), after.parameters(), strict=True)])
    assert float(steps.detach().std()) == pytest.approx(2e4 * 1e-4 / 20, rel=0.1)
    again = train_network(few, training)
    assert not torch.equal(next(after.parameters()), next(again.parameters()))  # nothing known decides it


def test_examples_are_drawn_each_by_itself(few: Split) -> None:
    """Batches differ in size as those of Poisson sampling, and a step may have no examples."""
    training = Training(**PLAIN, batch_size=2, dp_sgd=1.0)
    private = PrivateSteps(network(), training, 20)
    sizes = torch.tensor([len(rows) for _ in range(200) for rows in private.draw(torch.arange(20))])
    private.close()
    assert len(sizes) == 200 * private.num_steps == 2000
    assert float(sizes.double().mean()) == pytest.approx(2, abs=0.2)
    assert float(sizes.double().var()) == pytest.approx(20 * 0.1 * 0.9, rel=0.2)
    assert (sizes == 0).any()
    train_network(few, replace(training, batch_size=1, epochs=2))  # of 40 steps a third is empty


@pytest.mark.parametrize(("noise", "steps"), [(2.0, 10), (0.7, 300)])
def test_epsilon_is_that_of_the_gaussian_mechanism(noise: float, steps: int) -> None:
    """Where every example is in every step, by Mironov and the conversion of Balle et al., over orders."""
    training = Training(batch_size=100, dp_sgd=noise, dp_delta=1e-6)
    assert sample_rate(training, 100) == 1.0
    found = min(
        steps * order / (2 * noise**2) + math.log1p(-1 / order) - (math.log(1e-6) + math.log(order)) / (order - 1)
        for order in [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))
    )
    assert epsilon(training, 100, steps) == pytest.approx(found, rel=1e-6)


def test_a_private_student_learns_and_says_what_it_spent(
    store: Store, digits: Split, digits_test: Split, tmp_path: Path
) -> None:
    told: list[str] = []
    asked = {**RUN, "student": "linear", "epochs": 4, "batch_size": 256, "lr": 1.0}
    result = train(store, digits, digits_test, tmp_path / "r", asked=asked, on_warning=told.append)
    said = result["privacy"]
    assert result["accuracy"] > 0.7
    assert (said["steps"], said["delta"], said["max_grad_norm"]) == (4 * 6, 1e-5, 1.0)
    assert said["epsilon"] == epsilon(Training(batch_size=256, dp_sgd=1.0), len(digits), 24)
    assert 0 < said["epsilon"] < 10
    assert len([line for line in told if line.startswith("--dp-sgd: epsilon covers")]) == 1
    assert read_training_keys(tmp_path / "r" / WEIGHTS) is None  # which would say who took part
    other = train(store, digits, digits_test, tmp_path / "other", asked=asked)
    assert other["weights_sha256"] != result["weights_sha256"]
    assert load_state(tmp_path / "r" / WEIGHTS).keys() == load_state(tmp_path / "other" / WEIGHTS).keys()
    assert json.loads((tmp_path / "r" / "result.json").read_text())["privacy"] == said


def test_without_opacus_it_says_what_to_install(
    store: Store, digits: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opacus.validators", None)
    with pytest.raises(ValueError, match=r"pip install 'logitbank\[privacy\]'"):
        train(store, digits, None, tmp_path / "r", asked=RUN)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "dist"}, "does not go with dist: a row's loss depends on the others"),
        ({"loss": "kd", "settings": {"row_weight": "confidence"}}, "row_weight_mean_one=false"),
        ({"loss": "kd", "settings": {"temperature_rule": "difficulty"}}, "depends on the others"),
        ({"settings": {"row_weight": "inverse_frequency", "row_weight_mean_one": "false"}}, "counts the rows"),
        ({"loss": "kd", "settings": {"temperature_rule": "learned"}}, "what it learns itself is not private"),
        ({"loss": "elr"}, "what it learns itself is not private"),
        ({"mean": "", "std": ""}, "input scaling would be computed from private rows"),
        ({"mixup": 1.0}, "--mixup does not go with --dp-sgd: an example would be in two samples"),
        ({"accumulate": 2}, "--accumulate does not go with --dp-sgd"),
        ({"weight_bits": 4}, "--student-bits does not go with --dp-sgd"),
        ({"select": "best", "val_share": 0.1}, "--select does not go with --dp-sgd"),
        ({"grad_clip": 0.0}, "--grad-clip is 0"),
        ({"checkpoint_every": 5}, "a private run that is stopped starts over"),
        ({"student": "resnet8"}, "--dp-sgd does not go with this student"),
        ({"dp_sgd": 0.0, "dp_delta": 1e-6}, "--dp-delta does nothing here"),
    ],
)
def test_what_breaks_the_promise_is_refused(
    store: Store, digits: Split, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as refused:
        train(store, digits, None, tmp_path / "r", asked={**RUN, **settings})
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "r").exists()


def test_a_private_student_does_not_start_from_one_that_has_seen_its_rows(
    store: Store, digits: Split, tmp_path: Path
) -> None:
    """Epsilon says nothing of what was learned without noise."""
    plain = {"student": "linear", "loss": "soft_ce", "epochs": 1, "val_share": 0.2}
    train(store, digits, None, tmp_path / "plain", asked=plain)
    before = read_training_keys(tmp_path / "plain" / WEIGHTS)
    assert before is not None
    asked = {**RUN, "student": "linear", "init": str(tmp_path / "plain" / WEIGHTS)}
    with pytest.raises(ValueError, match=f"was trained on {np.isin(digits.keys, before).sum()} of these {len(digits)}"):
        train(store, digits, None, tmp_path / "r", asked=asked)
    assert not (tmp_path / "r").exists()
    told: list[str] = []
    train(store, digits, None, tmp_path / "private", asked={**RUN, "student": "linear"})
    again = {**asked, "init": str(tmp_path / "private" / WEIGHTS)}
    train(store, digits, None, tmp_path / "again", asked=again, on_warning=told.append)
    assert any("does not say what it was trained on; of these rows, epsilon does not cover it" in line for line in told)
