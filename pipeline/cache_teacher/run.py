"""Stage one, top to bottom: answers -> encoding -> store.

Shapes: B batch, C classes, N examples.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.fidelity import TEMPERATURES
from logitbank.pipeline.cache_teacher.sample import Sample, folds_of, zero_warnings
from logitbank.pipeline.cache_teacher.sound import ask_first
from logitbank.pipeline.cache_teacher.summary import summarise
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.folds import refuse_apart
from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.views import probe
from logitbank.stores import Cell, RowArray, StoreError, Teacher, TeacherWriter, create_store, open_store
from logitbank.stores.format.address import check_folder

PREDICTOR_ROWS = 20_000
SETUP_SECONDS = 1800.0  # how long the other ranks of torchrun wait for rank 0 to describe the teacher
_POLL_SECONDS = 0.5
MASK = {"mask": RowArray(dtype="bool")}


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a pass is: rows answered so far and in all, over every view and every part.

    Attributes:
        done: Rows that the store holds.
        total: Rows that it will hold.
        rows: Rows of the block that was just answered.
        accuracy: Over the labelled rows that this process has answered; None before the first.
    """

    done: int
    total: int
    rows: int
    accuracy: float | None = None


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Let a sample decide the encoding: the smallest whose KL T^2 stays within ``kl`` nats at every temperature."""

    kl: float
    temperatures: tuple[float, ...] = (1.0, 4.0)


def cache_teacher(
    answers: AnsweringTeacher,
    out: Path,
    *,
    encoding: Encoding | Budget,
    name: str = "teacher",
    predictor_rows: int = PREDICTOR_ROWS,
    temperatures: Sequence[float] = TEMPERATURES,
    rank: Rank | None = None,
    block_rows: int | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Writes this process's share of the answers; goes on where a killed run stopped.

    Any number of processes may do so at once, each with a part of its own. Whoever finds every cell committed
    finishes the store; when two do at the same moment they write the same.

    Args:
        answers: Who answers, about which examples and views.
        out: The store to write, or to go on with.
        encoding: What is kept of a row, or a budget that decides it.
        name: The teacher's name in the store.
        predictor_rows: Random rows of the first view on which the tail predictor is fitted; 0 fits none.
        temperatures: Where the encoding's fidelity is measured.
        rank: Which of several processes this is (default: the only one).
        block_rows: Rows written and committed together; chosen when left out.
        on_progress: Called after each block.

    Returns:
        The summary written to the store: accuracy, NLL, calibration, per fold when cross-fitted. Empty when other
        parts still have cells to write.

    Raises:
        ValueError: ``out`` is a store of something else, or the answers are not ones that can be learnt from.
    """
    check_folder(out)
    if answers.folds is not None:
        refuse_apart(answers.split.keys, answers.folds, answers.split.spec)
    rank, answers = rank or Rank(), ask_first(answers)
    sample = Sample(answers, predictor_rows)
    asked = _asked(encoding, predictor_rows)
    writer, encoding, predictor = _open(answers, out, sample, encoding, name, temperatures, rank, block_rows, asked)
    write_cells(writer, answers, encoding, predictor, rank, on_progress)
    if writer.pending():
        return {}
    written = open_store(out, allow_incomplete=True)
    teacher = written.teacher(name)
    if teacher.complete:
        _check_measured(out, teacher, temperatures)
        return dict(teacher.summary)
    fidelity = sample.measure(encoding, predictor, temperatures)
    summary = summarise(written, name, answers.seen)
    summary["warnings"] += zero_warnings(fidelity)
    summary["asked"] = asked
    writer.finish(fidelity=fidelity, summary=summary)
    return summary


def is_finished(out: Path, name: str) -> bool:
    """Whether a store holds a teacher whole, so that writing it again only finds that it is the same."""
    teacher = _find_teacher(out, name)
    return teacher is not None and teacher.complete


def _check_measured(out: Path, teacher: Teacher, temperatures: Sequence[float]) -> None:
    if not {f"{temperature:g}" for temperature in temperatures} <= set(teacher.fidelity):
        raise StoreError(
            f"{out}: teacher {teacher.name!r} is finished, and was measured at T = {', '.join(teacher.fidelity)}; use"
            " another --name or the same --temperatures"
        )


def _asked(encoding: Encoding | Budget, predictor_rows: int) -> dict[str, Any]:
    """What decides the encoding or its constants and cannot be read from them."""
    if isinstance(encoding, Budget):
        budget = {"kl_budget": encoding.kl, "temperatures": list(encoding.temperatures)}
        return {"predictor_rows": predictor_rows, **budget}
    return {"predictor_rows": predictor_rows} if encoding.has_tail else {}


def _check_asked(out: Path, there: Teacher, asked: Mapping[str, Any]) -> None:
    """Raises where a teacher that is there was asked for otherwise; one of an older version does not say how."""
    found = there.summary.get("asked")
    if isinstance(found, Mapping) and dict(found) != dict(asked):
        options = [", ".join(f"{key} {said[key]}" for key in sorted(said)) or "nothing else" for said in (found, asked)]
        raise StoreError(
            f"{out}: teacher {there.name!r} was begun with {options[0]}, this call has {options[1]}; use another --name"
            " or the same --predictor-rows, --kl-budget and --temperatures"
        )


