"""The trainer's parts: schedules, rounded weights, running average, accumulation, settings that make no sense."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.fit.predict import Diverged, predict
from logitbank.pipeline.fit.weights import (
    BUCKET,
    round_in_place,
    rounded,
    rounded_parameters,
    weight_bytes,
)
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.weights import weights_digest
from logitbank.pipeline.train_student.evaluate import cut_validation
from logitbank.pipeline.views import Views


class Labels(BatchLoss):
    def __init__(self, split: Split) -> None:
        self.labels = torch.from_numpy(split.labels)

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, **_: int) -> Tensor:
        return F.cross_entropy(logits_BC, self.labels[rows_B], reduction="none")


def trained(split: Split, training: Training) -> tuple[torch.nn.Module, float]:
    torch.manual_seed(0)
    model = build_model("mlp:8", split)
    history = fit(model, split, Labels(split), training, views=Views(), preprocessing=fit_preprocessing(split))
    return model, history[-1].loss


@pytest.mark.parametrize("schedule", ["cosine", "step", "one-cycle", "constant"])
def test_a_schedule_stays_below_its_peak_and_follows_the_warm_up(schedule: str) -> None:
    training = Training(epochs=10, lr=0.2, schedule=schedule, warmup_epochs=2)
    rates = [training.learning_rate(step, 50) for step in range(500)]
    assert max(rates) == pytest.approx(0.2, rel=0.01)
    assert min(rates) > 0
    np.testing.assert_allclose(rates[:100], 0.2 * np.arange(1, 101) / 100)
    if schedule != "constant":
        assert rates[-1] < 0.01


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_bucket_has_as_many_values_as_its_bits_allow(bits: int) -> None:
    weight = torch.randn(7, 100, generator=torch.Generator().manual_seed(0))
    near = rounded(weight, bits)
    for bucket in range(-(-weight.numel() // BUCKET)):
        own, exact = (t.reshape(-1)[bucket * BUCKET : (bucket + 1) * BUCKET] for t in (near, weight))
        assert len(set(own.tolist())) <= 2**bits
        assert (own - exact).abs().max() <= (exact.max() - exact.min()) / (2**bits - 1) / 2 + 1e-6
    torch.testing.assert_close(rounded(near, bits), near)  # what is rounded stays


def test_the_gradient_passes_straight_through(digits: Split) -> None:
    model = build_model("mlp:8", digits)
    sum(weight.sum() for weight in rounded_parameters(model, 2).values()).backward()  # type: ignore[union-attr]
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, gradient in gradients.items():
        assert gradient is None if name.endswith("bias") else gradient is not None and gradient.eq(1).all()
    assert weight_bytes(model, 8) < weight_bytes(model) / 3.5


def test_training_with_few_bits_ends_with_few_values(digits: Split) -> None:
    model, loss = trained(digits, Training(epochs=2, weight_bits=4))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    round_in_place(model, 4)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert loss < 1.5


def test_accumulation_changes_nothing_but_rounding(digits: Split) -> None:
    once, _ = trained(digits, Training(epochs=1))
    parts, _ = trained(digits, Training(epochs=1, accumulate=4))
    for a, b in zip(once.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "measured", "kept", "trained_epochs"),
    [
        ({"select": "best:nll"}, [3.0, 2.0, 2.0, 2.5, 1.0], 5, 5),
        ({"select": "best:nll", "patience": 2}, [3.0, 2.0, 2.0, 2.5, 1.0], 2, 4),
        ({"select": "best:auc", "patience": 3}, [0.5, 0.7, 0.6, 0.8, 0.7], 4, 5),
        ({"select": "best", "patience": 1}, [0.9, 0.1, 0.1, 0.1, 0.1], 1, 2),
        ({}, [0.9, 0.1, 0.1, 0.1, 0.1], 5, 5),
    ],
)
def test_the_best_epoch_by_a_measure_is_kept_and_patience_ends_training(
    digits: Split, tmp_path: Path, settings: dict[str, Any], measured: list[float], kept: int, trained_epochs: int
) -> None:
    """Also when the run is asked for again from its last checkpoint."""
    training, seen = Training(epochs=5, **settings), list[str]()

    def evaluate(model: torch.nn.Module) -> dict[str, float]:
        seen.append(weights_digest(model.state_dict()))
        return {"val_accuracy": 0.0, "val_nll": 0.0, "val_selected": measured[len(seen) - 1]}

    for _ in range(2):
        torch.manual_seed(0)
        model = build_model("mlp:8", digits)
        history = fit(
            *(model, digits, Labels(digits), training),
            views=Views(),
            preprocessing=fit_preprocessing(digits),
            rows=np.arange(200),
            evaluate=evaluate,
            checkpoint=Checkpoint(tmp_path / "c.safetensors"),
        )
        assert [record.val_selected for record in history] == measured[:trained_epochs]
        assert len(seen) == trained_epochs
        assert weights_digest(model.state_dict()) == seen[kept - 1]


def test_answers_are_the_same_in_other_batches_that_threads_read_ahead(digits: Split) -> None:
    model, scaling = build_model("cnn", digits), fit_preprocessing(digits)
    rows = np.random.default_rng(0).permutation(len(digits))[:301]
    one = predict(model, digits, preprocessing=scaling, rows=rows)
    other = predict(model, digits, preprocessing=scaling, rows=rows, batch_size=37, workers=2)
    torch.testing.assert_close(other, one)


def test_an_average_of_few_steps_is_near_the_weights_it_ended_with(digits: Split) -> None:
    """23 steps at 0.999 without a warm-up would leave 98 % of the weights that nothing has trained."""
    last, _ = trained(digits, Training(epochs=1))
    average, _ = trained(digits, Training(epochs=1, ema_decay=0.999))
    torch.manual_seed(0)
    start = build_model("mlp:8", digits)
    for w0, w1, w in zip(start.parameters(), last.parameters(), average.parameters(), strict=True):
        assert 0 < (w1 - w).norm() < 0.5 * (w1 - w0).norm()


def test_weights_that_are_not_finite_end_training(digits: Split) -> None:
    """The last step of an epoch can ruin them after its loss was counted."""

    class Once(Labels):
        def __call__(self, logits_BC: Tensor, rows_B: Tensor, **_: int) -> Tensor:
            return super().__call__(logits_BC, rows_B) * 1e32

    torch.manual_seed(0)
    model = build_model("mlp:8", digits)
    scaling = fit_preprocessing(digits)
    training = Training(epochs=1, batch_size=len(digits), lr=1e30, grad_clip=0)
    with pytest.raises(Diverged, match="weights are no longer finite in epoch 1; lower --lr"):
        fit(model, digits, Once(digits), training, views=Views(), preprocessing=scaling)
    with pytest.raises(Diverged, match="answers are not finite on 1437 of 1437 examples"):
        predict(model, digits, preprocessing=scaling)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "cosin"}, "did you mean 'cosine'"),
        ({"precision": "half"}, "unknown precision"),
        ({"select": "beset"}, "did you mean 'best'"),
        ({"select": "best:acc"}, "did you mean 'best:auc'"),
        ({"patience": 3}, "--patience does nothing here, because --select last"),
        ({"patience": 30, "select": "best"}, "--patience is 30 of 30 epochs"),
        ({"momentum": 1.0}, "--momentum is 1.0"),
        ({"weight_bits": 3}, "--student-bits is 3"),
        ({"accumulate": 0}, "--accumulate is 0"),
        ({"warmup_epochs": -1.0}, "--warmup-epochs is -1.0"),
        ({"compile": True, "weight_bits": 4}, "do not go together"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Training(), **settings)  # type: ignore[arg-type]


def test_validation_rows_are_stratified_and_the_same_for_every_run(digits: Split) -> None:
    rows, validation = cut_validation(digits, 0.2)
    assert sorted([*rows, *validation]) == list(range(len(digits)))
    np.testing.assert_allclose(np.bincount(digits.labels[validation]) / np.bincount(digits.labels), 0.2, atol=0.01)
    assert (cut_validation(digits, 0.2)[1] == validation).all()
    assert len(cut_validation(digits, 0.0)[1]) == 0
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="--val-share"):
            cut_validation(digits, share)


def test_scaling_by_counts_is_the_scaling(digits: Split) -> None:
    pixels = np.asarray(digits.samples, dtype=np.float64) / 255
    scaling = fit_preprocessing(digits)
    assert scaling.mean == pytest.approx((pixels.mean(),), abs=1e-6)
    assert scaling.std == pytest.approx((pixels.std(),), abs=1e-6)
