"""What the names of a training's optimisers and precisions stand for."""

from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from logitbank.pipeline.fit.training import Training

OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Training], Optimizer]] = {
    "sgd": lambda parameters, training: SGD(
        parameters,
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.momentum > 0,
        weight_decay=training.weight_decay,
    ),
    "adamw": lambda parameters, training: AdamW(parameters, lr=training.lr, weight_decay=training.weight_decay),
}

PRECISIONS: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
