"""Several processes that train one model together, as torchrun starts them: one a GPU, or some on CPUs.

Every process draws the same order of examples and takes its share of each batch; gradients are summed, so that a
step is the step of the whole batch. Only batch norm, and losses that couple rows, see their own share alone.

Shapes: B batch.
"""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from logitbank.pipeline.processes import LEAST_ROWS
from logitbank.pipeline.processes.rank import Rank


@dataclass(frozen=True, kw_only=True)
class Processes(Rank):
    """The ranks that train together; the first evaluates and writes."""

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connects the processes, over NCCL on GPUs and Gloo elsewhere; does nothing for one alone."""
        if self.count == 1:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        try:
            with warnings.catch_warnings():
                # of kernels with one input channel, whose memory layout has two names; nothing is slower for it
                warnings.filterwarnings("ignore", message="Grad strides do not match")
                yield
        finally:
            distributed.destroy_process_group()

    def check(self, batch_size: int, num_rows: int) -> None:
        """Raises ValueError when some step would leave a process without rows."""
        if min(batch_size, num_rows) < LEAST_ROWS * self.count and self.count > 1:
            raise ValueError(
                f"{self.count} processes share each batch, which has {min(batch_size, num_rows)} examples; expected at"
                f" least {LEAST_ROWS * self.count}: --batch-size is that of all processes together"
            )

    def seed(self, seed: int, *place: int) -> None:
        """Gives every process but the first random numbers of its own: dropout masks differ, as those of rows do.

        Numbers that say where in a run it goes on lead to others.
        """
        if not self.first:
            own = np.random.SeedSequence((seed, self.number, *place)).generate_state(1, np.uint64)
            torch.manual_seed(int(own[0]))

    def share(self, rows_B: Tensor, together: int = 1) -> Tensor:
        """This process's rows of a batch; so many that follow each other stay together."""
        return cut(rows_B, self.count, together)[self.number]

    def parallel(self, module: nn.Module, device: torch.device) -> nn.Module:
        """The module with gradients averaged over processes; the module itself for one alone."""
        if self.count == 1:
            return module
        return DistributedDataParallel(module, device_ids=[device] if device.type == "cuda" else None)

    def average_gradients(self, module: nn.Module) -> None:
        """Averages over processes the gradients of a module that is no part of a ``parallel`` one."""
        for parameter in module.parameters() if self.count > 1 else ():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            parameter.grad = self.sum_(gradient) / self.count

    def sum_(self, values: Tensor) -> Tensor:
        """The sum over processes, which it puts into ``values``."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def sum_counts(self, counts: Mapping[str, int], device: torch.device) -> dict[str, int]:
        """The counts over all processes, in every one; the same names in each."""
        names = sorted(counts)
        numbers = torch.tensor([counts[name] for name in names], dtype=torch.int64, device=device)
        return dict(zip(names, (self.sum_(numbers) if names else numbers).tolist(), strict=True))

    def gather(self, values: Tensor, device: torch.device) -> list[Tensor]:
        """The values of every process, of one shape, in every process; on the CPU."""
        if self.count == 1:
            return [values]
        sent = values.to(device)
        found = [torch.empty_like(sent) for _ in range(self.count)]
        distributed.all_gather(found, sent)
        return [part.cpu() for part in found]

    def from_first(self, values: Mapping[str, float], names: tuple[str, ...], device: torch.device) -> dict[str, float]:
        """Process 0's numbers, those that it has, in every process."""
        if self.count == 1:
            return dict(values)
        numbers = torch.tensor([values.get(name, math.nan) for name in names], dtype=torch.float64, device=device)
        distributed.broadcast(numbers, src=0)
        found = zip(names, numbers.tolist(), strict=True)
        return {name: number for name, number in found if not math.isnan(number)}


def cut(rows_B: Tensor, parts: int, together: int = 1) -> tuple[Tensor, ...]:
    """Rows in parts of about one size, the larger ones first; so many that follow each other stay together."""
    units, more = divmod(len(rows_B) // together, parts)
    return rows_B.tensor_split([together * (part * units + min(part, more)) for part in range(1, parts)])
