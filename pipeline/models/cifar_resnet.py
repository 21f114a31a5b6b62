"""The residual networks of the CIFAR literature, for small images of any size and channel count.

Shapes: B batch, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """conv-bn-relu-conv-bn plus shortcut.

    ``projection=False`` is option A of He et al.: subsample and pad channels with zeros, no parameters;
    ``projection=True`` is option B: 1 x 1 convolution with batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, *, projection: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride, self.added_channels = stride, out_channels - in_channels
        self.shortcut: nn.Module = nn.Identity()
        if projection and (stride != 1 or self.added_channels):
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def _shortcut(self, x: Tensor) -> Tensor:
        if isinstance(self.shortcut, nn.Identity) and (self.stride != 1 or self.added_channels):
            before = self.added_channels // 2
            return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.added_channels - before))
        out: Tensor = self.shortcut(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self._shortcut(x))


class CifarResNet(nn.Module):
    """ResNet of depth 6n + 2: a 3 x 3 stem, three stages of n blocks, global average pooling, one linear layer.

    Args:
        depth: 6n + 2.
        num_classes: C.
        in_channels: Channels of the images.
        widths: Channels of the stem and of the three stages.
        projection: Option B shortcuts instead of option A.

    References:
        He, Zhang, Ren, Sun. Deep Residual Learning for Image Recognition. 2015, section 4.2 (widths 16, 16, 32, 64,
        option A). The "x4" variants (32, 64, 128, 256, option B) are those of Tian, Krishnan, Isola. Contrastive
        Representation Distillation. ICLR 2020.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int = 3,
        widths: tuple[int, int, int, int] = (16, 16, 32, 64),
        projection: bool = False,
    ) -> None:
        super().__init__()
        num_blocks, rest = divmod(depth - 2, 6)
        if rest:
            raise ValueError(f"depth is {depth}; expected 6n + 2, such as 20, 32 or 56")
        self.conv1 = nn.Conv2d(in_channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.layer1 = _stage(widths[0], widths[1], 1, num_blocks, projection)
        self.layer2 = _stage(widths[1], widths[2], 2, num_blocks, projection)
        self.layer3 = _stage(widths[2], widths[3], 2, num_blocks, projection)
        self.linear = nn.Linear(widths[3], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Images float32 [B, channels, H, W] -> logits [B, C]."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits_BC: Tensor = self.linear(torch.mean(x, dim=(2, 3)))
        return logits_BC


def _stage(in_channels: int, out_channels: int, stride: int, num_blocks: int, projection: bool) -> nn.Sequential:
    first = Block(in_channels, out_channels, stride, projection=projection)
    rest = [Block(out_channels, out_channels, 1, projection=projection) for _ in range(num_blocks - 1)]
    return nn.Sequential(first, *rest)
