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

    Raises:
        ValueError: TensorBoard is not installed.
    """

    def __init__(self, out: Path) -> None:
        if find_spec("tensorboard") is None:
            raise ValueError("--tensorboard needs another package: pip install 'logitbank[tensorboard]'")
        self._folder = out / FOLDER
        self._writer: SummaryWriter | None = None

    def epoch(self, record: EpochRecord) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(self._folder, ignore_errors=True)
            self._writer = SummaryWriter(str(self._folder))
        for field, tag in _TAGS.items():
            value = getattr(record, field)
            if value is not None:
                self._writer.add_scalar(tag, value, record.epoch)
        self._writer.flush()

    def close(self, result: Mapping[str, Any] | None = None) -> None:
        """Ends the file; a finished run adds what was measured on the test data."""
        if self._writer is None:
            return
        if result is not None and result["test"] is not None:
            for name in ("accuracy", "nll", "ece"):
                self._writer.add_scalar(f"{name}/test", result["test"][name], result["training"]["epochs"])
        self._writer.close()
