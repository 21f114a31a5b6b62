"""The files of TinyViT's saved logits.

DIR/logits_top{K}_epoch{E}/rank{R}-values.bin holds one record for each line of rank{R}-keys.txt: an int32 seed, K class
ids as int16 (which wrap above 32,767 and are unwrapped here), K probabilities at temperature 1 as float16.

Shapes: K kept classes, N examples.
"""

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.cache_teacher.teachers.answering import Rows
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.image_files import paths_of

MAX_KEY = 4096
_EPOCH = re.compile(r"logits_top([1-9][0-9]{0,4})_epoch([0-9]{1,6})")
_VALUES = re.compile(r"rank([0-9]{1,6})-values\.bin")
_MAX_DEPTH = 8  # folders in a key


class RowsByKey(Protocol):
    """What a line of a keys file means."""

    def __call__(self, key: str, folder: Path) -> int | None:
        """The row of the data, or None for an example that it does not have; ValueError for what is no key."""
        ...


class RowsByPosition:
    """Keys are row numbers of the data."""

    def __init__(self, split: Split) -> None:
        self._num_examples = len(split)

    def __call__(self, key: str, folder: Path) -> int | None:
        if not key.isdecimal() or int(key) >= self._num_examples:
            raise ValueError(
                f"{folder}: key {key[:60]!r} is no row of {self._num_examples} examples; pass keys=paths, or the data"
                " it is about"
            )
        return int(key)


class RowsByPath:
    """Keys are the ends of images' paths, of any number of parts; an end that several paths share is none."""

    def __init__(self, split: Split) -> None:
        paths = paths_of(split)
        if paths is None:
            raise ValueError(f"keys=paths needs images in files, and {split.spec} has none; pass keys=positions")
        self._paths = paths
        self._rows: dict[int, dict[str, int]] = {}

    def __call__(self, key: str, folder: Path) -> int | None:
        depth = key.count("/") + 1
        if depth > _MAX_DEPTH:
            return None
        if depth not in self._rows:
            ends = ["/".join(path.parts[-depth:]) for path in self._paths]
            counts = Counter(ends)
            self._rows[depth] = {end: row for row, end in enumerate(ends) if counts[end] == 1}
        return self._rows[depth].get(key)


def find_epochs(folder: Path) -> tuple[int, list[Path]]:
    """K and the folders of the epochs, in order."""
    found = [(match, path) for path in folder.glob("*") if (match := _EPOCH.fullmatch(path.name)) and path.is_dir()]
    if not found:
        raise ValueError(f"{folder}: no folders logits_topK_epochE; expected those that TinyViT's save_logits.py wrote")
    kept = sorted({int(match[1]) for match, _ in found})
    if len(kept) > 1:
        raise ValueError(
            f"{folder}: holds the top {kept[0]} and the top {kept[1]}; keep caches in folders of their own"
        )
    return kept[0], [path for _, path in sorted(found, key=lambda pair: int(pair[0][2]))]


def check_files(folder: Path, top_k: int, split: Split) -> None:
    """Raises ValueError when an epoch's files cannot hold whole records of all examples, as their sizes show."""
    size = _record(top_k).itemsize
    for values in _ranks(folder):
        if values.stat().st_size % size:
            raise ValueError(f"{values}: {values.stat().st_size} bytes, expected records of {size}: it was cut off")
        if not _keys_path(values).is_file():
            raise ValueError(f"{_keys_path(values)} is missing; values and keys belong together")
    wanted = len(split) if split.readable is None else int(split.readable.sum())
    num_records = sum(values.stat().st_size for values in _ranks(folder)) // size
    if num_records < wanted:
        raise ValueError(f"{folder} lacks at least {wanted - num_records} of the {wanted} examples of {split.spec}")


class Epoch:
    """The records of one epoch, by row of the data.

    Args:
        folder: ``logits_topK_epochE``.
        top_k: K.
        split: The examples.
        rows_by_key: Which of them a key means.

    Raises:
        ValueError: Files are missing or cut off, or examples are missing.
    """

    def __init__(self, folder: Path, top_k: int, split: Split, rows_by_key: RowsByKey) -> None:
        self.folder = folder
        record = _record(top_k)
        self._maps = []
        self._place = np.full((len(split), 2), -1, np.int64)  # which file, which record
        for number, values in enumerate(_ranks(folder)):
            size, count = values.stat().st_size, 0
            for count, key in enumerate(_keys(_keys_path(values)), 1):
                row = rows_by_key(key, folder)
                if row is not None and self._place[row, 0] < 0:
                    self._place[row] = number, count - 1
            if size != count * record.itemsize:
                raise ValueError(
                    f"{values}: has {size} bytes; expected {count * record.itemsize}, {record.itemsize} for each of the"
                    f" {count} keys: cut off, or of another number of classes"
                )
            self._maps.append(np.memmap(values, record, "r") if size else np.empty(0, record))
        wanted = np.ones(len(split), np.bool_) if split.readable is None else split.readable
        missing = int(((self._place[:, 0] < 0) & wanted).sum())
        if missing:
            raise ValueError(f"{folder} lacks {missing} of the {int(wanted.sum())} examples of {split.spec}")

    def records(self, rows: Rows) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.float16]]:
        """Class ids and probabilities, [len(rows), K]; zeros for an example without a record."""
        place = self._place[rows]
        found = np.zeros(len(rows), self._maps[0].dtype)
        for number, records in enumerate(self._maps):
            here = place[:, 0] == number
            found[here] = records[place[here, 1]]
        return found["index"], found["prob"]

    def best(self, rows: Rows) -> npt.NDArray[np.int64]:
        """The best class of each row."""
        index, prob = self.records(rows)
        return np.take_along_axis(index, prob.argmax(1)[:, None], 1)[:, 0].astype(np.int64)


def _record(top_k: int) -> np.dtype[np.void]:
    return np.dtype([("seed", "<i4"), ("index", "<u2", (top_k,)), ("prob", "<f2", (top_k,))])


def _ranks(folder: Path) -> list[Path]:
    found = [(match, path) for path in folder.glob("*") if (match := _VALUES.fullmatch(path.name)) and path.is_file()]
    if not found:
        raise ValueError(f"{folder}: no rank0-values.bin in it; fetch it again")
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def _keys_path(values: Path) -> Path:
    return values.with_name(values.name.replace("-values.bin", "-keys.txt"))


def _keys(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        while line := file.readline(MAX_KEY):
            if not line.endswith(b"\n") and len(line) == MAX_KEY:
                raise ValueError(f"{path}: a key of more than {MAX_KEY} bytes; expected one key a line")
            yield line.decode(errors="replace").strip()
