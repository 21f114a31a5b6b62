"""A student's answers about new data, written part by part: memory does not grow with rows.

Shapes: B rows of a part, C classes.
"""

import csv
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.datasets.new_rows import Part, new_rows
from logitbank.pipeline.use_student.load import Student
from logitbank.stores.write.building import build

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True, kw_only=True)
class Predicted:
    """Answers to some rows.

    Attributes:
        first: Number of the first row.
        keys: Content keys, uint64 [B], as a store has them.
        files: Files of pictures that have their own, or empty.
        classes: Names of the best classes.
        prob_BC: Probabilities, float32.
    """

    first: int
    keys: npt.NDArray[np.uint64]
    files: tuple[str, ...]
    classes: list[str]
    prob_BC: npt.NDArray[np.float32]

    def columns(self, names: list[str]) -> dict[str, Any]:
        """By name: row, key, perhaps file, predicted, and a probability for each class."""
        rows = np.arange(self.first, self.first + len(self.keys))
        files = {"file": list(self.files)} if self.files else {}
        columns = zip(names, self.prob_BC.T, strict=True)
        return {"row": rows, "key": self.keys, **files, "predicted": self.classes, **dict(columns)}


def predictions(student: Student, data: str, *, batch_size: int = 500, workers: int = 0) -> Iterator[Predicted]:
    """A student's answers to all examples of a data spec in their order; see ``new_rows``."""
    student.signature.refuse_positions("predict")
    first, names = 0, np.array(student.class_names, dtype=object)
    for part in new_rows(data, student.reads):
        yield _answered(student, part, first, names, data, batch_size, workers)
        first += len(part.samples)
    if not first:
        raise ValueError(f"{data}: no rows; expected at least one")


def _answered(
    student: Student, part: Part, first: int, names: npt.NDArray[Any], data: str, batch_size: int, workers: int
) -> Predicted:
    split = student.signature.split(part.samples, data)
    prob_BC = torch.softmax(student.ask(split, batch_size=batch_size, workers=workers), dim=1).numpy()
    best = names[prob_BC.argmax(1)].tolist()
    return Predicted(first=first, keys=split.keys, files=tuple(part.files), classes=best, prob_BC=prob_BC)


def write_predictions(
    student: Student,
    data: str,
    out: Path,
    *,
    batch_size: int = 500,
    workers: int = 0,
    on_rows: Callable[[int], object] = int,
) -> tuple[int, bool]:
    """Writes a student's answers about new data, a row each: number, key, predicted class, probabilities.

    Args:
        student: The student.
        data: A data spec; labels are not looked at.
        out: A .csv or .parquet file; it appears when it is whole, or this very file is there already.
        batch_size: Examples of a forward pass.
        workers: Threads that read the next batches meanwhile.
        on_rows: Called with the number of rows of each part.

    Returns:
        The number of rows, and whether the file was written: False when it was there already.

    Raises:
        ValueError: Another suffix, data that the student cannot read, or another file there.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"{out}: a .csv or .parquet file is written; let --out end so")
    write = _write_csv if out.suffix == ".csv" else _write_parquet
    count = 0

    def counted() -> Iterator[Predicted]:
        nonlocal count
        for part in predictions(student, data, batch_size=batch_size, workers=workers):
            yield part
            count += len(part.keys)
            on_rows(len(part.keys))

    written = build(out, lambda built: write(built, counted(), _columns(student)))
    return count, written


def _columns(student: Student) -> list[str]:
    """Names of the probabilities' columns; where two classes have one name, by their numbers."""
    names = student.class_names
    plain = names if len(set(names)) == len(names) else tuple(map(str, range(len(names))))
    return [f"prob_{name}" for name in plain]


def _write_csv(path: Path, parts: Iterator[Predicted], names: list[str]) -> None:
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        for part in parts:
            columns = part.columns(names)
            if not part.first:
                writer.writerow(columns)
            texts = [values if isinstance(values, list) else map(str, values) for values in columns.values()]
            writer.writerows(zip(*texts, strict=True))


def _write_parquet(path: Path, parts: Iterator[Predicted], names: list[str]) -> None:
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    writer = None
    try:
        for part in parts:
            table = pyarrow.table(part.columns(names))
            writer = ParquetWriter(path, table.schema, compression="zstd") if writer is None else writer
            writer.write_table(table)
    finally:
        if writer is not None:
            writer.close()
