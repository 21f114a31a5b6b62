"""A pass on a Ray cluster: processes hold teacher and data, and are sent cells."""

import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from logitbank.pipeline.cache_teacher.begin import begin_pass
from logitbank.pipeline.cache_teacher.opening import open_teacher
from logitbank.pipeline.cache_teacher.passes import Count
from logitbank.pipeline.cache_teacher.progress import Progress, Tally
from logitbank.pipeline.cache_teacher.settings import Caching
from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.processes.ray_cluster import Resources
from logitbank.pipeline.processes.ray_engine import Crew, gave_up
from logitbank.stores import Cell

_SAY_SECONDS = 0.2  # between two words about one cell


class CellWorker:
    """A pass in a process that is sent cells; it opens teacher and data once.

    Args:
        rank: Which process, of how many.
        caching: The description of the pass.
        given: As in `open_teacher`.
        out: The store.
    """

    def __init__(self, rank: Rank, caching: Caching, given: Collection[str], out: Path) -> None:
        teacher, chosen = open_teacher(caching, given)
        self._pass = begin_pass(
            teacher,
            out,
            encoding=chosen,
            name=caching.name,
            predictor_rows=caching.predictor_rows,
            embedding_dim=caching.embedding_dim,
            temperatures=caching.measured_at,
            rank=rank,
        )

    def left(self, _: None, say: Callable[[int], None]) -> tuple[dict[Cell, int], int]:
        """Rows of each cell that is not written, and rows of all cells."""
        return self._pass.left(), self._pass.num_rows

    def write(self, cell: Cell, say: Callable[[int], None]) -> Count | None:
        """Answers a cell and commits it; None when it is there, or another process has it."""
        claim = self._pass.claim(cell)
        if claim is None:
            return None
        rows, heard = 0, time.monotonic()

        def answered(more: int) -> None:
            nonlocal rows, heard
            rows += more
            if time.monotonic() - heard > _SAY_SECONDS:
                say(rows)
                rows, heard = 0, time.monotonic()

        with claim, ThreadPoolExecutor(1, thread_name_prefix="writer") as background:
            return self._pass.keep(cell, self._pass.answer(cell, background, answered))

    def finish(self, _: None, say: Callable[[int], None]) -> dict[str, Any]:
        """As `Pass.finish`."""
        return self._pass.finish()


def cache_on_ray(
    caching: Caching,
    out: Path,
    address: str,
    *,
    given: Collection[str] = (),
    on_progress: Callable[[Progress], None] | None = None,
) -> tuple[dict[str, Any], int]:
    """Writes a teacher's answers to a store, in a process a GPU, or in one for each ``caching.threads`` CPUs.

    Args:
        caching: The description of the pass.
        out: The store, in a folder that all machines share.
        address: Of the cluster, or local.
        given: As in `open_teacher`.
        on_progress: Called now and then.

    Returns:
        The summary, as of `cache_teacher`, and rows of all cells.

    Raises:
        ValueError: As in `cache_teacher`; or a cell cost too many processes.
    """
    no_gpu = caching.device == "cpu" or not caching.is_network
    resources = Resources(cpus=max(1, caching.threads), gpus=0 if no_gpu else None)
    with Crew(address, resources, CellWorker, (caching, tuple(given), out)) as crew:
        left, num_rows = crew.one("left")
        tally = Tally(left, num_rows, on_progress)
        going_on = True
        while left and going_on:
            going_on, before = _write(crew, left, tally), left
            left, _ = crew.one("left")
            for cell in before.keys() - left.keys():
                tally.found(cell)
        return crew.one("finish"), num_rows


def _write(crew: Crew, left: Collection[Cell], tally: Tally) -> bool:
    """Sends out cells once; whether something came of it, so that those that are still left may be had now."""
    going_on = False
    for heard in crew.each("write", left):
        match heard.kind:
            case "said":
                tally.answered(heard.task, heard.value)
            case "lost":
                tally.lost(heard.task)
                going_on = True
            case "given up":
                raise ValueError(f"view {heard.task.view} block {heard.task.block}: {gave_up(heard)}")
            case "returned" if heard.value is not None:
                tally.add(heard.task, *heard.value)
                going_on = True
    return going_on
