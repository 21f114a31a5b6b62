"""The writer of a teacher whose cells are made on a disk here and kept in a bucket."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.stores.format.schema import Cell
from logitbank.stores.read.reader import open_store
from logitbank.stores.share.shipping import Address
from logitbank.stores.write.writer import TeacherWriter

PATIENCE = 60.0  # seconds without a commit of others after which cells that they claimed are taken for abandoned
_POLL = 2.0
_log = logging.getLogger("logitbank")


class ShippingWriter(TeacherWriter):
    """Writes cells here, durably, sends each and removes its rows here; what is there decides what is left to do.

    Args:
        writer: Of the teacher's cells in a folder that `Address.begin` has filled.
        address: Where cells are kept.
        folder: Of the store here.
        patience: How long it waits for cells that others claimed, in seconds.
    """

    def __init__(self, writer: TeacherWriter, address: Address, folder: Path, *, patience: float = PATIENCE) -> None:
        vars(self).update(vars(writer))  # it is that writer, with another end
        self._address, self._folder = address, folder.resolve()
        self._patience, self._round = patience, 0
        self._begun: dict[Cell, float] = {}
        self._slowest = 0.0
        there = address.committed()
        for cell in self.cells():
            if super().is_committed(cell) and (cell in there or self._has_rows(cell)):  # by a process that was killed
                self._send(cell)

    def pending(self) -> list[Cell]:
        """Cells that nobody has sent yet, in order."""
        there = self._address.committed()
        return [cell for cell in self.cells() if cell not in there]

    def is_committed(self, cell: Cell) -> bool:
        """Whether a cell is there by now, whoever sent it."""
        return self._address.is_committed(cell)

    def reserve(self, cell: Cell) -> bool:
        """Whether nobody else answers the cell, as far as claims say."""
        self._begun[cell] = time.monotonic()
        return self._address.claim(f"{cell.view}-{cell.block}.{self._round}")

    def write(
        self,
        cell: Cell,
        arrays: Mapping[str, np.ndarray],
        *,
        same_files: Mapping[str, Path] | None = None,
        note: bytes | None = None,
    ) -> None:
        """Write a cell and send it; as `TeacherWriter.write`."""
        if not self._has_rows(cell):
            self.files(cell)[-1].unlink(missing_ok=True)  # it was sent, and is there no more
        super().write(cell, arrays, same_files=same_files, note=note)
        self._send(cell)
        self._slowest = max(self._slowest, time.monotonic() - self._begun.pop(cell, time.monotonic()))

    def wait(self) -> None:
        """Until all cells are there, or none came for so long that those left can be claimed anew."""
        patience = max(self._patience, 2 * self._slowest)
        left, since = len(self.pending()), time.monotonic()
        while left:
            if time.monotonic() - since > patience:
                _log.warning(
                    "%d cells that other processes claimed did not come for %.0f s, and are claimed anew",
                    left,
                    patience,
                )
                self._round += 1
                return
            time.sleep(min(_POLL, patience / 4))
            now = len(self.pending())
            left, since = now, since if now == left else time.monotonic()

    def gather(self) -> None:
        """Bring what the last word is computed from, or the last word when others have it: one process says it."""
        if open_store(self._folder, allow_incomplete=True).teacher(self.name).complete:
            self._address.finish(self._folder)  # unless it was sent, by this process or by one that was killed
            return
        patience, since = max(self._patience, 2 * self._slowest), time.monotonic()
        while not self._address.is_finished():
            if self._address.claim(f"finish.{self._round}"):
                self._address.gather(self._folder)
                return
            time.sleep(min(_POLL, patience / 4))
            if time.monotonic() - since > patience:
                self._round, since = self._round + 1, time.monotonic()
        self._address.bring_finished(self._folder)

    def finish(self, *, fidelity: Mapping[str, Any], summary: Mapping[str, Any] | None = None) -> None:
        """As `TeacherWriter.finish`, here and there."""
        super().finish(fidelity=fidelity, summary=summary)
        self._address.finish(self._folder)
        for cell in self.cells():
            self._remove_rows(cell)

    def _send(self, cell: Cell) -> None:
        self._address.send(self._folder, cell, self.files(cell))
        self._remove_rows(cell)

    def _has_rows(self, cell: Cell) -> bool:
        return all(file.exists() for file in self.files(cell)[:-2])

    def _remove_rows(self, cell: Cell) -> None:
        """All but the checksums and the commit."""
        for file in self.files(cell)[:-2]:
            file.unlink(missing_ok=True)
