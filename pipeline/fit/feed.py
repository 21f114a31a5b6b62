"""What a step is made of: the rows of a batch, this process's share of them, and the samples, read ahead."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain

import torch
from torch import Tensor

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.datasets.resize_crop import ResizeCrop
from logitbank.pipeline.fit.training import Training
from logitbank.pipeline.processes import LEAST_ROWS
from logitbank.pipeline.processes.together import Processes, cut
from logitbank.pipeline.views import Views

Pass = tuple[Tensor, Tensor]


def in_batches(order_N: Tensor, batch_size: int, least_rows: int) -> list[Tensor]:
    """Batches of rows; a last one of fewer than the least joins the batch before it."""
    batches = list(torch.split(order_N, batch_size))
    if len(batches) > 1 and len(batches[-1]) < least_rows:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


@dataclass(frozen=True)
class Feed:
    """Cuts an epoch's order into steps and passes, and reads their samples.

    Attributes:
        training: Says how many rows a step has, over all processes, and in how many passes.
        fit: How the model resizes originals.
        workers: Threads that read and transform the next passes meanwhile; 0 does it in between.
        pinned: Samples lie in memory that a GPU reads meanwhile.
        least_rows: A last batch that is smaller joins the batch before it.
    """

    split: Split
    views: Views
    training: Training
    processes: Processes
    fit: ResizeCrop | None
    workers: int
    pinned: bool
    least_rows: int

    def num_steps(self, num_rows: int) -> int:
        """Of an epoch of so many rows."""
        return len(self.batches(torch.arange(num_rows)))

    def num_shown(self, num_rows: int, done: int) -> int:
        """Rows of the first steps of an epoch of so many rows."""
        return sum(map(len, self.batches(torch.arange(num_rows))[:done]))

    def check(self, num_rows: int) -> None:
        """Raises ValueError when a step of an epoch of so many rows leaves a process without enough rows."""
        self.processes.check(self.training.batch_size, num_rows)
        last = len(self.batches(torch.arange(num_rows))[-1])
        if last < LEAST_ROWS * self.processes.count:
            raise ValueError(
                f"the run began with fewer processes, and the last step of its epochs has {last} examples; go on with"
                f" at most {last // LEAST_ROWS} processes, not {self.processes.count}"
            )

    def steps(self, batches: list[Tensor], view: int) -> Iterator[tuple[int, Iterator[Pass]]]:
        """For each step its number of rows over all processes, and its passes here: rows [B] and samples [B, ...]."""
        passes = [self._passes(self.processes.share(rows_B, self._together)) for rows_B in batches]
        samples = in_order(partial(self._samples, view), list(chain.from_iterable(passes)), self.workers)
        for rows_B, own in zip(batches, passes, strict=True):
            yield len(rows_B), zip(own, samples, strict=False)  # samples go on in the next step

    def batches(self, order_N: Tensor) -> list[Tensor]:
        """Batches of rows; a last one that is too small for the processes joins the batch before it."""
        return in_batches(order_N, self.training.batch_size, self.least_rows)

    def _passes(self, rows_B: Tensor) -> tuple[Tensor, ...]:
        """The rows of each forward pass of a step; batch norm needs two. A private step may have none."""
        if not len(rows_B):
            return ()
        return cut(rows_B, min(self.training.accumulate, max(len(rows_B) // LEAST_ROWS, 1)), self._together)

    @property
    def _together(self) -> int:
        """Rows that no cut of a batch parts."""
        return 2 if self.training.mixup else 1

    def _samples(self, view: int, rows_B: Tensor) -> Tensor:
        samples = torch.from_numpy(self.views.samples(self.split, rows_B.numpy(), view, self.fit))
        return samples.pin_memory() if self.pinned else samples
