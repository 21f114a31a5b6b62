"""Peak memory of a pass of stage one beyond what its libraries take, with answers that are made as they are asked for.

`python -m bench.memory --classes 21841 --rows 8192 --block 8192 --encoding topk --predictor-rows 8192` prints one JSON
object: {name, value, goal, ok}, the value in MB, with a block's dense logits beside it. One pass a process, since a
peak does not come down again.
"""

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features, Rows
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import KINDS, Encoding
from logitbank.pipeline.folds import Folds
from logitbank.pipeline.views import Views

BATCH, DIMS, GOAL = 256, 16, 1500


class MadeTeacher:
    """Logits of low rank, a function of the row alone; none is kept."""

    def __init__(self, num_rows: int, num_classes: int) -> None:
        rng = np.random.default_rng(0)
        self.split = Split(
            name="made",
            split="train",
            spec="made",
            samples=rng.random((num_rows, 2), dtype=np.float32),
            labels=rng.integers(0, num_classes, num_rows),
            num_classes=num_classes,
        )
        self.views, self.seen = Views(), np.zeros(num_rows, np.int8)
        self.folds: Folds | None = None
        self.fold_attributes: Mapping[str, Any] | None = None
        self.groups: npt.NDArray[np.uint64] | None = None
        self.features: Features | None = None
        self._weights_DC = torch.randn(DIMS, num_classes, generator=torch.Generator().manual_seed(0)) / 2

    def identity(self) -> dict[str, Any]:
        return {"architecture": "made", "weights_sha256": ["00"], "precision": "float32"}

    def __call__(self, rows: Rows, view: int) -> Tensor:
        logits_NC = torch.empty((len(rows), self.split.num_classes))
        for positions, logits_BC, _ in self.batches(rows, view):
            logits_NC[torch.from_numpy(positions)] = logits_BC
        return logits_NC

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        for start in range(0, len(rows), BATCH):
            own = rows[start : start + BATCH]
            phase_BD = torch.arange(DIMS) * (0.37 + torch.from_numpy(own % 9973).double())[:, None]
            yield Batch(np.arange(start, start + len(own)), 2 * torch.sin(phase_BD).float() @ self._weights_DC)


def peak() -> float:
    """Of this process, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> int:
    """One pass."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=81_920)
    parser.add_argument("--block", type=int, default=81_920)
    parser.add_argument("--encoding", choices=list(KINDS), default="topk")
    parser.add_argument("--predictor-rows", type=int, default=2000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    given = {"top_k": 10, "tail_bits": 0.125, "bits": 8}
    settings: dict[str, Any] = {name: given[name] for name in KINDS[options.encoding].options}
    encoding = Encoding(kind=options.encoding, num_classes=options.classes, **settings)
    teacher, before = MadeTeacher(options.rows, options.classes), peak()
    with tempfile.TemporaryDirectory() as folder:
        cache_teacher(
            teacher,
            Path(folder) / "s.zarr",
            encoding=encoding,
            block_rows=options.block,
            predictor_rows=options.predictor_rows,
        )
    line = {
        "name": f"memory/cache_teacher_{options.classes}_classes_{options.encoding}",
        "value": round(peak() - before),
        "goal": GOAL,
        "ok": peak() - before <= GOAL,
        "block_of_logits": round(4 * options.classes * options.block / 1e6),
    }
    print(json.dumps(line))
    return 0


if __name__ == "__main__":
    sys.exit(main())
