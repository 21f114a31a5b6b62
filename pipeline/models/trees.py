"""Trees that were grown elsewhere, as one network without gradients: arrays of nodes, walked for a whole batch at once.

Scikit-learn's forests and boosted trees become this, so that a student of theirs is saved, loaded, measured and
exported as any other, and nothing is pickled.

Shapes: B batch, D features, C classes, T trees, M nodes of all trees, W numbers of a leaf (C, or 1).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

PROB_FLOOR = 1e-6
_AT_ONCE = 256  # numbers a row
_MAX_DEPTH = 10_000

Array = npt.NDArray[np.generic]


@dataclass(frozen=True, kw_only=True)
class Tree:
    """One tree; a leaf is its own child.

    Attributes:
        feature: int [m], the column that a node asks.
        threshold: float64 [m]; rows at or below it go left.
        left, right: int [m], children, which stand behind their parent.
        value: float64 [m, W], what a leaf adds: for each class, or for the class ``output`` alone.
        output: See ``value``.
    """

    feature: Array
    threshold: Array
    left: Array
    right: Array
    value: Array
    output: int = 0


class TreeEnsemble(nn.Module):
    """The sum of the leaves that a row reaches, as logits.

    With ``is_probability`` the sum is a probability of each class, and its log, floored at ``PROB_FLOOR``, is the
    logit; else the sum is the logit. Either is multiplied by ``temperature``. It is computed in float64, so that the
    answers are scikit-learn's to rounding.

    Args:
        num_features: D; inputs of more dimensions are flattened.
        num_classes: C.
        trees: None for one that loads its trees from a file.
        base: float64 [C], what every row begins with.
        is_probability, temperature: See above.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor
    root: Tensor
    output: Tensor
    base: Tensor
    is_probability: Tensor
    temperature: Tensor

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        trees: list[Tree] | None = None,
        *,
        base: npt.NDArray[np.float64] | None = None,
        is_probability: bool = False,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_features, self.num_classes, self.depth = num_features, num_classes, 0
        trees = trees or [_LEAF]
        starts = np.cumsum([0, *(len(tree.feature) for tree in trees)])[:-1]
        for name in ("feature", "threshold", "value"):
            self._keep(name, np.concatenate([getattr(tree, name) for tree in trees]))
        for name in ("left", "right"):
            moved = [getattr(tree, name) + start for tree, start in zip(trees, starts, strict=True)]
            self._keep(name, np.concatenate(moved))
        self._keep("root", starts)
        self._keep("output", np.array([tree.output for tree in trees]))
        self._keep("base", np.zeros(num_classes) if base is None else base)
        self._keep("is_probability", np.array(float(is_probability)))
        self._keep("temperature", np.array(temperature))
        self.settle()

    def _keep(self, name: str, values: Array) -> None:
        kind = torch.float64 if values.dtype.kind == "f" else torch.int32
        self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(values)).to(kind))

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [B, C] of inputs [B, ...], in their dtype."""
        x_BD = inputs.flatten(1)
        sum_BC = self.base.expand(x_BD.shape[0], -1)
        step = max(1, _AT_ONCE // self.value.shape[1])
        for start in range(0, len(self.root), step):
            leaf_BT = self._leaves(x_BD, self.root[start : start + step])
            value_BTW = self.value[leaf_BT]
            if value_BTW.shape[2] == self.num_classes:
                sum_BC = sum_BC + value_BTW.sum(1)
            else:
                sum_BC = sum_BC.index_add(1, self.output[start : start + step], value_BTW[:, :, 0])
        log_BC = sum_BC.clamp(min=PROB_FLOOR).log()
        logits_BC = torch.where(self.is_probability > 0, log_BC, sum_BC) * self.temperature
        return logits_BC.to(inputs.dtype)

    def _leaves(self, x_BD: Tensor, root_T: Tensor) -> Tensor:
        node_BT = root_T.long().expand(x_BD.shape[0], -1)
        for _ in range(self.depth):
            asked_BT = x_BD.gather(1, self.feature[node_BT].long())
            goes_left_BT = asked_BT <= self.threshold[node_BT]
            node_BT = torch.where(goes_left_BT, self.left[node_BT], self.right[node_BT]).long()
        return node_BT

    @property
    def num_numbers(self) -> int:
        """Thresholds and leaves: what was learnt."""
        inner = int((self.left != torch.arange(len(self.left))).sum())
        return inner + (len(self.left) - inner) * self.value.shape[1]

    @property
    def num_bytes(self) -> int:
        """Of all buffers."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self.buffers())

    def resize(self, state: Mapping[str, Tensor]) -> None:
        """Makes room for the trees of a state, whose numbers are then loaded, and settled."""
        for name in ("feature", "threshold", "left", "right", "value", "root", "output"):
            own = cast(Tensor, getattr(self, name))
            if name in state and state[name].ndim == own.ndim:
                setattr(self, name, own.new_zeros(state[name].shape))

    def settle(self) -> None:
        """Finds how deep the trees are, once the buffers hold them.

        Raises:
            ValueError: No trees: nodes that are not there, ask columns that are not there, or lead backwards; numbers
                that are not finite.
        """
        num_nodes, width = self.value.shape
        left, right, root = (getattr(self, name).cpu().numpy().astype(np.int64) for name in ("left", "right", "root"))
        counts = {len(self.feature), len(self.threshold), len(left), len(right), num_nodes}
        if counts != {num_nodes} or not num_nodes or not len(root) or len(root) != len(self.output):
            raise ValueError("its arrays of nodes differ in length; expected one entry a node")
        own = np.arange(num_nodes)
        leaf = (left == own) & (right == own)
        forward = leaf | ((left > own) & (right > own) & (left < num_nodes) & (right < num_nodes))
        inside = (self.feature >= 0).all() and (self.feature < self.num_features).all()
        classes = (self.output >= 0).all() and (self.output < self.num_classes).all()
        roots = (root >= 0).all() and (root < num_nodes).all()
        if not (forward.all() and inside and classes and roots and width in (1, self.num_classes)):
            raise ValueError("its nodes are no trees over these columns and classes; name the right model and data")
        if not all(getattr(self, name).isfinite().all() for name in ("threshold", "value", "base", "temperature")):
            raise ValueError("its nodes hold numbers that are not finite; fetch it again")
        self.depth = _depth(left, right, leaf, root)


def _depth(
    left: npt.NDArray[np.int64], right: npt.NDArray[np.int64], leaf: npt.NDArray[np.bool_], root: npt.NDArray[np.int64]
) -> int:
    """Steps from a root to the farthest leaf; each level is one step, as many nodes as there are at the most."""
    level, depth = np.unique(root), 0
    while (inner := level[~leaf[level]]).size:
        depth += 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"its trees are deeper than {_MAX_DEPTH}; pass max_depth")
        level = np.unique(np.concatenate([left[inner], right[inner]]))
    return depth


_ZERO = np.zeros(1, np.int64)
_LEAF = Tree(feature=_ZERO, threshold=np.zeros(1), left=_ZERO, right=_ZERO, value=np.zeros((1, 1)))
