"""A run's curves for TensorBoard, in the folder ``tensorboard`` of the run."""

import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitbank.pipeline.fit import EpochRecord

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"
_TAGS = {
    "loss": "loss/training",
    "train_accuracy": "accuracy/training",
    "val_accuracy": "accuracy/validation",
    "val_nll": "nll/validation",
    "val_selected": "selected/validation",
    "lr": "lr",
    "seconds": "seconds",
}


class Curves:
    """Writes an epoch's numbers as they come. A resumed run tells its whole history again, so old files make room.

    Args:
        out: The run's folder; nothing is written to it before the first epoch.
        wanted: False writes nothing at all.

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, out: Path, *, wanted: bool) -> None:
        if wanted and find_spec("tensorboard") is None:
            raise ValueError("--tensorboard needs another package: pip install 'logitbank[tensorboard]'")
        self._folder, self._wanted = out / FOLDER, wanted
        self._writer: SummaryWriter | None = None

    def __enter__(self) -> "Curves":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def epoch(self, record: EpochRecord) -> None:
        """One line of the history."""
        if not self._wanted:
            return
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(self._folder, ignore_errors=True)
            self._writer = SummaryWriter(str(self._folder))
        for field, tag in _TAGS.items():
            value = getattr(record, field)
            if value is not None:
                self._writer.add_scalar(tag, value, record.epoch)
        self._writer.flush()

    def result(self, result: Mapping[str, Any]) -> None:
        """What was measured on the test data."""
        if self._writer is not None and result["test"] is not None:
            for name in ("accuracy", "nll", "ece"):
                self._writer.add_scalar(f"{name}/test", result["test"][name], result["training"]["epochs"])
