"""Networks that tell subclasses apart and answer for classes.

Shapes: B batch, C classes, S subclasses of each, G = C S.
"""

from torch import Tensor, nn


class SubclassNetwork(nn.Module):
    """A network of G outputs, those of one class side by side, whose S probabilities add up to the class's.

    Args:
        model: Gives logits [B, G].
        subclasses: S.
    """

    def __init__(self, model: nn.Module, subclasses: int) -> None:
        super().__init__()
        self.model, self.add, self.subclasses = model, Added(subclasses), subclasses

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of the classes, [B, C]."""
        logits_BC: Tensor = self.add(self.model(inputs))
        return logits_BC


class Added(nn.Module):
    """Logits of subclasses [..., G] -> logits of classes [..., C]: the log of the sum of their exponentials."""

    def __init__(self, subclasses: int) -> None:
        super().__init__()
        self.subclasses = subclasses

    def forward(self, logits: Tensor) -> Tensor:
        added: Tensor = logits.reshape(*logits.shape[:-1], -1, self.subclasses).logsumexp(-1)
        return added
