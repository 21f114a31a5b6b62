"""Stage one, top to bottom: a teacher's answers -> encoding -> store."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from logitbank.pipeline.cache_teacher.asked import Budget
from logitbank.pipeline.cache_teacher.begin import PREDICTOR_ROWS, begin_pass
from logitbank.pipeline.cache_teacher.fidelity import TEMPERATURES
from logitbank.pipeline.cache_teacher.passes import write_cells
from logitbank.pipeline.cache_teacher.progress import Progress
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.processes.rank import Rank
from logitbank.stores.format.address import is_url


def cache_teacher(
    teacher: AnsweringTeacher,
    out: Path,
    *,
    encoding: Encoding | Budget,
    name: str = "teacher",
    predictor_rows: int = PREDICTOR_ROWS,
    embedding_dim: int = 0,
    temperatures: Sequence[float] = TEMPERATURES,
    block_rows: int | None = None,
    rank: Rank | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Writes a teacher's answers to a store; goes on where a killed run stopped.

    Any number of processes may do so at once, and come and go: each takes the cells that nobody else has. Whoever finds
    every cell committed finishes the store.

    Args:
        teacher: Who answers, about which examples and views.
        out: The store to write, or to go on with: a folder, or an address in a bucket.
        encoding: What is kept of a row, or a budget that decides it.
        name: The teacher's name in the store.
        predictor_rows: Random rows of the first view on which the tail predictor is fitted; 0 fits none.
        embedding_dim: How many principal components are kept of a teacher's features, if it gives some; 0: all.
        temperatures: Where the encoding's fidelity is measured.
        block_rows: Rows written and committed together; when left out those of a store that is begun, or chosen for
            the examples and ``rank.count``.
        rank: Which of several processes this is, so that they start apart (default: the only one).
        on_progress: Called after each batch and each block.

    Returns:
        The summary written to the store: accuracy, NLL, calibration, per fold when cross-fitted. Empty when other
        processes still have cells to write.

    Raises:
        ValueError: ``out`` is a store of something else, or the answers are not ones that can be learnt from.
    """
    rank = rank or Rank()
    begin = partial(
        begin_pass,
        teacher,
        encoding=encoding,
        name=name,
        predictor_rows=predictor_rows,
        embedding_dim=embedding_dim,
        temperatures=temperatures,
        block_rows=block_rows,
    )
    if is_url(out):
        from logitbank.pipeline.cache_teacher.shipping import ship_pass  # brings clients of the network

        alone = partial(begin, rank=replace(rank, together=False))  # the bucket says who begins
        return ship_pass(out, name, alone, rank=rank, on_progress=on_progress)
    begun = begin(out, rank=rank)
    write_cells(begun, rank, on_progress)
    return begun.finish()
