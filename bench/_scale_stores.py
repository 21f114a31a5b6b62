"""Makes a store of any number of rows for `bench.scale`, and the table of numbers that its examples are.

``python -m bench._scale_stores FOLDER ROWS NAME`` writes table.npz, turned.npz (the same examples in another order) and
NAME.zarr. A teacher that answers row i as it answers row i + 8192 is encoded once; blocks repeat its rows. The rest is
what `cache-teacher` does: 1,000 classes, the best 10 in 8 bits, a predicted tail, in the format's newest version.
"""

import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.begin import begin_pass
from logitbank.pipeline.cache_teacher.sums import as_note, cell_sums
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features, Rows, in_turn
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.folds import Folds
from logitbank.pipeline.views import Views

PERIOD, CLASSES, DIMS, TESTS, PREDICTOR_ROWS = 8192, 1000, 16, 256, 2000
SURE = 8.0  # added to the label's logit: then three rows of four are right, as on ImageNet


class RepeatingTeacher:
    """Logits of low rank with noise, the label's raised, the same for every ``PERIOD``-th row.

    Args:
        split: The examples.
        name: Another name is another teacher.
    """

    def __init__(self, split: Split, name: str) -> None:
        self.split, self.views, self.seen = split, Views(), np.zeros(len(split), np.int8)
        self.folds: Folds | None = None
        self.fold_attributes: Mapping[str, Any] | None = None
        self.groups: npt.NDArray[np.uint64] | None = None
        self.features: Features | None = None
        self._name, made = name, torch.Generator().manual_seed(zlib.crc32(name.encode()))
        common = torch.Generator().manual_seed(0)
        low_PD, weights_DC = (torch.randn(*shape, generator=common) for shape in ((PERIOD, DIMS), (DIMS, CLASSES)))
        self._logits_PC = low_PD @ weights_DC / 2 + torch.randn(PERIOD, CLASSES, generator=made) / 2
        self._logits_PC[torch.arange(PERIOD), torch.arange(PERIOD) % CLASSES] += SURE

    def identity(self) -> dict[str, Any]:
        return {"architecture": "made", "weights_sha256": [self._name], "precision": "float32"}

    def __call__(self, rows: Rows, view: int) -> Tensor:
        return self._logits_PC[torch.from_numpy(rows % PERIOD)]

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        return in_turn(self, rows, view, self.split)


def write_tables(folder: Path, rows: int) -> None:
    """Examples of two numbers, each another, and labels that repeat as the answers do."""
    number_N = np.arange(rows)
    x_test, y_test = np.full((TESTS, 2), -1, np.float32), np.arange(TESTS) % CLASSES
    for name, own_N in (("table", number_N), ("turned", np.random.default_rng(0).permutation(number_N))):
        x_N2 = np.stack([own_N % PERIOD, own_N // PERIOD], axis=1).astype(np.float32)
        np.savez(folder / f"{name}.npz", x=x_N2, y=own_N % PERIOD % CLASSES, x_test=x_test, y_test=y_test)


def write_store(folder: Path, name: str) -> None:
    """A pass whose cells are copies of ``PERIOD`` encoded rows."""
    split = load_split(f"npz:{folder}/table.npz?classes={CLASSES}")
    teacher = RepeatingTeacher(split, name)
    asked = Encoding(kind="topk", num_classes=CLASSES, top_k=10, bits=8)
    begun = begin_pass(teacher, folder / f"{name}.zarr", encoding=asked, name=name, predictor_rows=PREDICTOR_ROWS)
    once = np.arange(PERIOD)
    labels = torch.from_numpy(once % CLASSES)
    shifted = "tail_shift" in begun.writer.arrays
    arrays = encode(teacher(once, 0), labels, begun.encoding, predictor=begun.predictor, shifted=shifted)
    for cell in begun.cells():
        rows = begun.rows(cell)
        own = {key: array[rows % PERIOD] for key, array in arrays.items()}
        sums = cell_sums(own, begun.encoding, split.labels[rows], None, 1)
        begun.writer.write(cell, own, note=as_note(sums))
    assert begun.finish()


def main() -> None:
    """One store."""
    folder, rows, name = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    torch.set_num_threads(1)
    if not (folder / "table.npz").exists():
        write_tables(folder, rows)
    write_store(folder, name)


if __name__ == "__main__":
    main()
