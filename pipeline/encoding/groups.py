"""Classes in groups, so that a search among very many looks at the best of each group first.

Group g of G has the classes g, G + g, 2G + g and so on: the best of all groups are found at the speed of memory. The
classes beyond the last whole round, fewer than a group, are in none, and looked at one by one.

Shape suffixes: B rows, C classes, G groups, K kept classes, N groups of a row, M classes.
"""

import torch
from torch import Tensor

from logitbank.pipeline.encoding.settings import DENSE_CLASSES

_WIDTH = 16
_NUMBERS = 2**18


def group_width(num_classes: int) -> int:
    """Classes of a group: one up to `DENSE_CLASSES`."""
    return 1 if num_classes <= DENSE_CLASSES else _WIDTH


def best_of_groups(values_BC: Tensor) -> Tensor:
    """The largest number of each group, [B, G]."""
    width = group_width(values_BC.shape[1])
    if width == 1:
        return values_BC
    num_groups = values_BC.shape[1] // width
    return values_BC[:, : width * num_groups].reshape(-1, width, num_groups).amax(1)


def left_over(values_BC: Tensor) -> Tensor:
    """Numbers of the classes that are in no group, [B, fewer than a group]."""
    width = group_width(values_BC.shape[1])
    return values_BC[:, values_BC.shape[1] // width * width :]


def classes_of(group_BN: Tensor, num_classes: int) -> Tensor:
    """The classes of some groups, and those that are in none, int64 [B, M]."""
    width = group_width(num_classes)
    num_groups, device = num_classes // width, group_BN.device
    steps = torch.arange(0, width * num_groups, num_groups, device=device)
    own_BM = (group_BN[:, :, None] + steps).flatten(1)
    others = torch.arange(width * num_groups, num_classes, device=device)
    return torch.cat([own_BM, others.expand(len(own_BM), -1)], 1)


def best_classes(logits_BC: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest logits of each row and their classes, best first, float and int64 [B, K]; as `torch.topk`."""
    num_classes = logits_BC.shape[1]
    if group_width(num_classes) == 1 or num_classes < 4 * _WIDTH * count or logits_BC.device.type != "cpu":
        best_BK, index_BK = torch.topk(logits_BC, count, dim=1)
        return best_BK, index_BK
    group_BK = best_of_groups(logits_BC).topk(count, dim=1, sorted=False).indices  # the others have none of the best
    class_BM = classes_of(group_BK, num_classes)
    best_BK, place_BK = logits_BC.gather(1, class_BM).topk(count, dim=1)
    return best_BK, class_BM.gather(1, place_BK)


def in_rows(num_rows: int, num_classes: int) -> list[slice]:
    """Groups of rows that stay in a cache."""
    step = max(1, _NUMBERS // num_classes)
    return [slice(start, start + step) for start in range(0, num_rows, step)]
