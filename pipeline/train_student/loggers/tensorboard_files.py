"""A run's curves for TensorBoard, in the folder ``tensorboard`` of the run."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from logitbank.pipeline.fit import EpochRecord
from logitbank.pipeline.train_student.loggers.numbers import of_epoch, of_result

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

FOLDER = "tensorboard"


class TensorBoardFiles:
    """Writes an epoch's numbers as they come. A resumed run is told its whole history again, so old files make room."""

    def __init__(self, out: Path) -> None:
        import tensorboard as tensorboard

        self._folder = out / FOLDER
        self._writer: SummaryWriter | None = None

    def on_epoch(self, record: EpochRecord) -> None:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            shutil.rmtree(self._folder, ignore_errors=True)
            self._writer = SummaryWriter(str(self._folder))
        for name, value in of_epoch(record).items():
            self._writer.add_scalar(name, value, record.epoch)
        self._writer.flush()

    def on_result(self, result: Mapping[str, Any]) -> None:
        if self._writer is not None:
            for name, value in of_result(result).items():
                self._writer.add_scalar(name, value, result["training"]["epochs"])

    def close(self, how: str) -> None:
        if self._writer is not None:
            self._writer.close()
