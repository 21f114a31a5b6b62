"""Wide residual networks for small images.

Shapes: B batch, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """bn-relu-conv-bn-relu-conv plus shortcut; a change of width projects the activated input."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.shortcut = (
            None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.bn1(x))
        y: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return y + (x if self.shortcut is None else self.shortcut(activated))


class WideResNet(nn.Module):
    """WRN-depth-width: a 3 x 3 stem of 16 channels, three stages of n blocks of 16, 32, 64 times ``width`` channels.

    Args:
        depth: 6n + 4.
        width: Widening factor.
        num_classes: C.
        in_channels: Channels of the images.

    References:
        Zagoruyko, Komodakis. Wide Residual Networks. BMVC 2016, table 1, without dropout.
    """

    def __init__(self, depth: int, width: int, *, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        num_blocks, rest = divmod(depth - 4, 6)
        if rest or num_blocks < 1:
            raise ValueError(f"depth is {depth}; expected 6n + 4, such as 16, 28 or 40")
        channels = (16, 16 * width, 32 * width, 64 * width)
        self.conv1 = nn.Conv2d(in_channels, channels[0], 3, 1, 1, bias=False)
        blocks = []
        for before, after, stride in zip(channels, channels[1:], (1, 2, 2), strict=False):
            blocks += [WideBlock(before, after, stride), *(WideBlock(after, after, 1) for _ in range(num_blocks - 1))]
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels[3])
        self.relu = nn.ReLU()  # a layer, so that the last map can be listened to
        self.linear = nn.Linear(channels[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Images float32 [B, channels, H, W] -> logits [B, C]."""
        x = self.relu(self.bn(self.blocks(self.conv1(x))))
        logits_BC: Tensor = self.linear(torch.mean(x, dim=(2, 3)))
        return logits_BC
