"""A teacher's way through all cells of a store, in one process or in several that come and go.

A process claims a cell before it answers it, and looks at the commits again, so that nobody answers what another one
does or has done. A claim is a lock beside the store: it ends with its process, and is only there to save work. Two that
answer one cell all the same write the same bytes.

Shapes: B rows of a cell.
"""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.cache_teacher.cells import EncodedRows
from logitbank.pipeline.cache_teacher.embedding import Embedding
from logitbank.pipeline.cache_teacher.progress import Progress, Tally
from logitbank.pipeline.cache_teacher.sample import zero_warnings
from logitbank.pipeline.cache_teacher.summary import summarise
from logitbank.pipeline.cache_teacher.sums import as_note, cell_sums
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.processes.rank import Rank
from logitbank.stores import Cell, StoreError, Teacher, TeacherWriter, open_store
from logitbank.stores.locks import lock_path, locked

Count = tuple[int, int]  # right answers, and rows that have a label


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A pass that was begun: what is left to write, a way to write a cell, and the last word.

    Whoever runs it calls `write` for each of `cells`, anywhere and in any order, then `finish`. All may be called
    again: a cell that is there is left alone, and so is a finished store.

    Attributes:
        out: The store.
        teacher: Who answers.
        writer: Of the teacher's cells.
        encoding: What is kept of a row.
        predictor: The tail predictor, where there is one.
        embedding: What is kept of the teacher's features, if anything.
        asked: What decided them, for the store to say; None where that is not known.
        check: Raises ValueError where a finished teacher is not what was asked for.
        measure: Gives the encoding's fidelity.
    """

    out: Path
    teacher: AnsweringTeacher
    writer: TeacherWriter
    encoding: Encoding
    predictor: TailPredictor | None
    embedding: Embedding | None
    asked: Mapping[str, Any] | None
    check: Callable[[Teacher], None]
    measure: Callable[[], Mapping[str, Any]]

    def cells(self) -> list[Cell]:
        """Those that nobody has committed yet, in order."""
        return self.writer.pending()

    def left(self) -> dict[Cell, int]:
        """The number of rows of each of `cells`."""
        return {cell: len(self.rows(cell)) for cell in self.cells()}

    @property
    def num_rows(self) -> int:
        """Rows of all cells."""
        return len(self.teacher.split) * self.teacher.views.num_views

    def rows(self, cell: Cell) -> npt.NDArray[np.int64]:
        """Row numbers of a cell."""
        rows = self.writer.rows(cell.block)
        return np.arange(rows.start, rows.stop)

    def claim(self, cell: Cell) -> ExitStack | None:
        """Holds a cell alone among all processes until it is closed; None when it is taken, or there already."""
        held = None if self.writer.is_committed(cell) else self._lock(cell)
        if held is not None and (self.writer.is_committed(cell) or not self.writer.reserve(cell)):
            held.close()
            return None
        return held

    def write(self, cell: Cell) -> None:
        """Answers a cell and commits it, unless it is there."""
        if not self.writer.is_committed(cell):
            with ThreadPoolExecutor(1, thread_name_prefix="writer") as background:
                self.keep(cell, self.answer(cell, background))

    def answer(self, cell: Cell, background: Executor, on_rows: Callable[[int], None] = lambda _: None) -> EncodedRows:
        """Asks the teacher for a cell; another thread encodes some rows while it answers the next."""
        rows, shifted = self.rows(cell), "tail_shift" in self.writer.arrays
        return EncodedRows(
            self.teacher,
            self.encoding,
            self.predictor,
            self.embedding,
            rows,
            cell.view,
            background,
            on_rows,
            shifted=shifted,
        )

    def keep(self, cell: Cell, encoded: EncodedRows) -> Count:
        """Commits a cell."""
        rows, split = self.rows(cell), self.teacher.split
        arrays, best_B = encoded.arrays()
        counted_B = split.labels[rows] >= 0
        if split.readable is not None:  # blank examples keep their place, and stage two leaves them out
            arrays["mask"] = split.readable[rows]
            counted_B = counted_B & split.readable[rows]
        self.writer.write(cell, arrays, note=as_note(self._sums(arrays, rows)))
        return int((counted_B & (best_B == split.labels[rows])).sum()), int(counted_B.sum())

    def _sums(
        self, arrays: Mapping[str, npt.NDArray[np.generic]], rows: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        folds_N = self.teacher.folds
        folds_B, num_folds = (None, 1) if folds_N is None else (folds_N[rows], int(folds_N.max()) + 1)
        return cell_sums(arrays, self.encoding, self.teacher.split.labels[rows], folds_B, num_folds)

    def finish(self) -> dict[str, Any]:
        """Declares the teacher complete, once and by one process; others wait for it.

        Returns:
            The summary written to the store: accuracy, NLL, calibration, per fold when cross-fitted. Empty when there
            are cells to write.
        """
        if self.cells():
            return {}
        with self._lock(wait=True) or ExitStack():
            self.writer.gather()
            store = open_store(self.out, allow_incomplete=True)
            stored = store.teacher(self.writer.name)
            if stored.complete:
                self.check(stored)
                return dict(stored.summary)
            fidelity = self.measure()
            summary = summarise(store, stored.name, self.teacher.seen, self.writer.note)
            summary["warnings"] += zero_warnings(fidelity)
            if self.asked is not None:
                summary["asked"] = dict(self.asked)
            self.writer.finish(fidelity=fidelity, summary=summary)
            self._remove_claims()
        return summary

    def _lock(self, cell: Cell | None = None, *, wait: bool = False) -> ExitStack | None:
        """Holds a cell, or the last word; None when another process does. Where a disk has no locks, everybody does."""
        held = ExitStack()
        try:
            return held if held.enter_context(locked(self._beside(cell), wait=wait)) else None
        except StoreError:
            return held

    def _beside(self, cell: Cell | None) -> Path:
        """The name beside the store, of the teacher or of one of its cells, that is locked; no teacher has an @."""
        place = self.out.resolve()
        name = f"{place.name}.{self.writer.name}"
        return place.with_name(name if cell is None else f"{name}@{cell.view}-{cell.block}")

    def _remove_claims(self) -> None:
        """Those of killed processes, whose cells somebody else wrote."""
        for cell in self.writer.cells():
            if lock_path(self._beside(cell)).exists() and (held := self._lock(cell)) is not None:
                held.close()


def write_cells(begun: Pass, rank: Rank, on_progress: Callable[[Progress], None] | None = None) -> None:
    """Writes cells until none is left that no other process has claimed.

    A second thread encodes and writes one cell while the teacher answers the next.
    """
    tally = Tally(begun.left(), begun.num_rows, on_progress)
    with ExitStack() as claims, ThreadPoolExecutor(1, thread_name_prefix="writer") as background:
        behind: list[tuple[Cell, ExitStack, Future[Count]]] = []

        def settle() -> None:
            cell, claim, future = behind.pop()
            with claim:
                tally.add(cell, *future.result())

        for cell, claim in _claimed(begun, rank, tally):
            claims.callback(claim.close)
            encoded = begun.answer(cell, background, partial(tally.answered, cell))
            if behind:
                settle()
            behind.append((cell, claim, background.submit(begun.keep, cell, encoded)))
        if behind:
            settle()


def _claimed(begun: Pass, rank: Rank, tally: Tally) -> Iterator[tuple[Cell, ExitStack]]:
    """Cells that are this process's to write, with their claims. Processes that know of each other start apart.

    Cells are gone through again until none can be claimed: who had claimed one may have been killed.
    """
    shuffled = np.random.default_rng(rank.number)
    found = True
    while found:
        found, cells = False, begun.cells()
        for number in range(len(cells)) if rank.count == 1 else shuffled.permutation(len(cells)):
            claim = begun.claim(cells[number])
            if claim is None:
                if begun.writer.is_committed(cells[number]):
                    tally.found(cells[number])
            else:
                found = True
                yield cells[number], claim
