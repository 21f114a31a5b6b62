"""Optimisers, groups of parameters and the running average, as timm has them, in our loop and checkpoint."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.fit.checkpoint import Checkpoint
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.fit.optimizers import make_optimizer
from logitbank.pipeline.fit.progress import Progress
from logitbank.pipeline.fit.training import OPTIMIZERS, WITH_MOMENTUM
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.weights import weights_digest
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.views import Views

CPU = torch.device("cpu")


class Labels(BatchLoss):
    def __init__(self, split: Split) -> None:
        self.labels = torch.from_numpy(split.labels)

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, **_: int) -> Tensor:
        return F.cross_entropy(logits_BC, self.labels[rows_B], reduction="none")


def test_the_names_are_timms() -> None:
    prepare_torchvision()
    from timm.optim import get_optimizer_info, list_optimizers  # type: ignore[attr-defined]

    assert set(OPTIMIZERS) <= set(list_optimizers())
    assert set(WITH_MOMENTUM) == {name for name in OPTIMIZERS if get_optimizer_info(name).has_momentum}


@pytest.mark.parametrize("settings", [{"optimizer": name} for name in OPTIMIZERS] + [{"ema_decay": 0.9}], ids=str)
def test_a_stopped_run_goes_on_to_the_same_bits(digits: Split, tmp_path: Path, settings: dict[str, object]) -> None:
    """Also where an optimiser counts its steps in its groups, as lamb and adan do."""
    training = Training(epochs=3, lr=0.01, weight_decay_on="weights", **settings)  # type: ignore[arg-type]
    rows = np.arange(200)

    def stop(record: EpochRecord) -> None:
        if record.epoch == 2:
            raise KeyboardInterrupt

    def train(name: str, *, stopped: bool) -> tuple[str, list[float]]:
        torch.manual_seed(0)
        model = build_model("cnn", digits)
        history = fit(
            *(model, digits, Labels(digits), training),
            views=Views(),
            preprocessing=fit_preprocessing(digits),
            rows=rows,
            checkpoint=Checkpoint(tmp_path / f"{name}.safetensors"),
            on_epoch=stop if stopped else None,
        )
        return weights_digest(model.state_dict()), [record.loss for record in history]

    whole, losses = train("whole", stopped=False)
    with pytest.raises(KeyboardInterrupt):
        train("stopped", stopped=True)
    assert train("stopped", stopped=False) == (whole, losses)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.0}, {"optimizer": "adamw"}], ids=str)
def test_what_is_made_without_timm_is_what_timm_makes(digits: Split, settings: dict[str, object]) -> None:
    prepare_torchvision()
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

    training, model = Training(**settings), build_model("cnn", digits)  # type: ignore[arg-type]
    own = make_optimizer(model, training)
    nesterov: dict[str, Any] = {"nesterov": False} if training.momentum == 0 else {}
    other = create_optimizer_v2(
        *(model.parameters(), training.optimizer, training.lr, training.weight_decay, training.momentum), **nesterov
    )
    assert type(own) is type(other)
    assert own.state_dict() == other.state_dict()


def test_weight_decay_on_weights_leaves_out_biases_and_norms(digits: Split) -> None:
    model = build_model("cnn", digits)
    optimizer = make_optimizer(model, Training(weight_decay=0.1, weight_decay_on="weights"))
    decayed = {
        id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert len(decayed) == len(list(model.parameters()))
    for parameter in model.parameters():
        assert decayed[id(parameter)] == (0.1 if parameter.ndim > 1 else 0.0)


@pytest.mark.parametrize("on", ["all", "weights"])
def test_rates_fall_layer_by_layer_from_the_head(digits: Split, on: str) -> None:
    training = Training(epochs=1, lr=0.1, layer_decay=0.5, weight_decay_on=on)
    model = build_model("timm:test_vit", digits)
    progress = Progress.start(model, training, CPU, Processes())
    progress.step(training, 0, 100)
    rates = {id(parameter): group["lr"] for group in progress.optimizer.param_groups for parameter in group["params"]}
    found = {name: rates[id(parameter)] for name, parameter in model.named_parameters()}
    depth = len({name.split(".")[1] for name in found if name.startswith("blocks.")})
    assert found["head.weight"] == pytest.approx(0.1)
    for block in range(depth):
        assert found[f"blocks.{block}.mlp.fc1.weight"] == pytest.approx(0.1 * 0.5 ** (depth - block))
    assert found["patch_embed.proj.weight"] == pytest.approx(0.1 * 0.5 ** (depth + 1))


def test_layers_that_nobody_knows_do_not_decay(digits: Split) -> None:
    with pytest.raises(ValueError, match=r"SmallCNN does not; take a timm: model"):
        make_optimizer(build_model("cnn", digits), Training(layer_decay=0.5))


def test_an_average_averages_what_batch_norm_has_seen_and_copies_its_counts(digits: Split) -> None:
    """The first step is taken whole; then the decay rises as 1 - (1 + n)^(-2/3)."""
    training = Training(epochs=1, ema_decay=0.9)
    model: nn.Module = build_model("cnn", digits)
    progress = Progress.start(model, training, CPU, Processes())
    assert progress.average is not None
    expected: dict[str, Tensor] = {}
    for step in range(50):
        model(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(step))).square().sum().backward()
        progress.step(training, step, 50)
        decay = min(0.9, 1 - (1 + step) ** (-2 / 3))
        for name, value in model.state_dict().items():
            averaged = step and value.is_floating_point()
            expected[name] = expected[name] * decay + value * (1 - decay) if averaged else value.clone()
    for name, value in progress.average.module.state_dict().items():
        torch.testing.assert_close(value, expected[name])
