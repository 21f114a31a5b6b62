"""Stage one, top to bottom: answers -> encoding -> store.

Shapes: B batch, C classes, N examples.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.cache_teacher.answers import Answers
from pipeline.cache_teacher.fidelity import TEMPERATURES, PredictorFit, choose_encoding, measure_fidelity
from pipeline.cache_teacher.summary import summarise
from pipeline.encoding import Encoding, encode
from pipeline.tail_predictor import TailPredictor
from pipeline.versions import library_versions
from pipeline.views import probe
from stores import Cell, TeacherWriter, create_store, open_store

FIDELITY_ROWS = 1000  # at most; few rows of a small dataset, since answering them costs a second time
PREDICTOR_ROWS = 20_000
_CHUNK_ROWS = 4096


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a pass is: rows answered so far and in all, over every view."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Let a sample decide the encoding: the smallest whose KL T^2 stays within ``kl`` nats at every temperature."""

    kl: float
    temperatures: tuple[float, ...] = (1.0, 4.0)


def cache_teacher(
    answers: Answers,
    out: Path,
    *,
    encoding: Encoding | Budget,
    name: str = "teacher",
    predictor_rows: int = PREDICTOR_ROWS,
    temperatures: Sequence[float] = TEMPERATURES,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Writes the answers for every view of the split; goes on where a killed run stopped.

    Args:
        answers: Who answers, about which examples and views.
        out: The store to write, or to go on with.
        encoding: What is kept of a row, or a budget that decides it.
        name: The teacher's name in the store.
        predictor_rows: Random rows of the first view on which the tail predictor is fitted; 0 fits none.
        temperatures: Where the encoding's fidelity is measured.
        on_progress: Called after each block.

    Returns:
        The summary written to the store: accuracy, NLL, calibration, per fold when cross-fitted.

    Raises:
        ValueError: ``out`` is a store of something else.
    """
    split, views = answers.split, answers.views
    sample = _Sample(answers, predictor_rows)
    if isinstance(encoding, Budget):
        encoding = sample.choose(encoding)
    predictor = _stored_predictor(out, name) or sample.fit_predictor(encoding)
    fidelity = sample.measure(encoding, predictor, temperatures)
    create_store(
        out,
        dataset=split.describe(),
        views={**views.attributes(), "versions": library_versions()},
        keys=split.keys,
        labels=split.labels,
        folds=answers.folds,
        probes=probe(split, views),
    )
    writer = TeacherWriter(
        out,
        name,
        identity={**answers.identity(), "precision": "float32"},
        encoding=encoding.attributes(),
        arrays=encoding.row_arrays(),
        folds=answers.fold_attributes,
        constants=predictor.constants() if predictor is not None else None,
    )
    pending = writer.pending()
    total = len(split) * views.num_views
    done = total - sum(len(_rows(writer, cell)) for cell in pending)
    for cell in pending:
        rows = _rows(writer, cell)
        writer.write(cell, _encode(answers, rows, cell.view, encoding, predictor))
        done += len(rows)
        if on_progress is not None:
            on_progress(Progress(done=done, total=total))
    summary = summarise(open_store(out, allow_incomplete=True), name, answers.training_fingerprint)
    writer.finish(fidelity=fidelity, summary=summary)
    return summary


class _Sample:
    """Random rows of the first view: some measure the encoding, the others fit it, none does both."""

    def __init__(self, answers: Answers, predictor_rows: int) -> None:
        self.answers = answers
        order = np.random.default_rng(answers.views.seed).permutation(len(answers.split))
        num_measured = min(FIDELITY_ROWS, max(256, len(order) // 50), max(1, len(order) // 4))
        self.measured = np.sort(order[:num_measured])
        self.fitted = np.sort(order[num_measured : num_measured + predictor_rows])
        self.measured_logits_NC = answers(self.measured, 0)

    def _labels(self, rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.answers.split.labels[rows])

    def choose(self, budget: Budget) -> Encoding:
        rows = np.concatenate([self.measured, self.fitted[:FIDELITY_ROWS]])
        held_out_N = torch.arange(len(rows)) < len(self.measured)
        logits_NC = torch.cat([self.measured_logits_NC, self.answers(rows[len(self.measured) :], 0)])
        return choose_encoding(
            logits_NC, self._labels(rows), budget.kl, budget.temperatures, held_out_N=held_out_N.to(logits_NC.device)
        )

    def fit_predictor(self, encoding: Encoding) -> TailPredictor | None:
        if encoding.kind == "dense" or not len(self.fitted):
            return None
        folds = self.answers.folds
        fit = PredictorFit(encoding, num_folds=1 if folds is None else int(folds.max()) + 1)
        for start in range(0, len(self.fitted), _CHUNK_ROWS):
            rows = self.fitted[start : start + _CHUNK_ROWS]
            fit.update(self.answers(rows, 0), _folds(self.answers, rows))
        return fit.fit()

    def measure(
        self, encoding: Encoding, predictor: TailPredictor | None, temperatures: Sequence[float]
    ) -> dict[str, Any]:
        return measure_fidelity(
            self.measured_logits_NC,
            self._labels(self.measured),
            encoding,
            predictor,
            temperatures=temperatures,
            folds_N=_folds(self.answers, self.measured),
        )


def _stored_predictor(out: Path, name: str) -> TailPredictor | None:
    """The predictor of a store that is being resumed: rows that are written already were coded about it."""
    if not out.exists():
        return None
    store = open_store(out, allow_incomplete=True)
    return TailPredictor.from_constants(store.teacher(name).constants()) if name in store.teachers else None


def _rows(writer: TeacherWriter, cell: Cell) -> npt.NDArray[np.int64]:
    rows = writer.rows(cell.block)
    return np.arange(rows.start, rows.stop)


def _folds(answers: Answers, rows: npt.NDArray[np.int64]) -> Tensor | None:
    return None if answers.folds is None else torch.from_numpy(answers.folds[rows].astype(np.int64))


def _encode(
    answers: Answers,
    rows: npt.NDArray[np.int64],
    view: int,
    encoding: Encoding,
    predictor: TailPredictor | None,
) -> dict[str, npt.NDArray[Any]]:
    labels_N = torch.from_numpy(answers.split.labels[rows])
    return encode(answers(rows, view), labels_N, encoding, predictor=predictor, folds_B=_folds(answers, rows))
