"""One view of a store as dense log-probabilities in a .npy file."""

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.answers.opening import refuse_idle_tail
from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.encoding import TAIL_RULES, decode_log_prob, finite
from logitbank.stores import Store
from logitbank.stores.write.building import build


def decode_to_file(
    store: Store,
    out: Path,
    *,
    teacher: str | None = None,
    view: int = 0,
    temperature: float = 1.0,
    tail: str = "",
    rows: str = "",
) -> tuple[tuple[int, ...], bool]:
    """Writes dense log-probabilities at a temperature, float32 [n, C], to a .npy file, a batch at a time.

    Where examples are answered at L positions they are [n, L, C]. What the teacher does not serve is NaN.

    Args:
        store: A finished store.
        out: The file; it appears when it is whole, or this very file is there already.
        teacher: Which teacher (default: the only one).
        view: Which view.
        temperature: T > 0.
        tail: Tail rule; empty: predicted. ``bucket`` has no meaning without a student.
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
    chosen = _rows(rows, store.num_examples)
    decoder = TeacherRows(store, store.teacher(teacher), tail=tail or TAIL_RULES[0])
    refuse_idle_tail([decoder.encoding], tail)
    answered_N = torch.from_numpy(decoder.answered(view))
    shape = (len(chosen), *answered_N.shape[1:], decoder.encoding.num_classes)

    def make(built: Path) -> None:
        with built.open("xb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for here, logits_BC in decoder.decoded(view, chosen):
                logits_BC = torch.where(answered_N[chosen[here]][..., None], finite(logits_BC), math.nan)
                file.write(decode_log_prob(logits_BC, temperature).numpy().data)

    return shape, build(out, make)


def _rows(text: str, num_rows: int) -> npt.NDArray[np.int64]:
    """Row numbers of ``a:b``, which lie in the store; all for an empty text."""
    if not text:
        return np.arange(num_rows)
    first, colon, last = text.partition(":")
    try:
        start, stop = int(first or 0), int(last or num_rows)
    except ValueError:
        start = stop = 0
    if not colon or not 0 <= start < stop <= num_rows:
        raise ValueError(f"--slice is {text!r}; expected a:b within 0:{num_rows}, such as 0:{min(100, num_rows)}")
    return np.arange(start, stop)
