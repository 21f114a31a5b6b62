"""The order of rows that do not fit into memory: group by group.

Shapes: N rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Grouping:
    """How the rows of a slab that does not fit into memory are shuffled: some blocks are drawn, and mixed.

    Attributes:
        block_rows: Rows of a block.
        num_blocks: Blocks that are mixed; as many again are being read meanwhile.
    """

    block_rows: int
    num_blocks: int

    @property
    def num_rows(self) -> int:
        """Rows that are mixed."""
        return self.block_rows * self.num_blocks

    def groups(self, rows: Tensor, generator: torch.Generator) -> list[Tensor]:
        """All of ``rows`` int64 [N], in random order group by group."""
        block_N = rows // self.block_rows
        blocks = torch.unique(block_N)
        blocks = blocks[torch.randperm(len(blocks), generator=generator)]
        groups = []
        for drawn in blocks.split(self.num_blocks):
            own = rows[torch.isin(block_N, drawn)]
            groups.append(own[torch.randperm(len(own), generator=generator)])
        return groups
