"""How many of the hardest rows are kept, by feedback from the loss: AdaKD's controller, LATF. Shapes: B batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .context import Step


class Feedback(nn.Module):
    """Keeps a share r of the rows: fewer while the loss falls, more when it rises.

    Algorithm 1 of AdaKD: L is a running average of the loss of the kept rows. For the first steps r = 1. Afterwards, L
    below L_ref (1 - epsilon) makes r (1 - delta) of r, and L above L_ref (1 + epsilon) makes r (1 + delta) of it, at
    most 1; each change sets L_ref to L. A step counts once, whatever number of passes it has.

    Args:
        memory: Of the running average: L = memory L + (1 - memory) loss.
        epsilon, delta: As above.
        warmup: Share of the run's steps for which r = 1.
        least: r falls no lower.
    """

    kept: Tensor
    average: Tensor
    reference: Tensor
    total: Tensor
    count: Tensor
    step: Tensor

    def __init__(self, *, memory: float, epsilon: float, delta: float, warmup: float, least: float) -> None:
        super().__init__()
        self.memory, self.epsilon, self.delta, self.warmup, self.least = memory, epsilon, delta, warmup, least
        for name, start in (("kept", 1.0), ("average", 0.0), ("reference", 0.0), ("total", 0.0), ("count", 0.0)):
            self.register_buffer(name, torch.tensor(start))
        self.register_buffer("step", torch.tensor(-1))

    def share(self, step: Step) -> float:
        """r in a step, of the steps before it."""
        if int(self.step) != step.step:
            if float(self.count):
                self._close(step)
            self.step.fill_(step.step)
        return float(self.kept)

    def observe(self, loss_sum: Tensor, count: Tensor) -> None:
        """Adds the kept rows of a pass to those of the step."""
        self.total += loss_sum.detach().to(self.total)
        self.count += count.detach().to(self.count)

    def _close(self, step: Step) -> None:
        """What the last step makes of r."""
        loss, first = float(self.total) / float(self.count), float(self.reference) == 0.0 == float(self.average)
        average = loss if first else self.memory * float(self.average) + (1.0 - self.memory) * loss
        before, reference = float(self.kept), float(self.reference)
        kept = before
        if average < reference * (1.0 - self.epsilon):
            kept = max(before * (1.0 - self.delta), self.least)
        elif average > reference * (1.0 + self.epsilon):
            kept = min(before * (1.0 + self.delta), 1.0)
        if first or int(self.step) < round(self.warmup * step.num_steps):
            kept, reference = before, average
        elif abs(kept - before) > 1e-6:  # the floor, as it is kept, is rounded
            reference = average
        for buffer, value in ((self.average, average), (self.reference, reference), (self.kept, kept)):
            buffer.fill_(value)
        self.total.zero_()
        self.count.zero_()
