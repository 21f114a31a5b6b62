"""Small networks: multilayer perceptrons for tables and tiny images, and a little convolutional one.

Shapes: B batch, C classes, D features.
"""

import math

import torch
from torch import Tensor, nn


class MLP(nn.Sequential):
    """Perceptron with ``depth`` hidden layers of ``width`` units; ``depth=0`` is multinomial logistic regression."""

    def __init__(self, *, input_shape: tuple[int, ...], num_classes: int, width: int, depth: int) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        features = math.prod(input_shape)
        for _ in range(depth):
            layers += [nn.Linear(features, width), nn.ReLU()]
            features = width
        super().__init__(*layers, nn.Linear(features, num_classes))


class SmallCNN(nn.Module):
    """Two 3 x 3 convolutions with batch norm, pooling to 2 x 2, one hidden layer. For images of 8 px and more."""

    def __init__(self, *, in_channels: int, num_classes: int, width: int = 32) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1, bias=False),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.classifier = nn.Sequential(nn.Linear(8 * width, 4 * width), nn.ReLU(), nn.Linear(4 * width, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Images float32 [B, channels, H, W] -> logits [B, C]."""
        logits_BC: Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return logits_BC
