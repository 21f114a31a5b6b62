"""Stage one, top to bottom: views -> teachers -> encoding -> store.

Shapes: B batch, C classes, N examples.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.cache_teacher.fidelity import measure_fidelity
from pipeline.cache_teacher.summary import summarise
from pipeline.cache_teacher.teachers import TeacherSet
from pipeline.datasets import Split
from pipeline.encoding import Encoding, encode
from pipeline.versions import library_versions
from pipeline.views import Views, probe
from stores import TeacherWriter, create_store, open_store

Rows = npt.NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a pass is: rows answered so far and in all, over every view."""

    done: int
    total: int


def cache_teacher(
    split: Split,
    teachers: TeacherSet,
    out: Path,
    *,
    encoding: Encoding,
    views: Views,
    name: str = "teacher",
    batch_size: int = 256,
    sample_rows: int = 2000,
    device: torch.device | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Runs the teachers over every view of the split and writes their answers; goes on where a killed run stopped.

    Args:
        split: Examples, in the order that stage two will see them.
        teachers: Who answers which row.
        out: The store to write, or to go on with.
        encoding: What is kept of a row.
        views: Which pixels the teachers see.
        name: The teacher's name in the store.
        batch_size: Rows a forward pass; batches never cross a block, so the answers do not depend on who
            writes which block.
        sample_rows: Rows on which the fidelity of the encoding is measured.
        device: Where the teachers run.
        on_progress: Called after each block.

    Returns:
        The summary written to the store: accuracy, NLL, calibration, per fold when cross-fitted.

    Raises:
        ValueError: The views do not fit the data, or ``out`` is a store of something else.
    """
    device = device or torch.device("cpu")
    views.check(split)
    answer = Answerer(split, teachers, views, batch_size=batch_size, device=device)
    sample = _sample(len(split), sample_rows, views.seed)
    sample_logits, sample_labels = answer(sample, 0), torch.from_numpy(split.labels[sample])
    fidelity = measure_fidelity(sample_logits.cpu(), sample_labels, encoding)
    create_store(
        out,
        dataset=split.describe(),
        views={**views.attributes(), "versions": library_versions()},
        keys=split.keys,
        labels=split.labels,
        folds=teachers.folds,
        probes=probe(split, views),
    )
    writer = TeacherWriter(
        out,
        name,
        identity={**teachers.identity(), "precision": "float32"},
        encoding=encoding.attributes(),
        arrays=encoding.row_arrays(),
        folds=teachers.fold_attributes,
    )
    pending = writer.pending()
    total = len(split) * views.num_views
    done = total - sum(_num_rows(writer.rows(cell.block)) for cell in pending)
    for cell in pending:
        rows = np.arange(writer.rows(cell.block).start, writer.rows(cell.block).stop)
        labels = torch.from_numpy(split.labels[rows])
        writer.write(cell, encode(answer(rows, cell.view), labels, encoding))
        done += len(rows)
        if on_progress is not None:
            on_progress(Progress(done=done, total=total))
    summary = summarise(
        open_store(out, allow_incomplete=True), name, training_fingerprint=teachers.training_fingerprint
    )
    writer.finish(fidelity=fidelity, summary=summary)
    return summary


class Answerer:
    """Gives the logits of any rows of any view, each row answered by the teacher of its own fold only."""

    def __init__(
        self, split: Split, teachers: TeacherSet, views: Views, *, batch_size: int, device: torch.device
    ) -> None:
        self.split, self.teachers, self.views = split, teachers, views
        self.batch_size, self.device = batch_size, device
        for teacher in teachers.teachers:
            teacher.model.to(device).eval()

    def __call__(self, rows: Rows, view: int) -> Tensor:
        """Logits float32 [len(rows), C] on the device."""
        logits_NC = torch.empty((len(rows), self.split.num_classes), device=self.device)
        for number, teacher in enumerate(self.teachers.teachers):
            own = np.arange(len(rows))
            if self.teachers.folds is not None:
                own = np.flatnonzero(self.teachers.folds[rows] == number)
            for start in range(0, len(own), self.batch_size):
                positions = own[start : start + self.batch_size]
                samples = torch.from_numpy(self.views.samples(self.split, rows[positions], view)).to(self.device)
                with torch.inference_mode():
                    logits_BC = teacher.model(teacher.preprocessing(samples)).float()
                if logits_BC.shape[1] != self.split.num_classes:
                    raise ValueError(
                        f"the teacher answers {logits_BC.shape[1]} classes,"
                        f" {self.split.spec} has {self.split.num_classes}"
                    )
                logits_NC[torch.from_numpy(positions).to(self.device)] = logits_BC
        return logits_NC


def _sample(num_examples: int, count: int, seed: int) -> npt.NDArray[np.int64]:
    rows = np.random.default_rng(seed).permutation(num_examples)[:count]
    return np.sort(rows)


def _num_rows(rows: slice) -> int:
    return int(rows.stop - rows.start)
