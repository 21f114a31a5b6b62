"""One run as text and numbers: what `cli train-student` was told, fit for another process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from logitbank.pipeline.datasets import Split, load_split, with_split
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.models import Given
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.own_loss import read_objective
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.tensorboard import Curves
from logitbank.pipeline.views import allow_views
from logitbank.stores import Store, open_store


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """Every option of a run; ``eval_data`` empty means the data's own test split, teacher empty the only one.

    ``transform`` is the user's own ``file.py:factory`` where the store's views were made by it, else empty;
    ``memory_budget`` counts bytes.
    """

    store: str
    data: str
    student: str
    loss: str
    training: Training
    settings: Mapping[str, str]
    eval_data: str = ""
    teacher: str = ""
    combine: str = "mean-prob"
    tail: str = "predicted"
    init: str = ""
    transform: str = ""
    val_share: float = 0.0
    preprocessing: Given | None = None
    device: str = "cpu"
    memory_budget: int | None = None
    workers: int = 0
    tensorboard: bool = False

    def open(self) -> "Inputs":
        """Reads the data and opens the store; runs the user's transform factory if one is named."""
        store = open_store(Path(self.store))
        allow_views(self.transform, store.views)
        return Inputs(
            store=store,
            split=load_split(self.data),
            test=load_split(self.eval_data or with_split(self.data, "test")),
        )

    def run(
        self,
        out: Path,
        inputs: "Inputs",
        on_epoch: Callable[[EpochRecord], None] | None = None,
        processes: Processes | None = None,
        on_warning: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Trains the student; see ``train_student``."""
        curves = Curves(out) if self.tensorboard else None
        result = None

        def tell(record: EpochRecord) -> None:
            if curves is not None:
                curves.epoch(record)
            if on_epoch is not None:
                on_epoch(record)

        try:
            result = train_student(
                inputs.store,
                inputs.split,
                inputs.test,
                self.student,
                read_objective(self.loss, self.settings, inputs.split.num_classes),
                self.training,
                out,
                teacher=self.teacher or None,
                combine=self.combine,
                tail=self.tail,
                init=Path(self.init) if self.init else None,
                val_share=self.val_share,
                preprocessing=self.preprocessing,
                device=torch.device(self.device),
                memory_budget=self.memory_budget,
                workers=self.workers,
                processes=processes,
                on_epoch=tell,
                on_warning=on_warning,
            )
        finally:
            if curves is not None:
                curves.close(result)
        return result


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """What runs read, and can share."""

    store: Store
    split: Split
    test: Split