def _open(
    answers: AnsweringTeacher,
    out: Path,
    sample: Sample,
    encoding: Encoding | Budget,
    name: str,
    temperatures: Sequence[float],
    rank: Rank,
    block_rows: int | None,
    asked: dict[str, Any],
) -> tuple[TeacherWriter, Encoding, TailPredictor | None]:
    """The writer, and what rows are encoded with: found in the store, or else decided here on a sample."""
    if _begun(out):
        _describe(answers, out)  # another dataset or other views: said before anything is computed
    there = _find_teacher(out, name)
    if there is None and rank.together and rank.number:
        there = _wait_for_teacher(out, name)
    if there is None:
        if isinstance(encoding, Budget):
            encoding = sample.choose(encoding.kl, encoding.temperatures)
        predictor = sample.fit_predictor(encoding)
        sample.measure(encoding, predictor, temperatures)  # a teacher that does not fit is found before a file is made
        there = _find_teacher(out, name)  # another part may have been faster
    if there is not None:
        encoding = _same_encoding(there, encoding, out)
        _check_asked(out, there, asked)
        predictor = TailPredictor.from_constants(there.constants())
    assert isinstance(encoding, Encoding)
    _describe(answers, out)

    def writer(predictor: TailPredictor | None) -> TeacherWriter:
        return TeacherWriter(
            out,
            name,
            identity=answers.identity(),
            encoding=encoding.attributes(),
            arrays={**encoding.row_arrays(), **({} if answers.split.readable is None else MASK)},
            folds=answers.fold_attributes,
            constants=predictor.constants() if predictor is not None else None,
            block_rows=block_rows,
            summary={"asked": asked},
        )

    try:
        return writer(predictor), encoding, predictor
    except StoreError:
        late = _find_teacher(out, name)  # its constants may be those of a part on another kind of machine
        if there is not None or late is None:
            raise
        predictor = TailPredictor.from_constants(late.constants())
        return writer(predictor), encoding, predictor


def _describe(answers: AnsweringTeacher, out: Path) -> None:
    """Creates the store, or checks that the one that is there has these examples and views."""
    split, views = answers.split, answers.views
    create_store(
        out,
        dataset=split.describe(),
        views={**views.attributes(), "versions": library_versions()},
        keys=split.keys,
        labels=split.labels,
        folds=answers.folds,
        groups=answers.groups,
        probes=probe(split, views),
    )


def _begun(out: Path) -> bool:
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def _find_teacher(out: Path, name: str) -> Teacher | None:
    if not _begun(out):
        return None
    store = open_store(out, allow_incomplete=True)
    return store.teacher(name) if name in store.teachers else None


def _wait_for_teacher(out: Path, name: str) -> Teacher | None:
    """Rank 0 measures, fits and creates; the other ranks need not do it again."""
    until = time.monotonic() + SETUP_SECONDS
    while time.monotonic() < until:
        teacher = _find_teacher(out, name)
        if teacher is not None:
            return teacher
        time.sleep(_POLL_SECONDS)
    return None


def _same_encoding(there: Teacher, wanted: Encoding | Budget, out: Path) -> Encoding:
    """The stored encoding; a budget chose it when the store was begun."""
    found = Encoding.from_attributes(there.encoding)
    if isinstance(wanted, Encoding) and wanted != found:
        raise StoreError(
            f"{out}: teacher {there.name!r} is another one: encoding is {found.attributes()} in the store and"
            f" {wanted.attributes()} here; use another --name or the same settings"
        )
    return found


def write_cells(
    writer: TeacherWriter,
    answers: AnsweringTeacher,
    encoding: Encoding,
    predictor: TailPredictor | None,
    rank: Rank,
    on_progress: Callable[[Progress], None] | None,
) -> None:
    """Answers cell after cell; a second thread encodes and writes one cell while the teacher answers the next."""
    total = len(answers.split) * answers.views.num_views
    done = total - sum(len(rows_of(writer, cell)) for cell in writer.pending())
    num_correct, num_labelled = 0, 0

    def keep(cell: Cell, rows: npt.NDArray[np.int64], logits_BC: Tensor) -> tuple[int, int]:
        labels_B = torch.from_numpy(answers.split.labels[rows])
        arrays = encode(logits_BC, labels_B, encoding, predictor=predictor, folds_B=folds_of(answers, rows))
        counted_B = labels_B >= 0
        if answers.split.readable is not None:  # blank examples keep their place, and stage two leaves them out
            arrays["mask"] = answers.split.readable[rows]
            counted_B &= torch.from_numpy(arrays["mask"])
        writer.write(cell, arrays)
        correct_B = counted_B & (logits_BC.argmax(dim=1).cpu() == labels_B)
        return int(correct_B.sum()), int(counted_B.sum())

    with ThreadPoolExecutor(1, thread_name_prefix="writer") as background:
        behind: list[tuple[Future[tuple[int, int]], int]] = []

        def settle() -> None:
            nonlocal done, num_correct, num_labelled
            future, num_rows = behind.pop()
            correct, labelled = future.result()
            num_correct, num_labelled, done = num_correct + correct, num_labelled + labelled, done + num_rows
            if on_progress is not None:
                accuracy = num_correct / num_labelled if num_labelled else None
                on_progress(Progress(done=done, total=total, rows=num_rows, accuracy=accuracy))

        for cell in writer.pending(rank.number, rank.count):
            rows = rows_of(writer, cell)
            logits_BC = answers(rows, cell.view)
            if behind:
                settle()
            behind.append((background.submit(keep, cell, rows, logits_BC), len(rows)))
        if behind:
            settle()


def rows_of(writer: TeacherWriter, cell: Cell) -> npt.NDArray[np.int64]:
    """Row numbers of a cell."""
    rows = writer.rows(cell.block)
    return np.arange(rows.start, rows.stop)
