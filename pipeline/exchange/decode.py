"""One view of a store as dense log-probabilities in a .npy file."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.answers.opening import refuse_idle_tail
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.encoding import decode_log_prob
from logitbank.stores import Store
from logitbank.stores.write.building import build

_ROWS, _NUMBERS = 4096, 2**24  # decoded at a time


def decode_to_file(
    store: Store,
    out: Path,
    *,
    teacher: str | None = None,
    view: int = 0,
    temperature: float = 1.0,
    tail: str = "predicted",
    rows: str = "",
) -> tuple[tuple[int, int], bool]:
    """Writes dense log-probabilities at a temperature, float32 [n, C], to a .npy file, block by block.

    Rows that the teacher does not serve are NaN.

    Args:
        store: A finished store.
        out: The file; it appears when it is whole, or this very file is there already.
        teacher: Which teacher (default: the only one).
        view: Which view.
        temperature: T > 0.
        tail: Tail rule; ``bucket`` has no meaning without a student.
        rows: ``a:b``, without b, within the store; empty for all.

    Returns:
        The shape, and whether the file was written: False when it was there already.
    """
    if out.suffix != ".npy":
        raise ValueError(f"{out}: a .npy file is written; let --out end so")
    if tail == "bucket":
        raise ValueError("tail rule 'bucket' takes the student's shape and there is no student here; choose another")
    if not temperature > 0:
        raise ValueError(f"--temperature is {temperature}; expected more than 0")
    if not 0 <= view < store.num_views:
        raise ValueError(f"--view is {view}; expected 0 to {store.num_views - 1}")
    chosen, decoder = _rows(rows, store.num_examples), TeacherRows(store, store.teacher(teacher), tail=tail)
    refuse_idle_tail([decoder.encoding], tail)
    shape = (len(chosen), decoder.encoding.num_classes)

    def make(built: Path) -> None:
        with built.open("xb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for logits_BC in _logits(decoder, chosen, view):
                file.write(decode_log_prob(logits_BC, temperature).numpy().data)

    return shape, build(out, make)


def _logits(decoder: TeacherRows, rows: range, view: int) -> Iterator[Tensor]:
    """Logits of rows in order, some at a time, float32 [B, C]; NaN for rows that the teacher does not serve.

    A block is read whole, since its checksum is that of all its rows; only the rows that are asked for are decoded.
    """
    teacher, step = decoder.teacher, max(1, min(_ROWS, _NUMBERS // decoder.encoding.num_classes))
    masked = "mask" in teacher.arrays
    names = [*decoder.names, *(["mask"] if masked else [])]
    for block in range(rows.start // teacher.block_rows, -(-rows.stop // teacher.block_rows)):
        there, stored = teacher.rows(block), teacher.block(view, block, names)
        for start in range(max(rows.start, there.start), min(rows.stop, there.stop), step):
            stop = min(start + step, rows.stop, there.stop)
            arrays = {name: array[start - there.start : stop - there.start] for name, array in stored.items()}
            teacher.check_rows(view, start, arrays)
            mask_B = torch.from_numpy(arrays.pop("mask")) if masked else None
            tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
            logits_BC = decoder.logits(tensors, torch.arange(start, stop))
            yield logits_BC if mask_B is None else torch.where(mask_B[:, None], logits_BC, math.nan)


def _rows(text: str, num_rows: int) -> range:
    """Row numbers of ``a:b``, which lie in the store; all for an empty text."""
    if not text:
        return range(num_rows)
    first, colon, last = text.partition(":")
    try:
        start, stop = int(first or 0), int(last or num_rows)
    except ValueError:
        start = stop = 0
    if not colon or not 0 <= start < stop <= num_rows:
        raise ValueError(f"--rows is {text!r}; expected a:b within 0:{num_rows}, such as 0:{min(100, num_rows)}")
    return range(start, stop)
