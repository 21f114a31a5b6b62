"""What the names of a training's optimisers and precisions stand for."""

from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.fit.training import Training

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def make_optimizer(model: nn.Module, training: Training, beside: nn.Module | None = None) -> Optimizer:
    """The optimiser and its groups of parameters, by timm's factory; a group's ``lr_scale`` is its share of the rate.

    sgd and adamw over all parameters alike are torch's own, there as here: they do not wait for timm's import, which
    takes as long as all others together.

    Args:
        model: The student's, or the teacher's, network.
        training: Says which optimiser.
        beside: Has parameters that are trained as well; they are a group of their own, the last.

    Raises:
        ValueError: Layer decay of a model whose layers timm does not know.
    """
    layered, everything = training.layer_decay < 1, training.weight_decay_on == "all"
    if layered and not hasattr(model, "group_matcher"):
        raise ValueError(
            f"--layer-decay needs a model that says what its layers are, which {type(model).__name__} does not; take a"
            " timm: model, or leave it out"
        )
    nesterov = {"nesterov": training.momentum > 0} if training.optimizer == "sgd" else {}
    common: dict[str, Any] = {"lr": training.lr, "weight_decay": training.weight_decay, **nesterov}
    optimizer: Optimizer
    if everything and not layered and training.optimizer == "sgd":
        optimizer = SGD(model.parameters(), momentum=training.momentum, **common)
    elif everything and not layered and training.optimizer == "adamw":
        optimizer = AdamW(model.parameters(), **common)
    else:
        prepare_torchvision()
        from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]

        optimizer = create_optimizer_v2(
            model.parameters() if everything and not layered else model,  # a model's groups follow its own exceptions
            training.optimizer,
            momentum=training.momentum,
            filter_bias_and_bn=not everything,
            layer_decay=training.layer_decay if layered else None,
            **common,
        )
    if beside is not None and (parameters := list(beside.parameters())):
        optimizer.add_param_group({"params": parameters})
    return optimizer
