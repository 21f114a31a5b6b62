"""Teachers that have already spoken, to Microsoft's TinyViT: its folders of saved logits.

DIR/logits_top{K}_epoch{E}/rank{R}-values.bin holds one record a line of rank{R}-keys.txt: an int32 seed, K class ids as
int16 (which wrap above 32,767 and are unwrapped here), K probabilities at temperature 1 as float16.

Two things a cache of theirs cannot prove, so whoever imports it says them:

- which record is whose. Keys are file names (``keys=paths``: matched with the ends of the images' paths) or, for a
  folder of images, row numbers of the data as they had it (``keys=positions``). Declared positions are refused when
  the answers know the labels no better than they know other examples' labels.
- what the teacher saw. Their augmentation is a fork of timm, replayed from the seed by a generator of their own; it
  cannot be replayed here. ``pixels=plain`` says that it was off: one view, and saved epochs that differ are refused.
  ``pixels=augmented`` takes each epoch as the answer to a view of the plain image, which it is not, and the teacher's
  name says so wherever it is shown.

Shapes: C classes, K kept classes, N examples, E epochs, V views.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.cache_teacher.answers import Rows, declared_folds
from pipeline.cache_teacher.sparse import from_probabilities, sparse_logits
from pipeline.cache_teacher.spoken import files_digest
from pipeline.datasets import Split
from pipeline.folds import FoldPlan
from pipeline.spelling import unknown
from pipeline.views import Views

TINYVIT_PREFIX = "tinyvit:"
OPTIONS: dict[str, tuple[str, ...]] = {"keys": ("paths", "positions"), "pixels": ("plain", "augmented")}
MAX_CLASSES = 65_536  # ids of 16 bits
MAX_KEY = 4096
LABEL_SIGMA = 5.0
_EPOCH = re.compile(r"logits_top([1-9][0-9]{0,4})_epoch([0-9]{1,6})")
_VALUES = re.compile(r"rank([0-9]{1,6})-values\.bin")
_SAMPLE = 4096
_MAX_DEPTH = 8  # folders in a key


class TinyVitAnswers:
    """A folder of saved logits.

    Args:
        spec: ``tinyvit:DIR?keys=positions&pixels=augmented``, options as above.
        split: The examples; each must have a record in every epoch that is used.
        views: Transform "none"; as many views as epochs are wanted (the first ones), one for plain pixels.
        plan: How rows were assigned to folds, when the answers are out-of-fold ones.

    Raises:
        ValueError: An option is missing, files are, examples are, or records do not fit the data.
    """

    def __init__(self, spec: str, split: Split, views: Views, *, plan: FoldPlan | None = None) -> None:
        self.folder, self.options = _parse(spec)
        self.split, self.views = split, views
        if views.transform != "none":
            raise ValueError(
                f"{spec}: views of TinyViT's teacher cannot be replayed, so --transform {views.transform} would show a"
                " student other pixels than were answered; leave it out"
            )
        if split.num_classes > MAX_CLASSES:
            raise ValueError(f"{spec}: ids of 16 bits cannot name {split.num_classes} classes")
        self.top_k, folders = _epochs(self.folder)
        if self.top_k > split.num_classes:
            raise ValueError(
                f"{self.folder}: top {self.top_k} of {split.num_classes} classes; pass the data it is about"
            )
        most = 1 if self.options["pixels"] == "plain" else len(folders)
        if views.num_views > most:
            raise ValueError(f"--views is {views.num_views}; {spec} has {most} ({self.options['pixels']} pixels)")
        self.epochs = [_Epoch(folder, self.top_k, self) for folder in folders[: views.num_views]]
        if self.options["pixels"] == "plain":
            for folder in folders[1:]:
                self._check_plain(_Epoch(folder, self.top_k, self))
        self.labels_agree = self._check_labels()
        self.folds, self.fold_attributes = declared_folds(plan, split)
        self.groups = split.groups if plan is None else plan.groups(split)
        self.training_fingerprint: str | None = None

    def identity(self) -> dict[str, Any]:
        augmented = self.options["pixels"] == "augmented"
        known = {"paths": "paths, matched with the data's", "positions": "positions, declared, not proved"}
        saw = "augmented, not replayed: the views are not what it saw" if augmented else "plain, declared, not proved"
        return {
            "architecture": f"{TINYVIT_PREFIX}{self.folder.name}{' (saw augmented pixels)' if augmented else ''}",
            "weights_sha256": [self._digest],
            "precision": "float16",
            "imported": {
                "from": TINYVIT_PREFIX + self.folder.name,
                "top_k": self.top_k,
                "epochs": [epoch.folder.name for epoch in self.epochs],
                "keys": known[self.options["keys"]],
                "pixels": saw,
                "labels": self.labels_agree,
                "assumed": [
                    f"the mass outside the top {self.top_k} is spread evenly, the label among it",
                    "logsumexp is 0: only probabilities were saved",
                    "label_rank of a label outside them is counted among these even logits",
                ],
            },
        }

    def __call__(self, rows: Rows, view: int) -> Tensor:
        index, prob = self.epochs[view].records(rows)
        blank = np.zeros(len(rows), np.bool_) if self.split.readable is None else ~self.split.readable[rows]
        logits_NC = torch.zeros((len(rows), self.split.num_classes))
        try:
            arrays = from_probabilities(index[~blank], prob[~blank], self.split.num_classes)
        except ValueError as error:
            raise ValueError(f"{self.epochs[view].folder}: {error}; check --data and the files") from error
        labels = torch.full((int((~blank).sum()),), -1)
        logits_NC[torch.from_numpy(~blank)] = sparse_logits(arrays, labels, self.split.num_classes)
        return logits_NC

    def _check_plain(self, other: "_Epoch") -> None:
        """Plain pixels get the same answer in every epoch, up to rounding."""
        rows = np.unique(np.linspace(0, len(self.split) - 1, _SAMPLE).astype(np.int64))
        best, best_other = (np.max(epoch.records(rows)[1].astype(np.float64), 1) for epoch in (self.epochs[0], other))
        if float(np.abs(best - best_other).mean()) > 0.01:
            raise ValueError(
                f"{other.folder}: answers differ from those of {self.epochs[0].folder.name}, so the pixels were not"
                " plain; pass pixels=augmented"
            )

    def _check_labels(self) -> str:
        """Raises ValueError when the first epoch knows the labels no better than if its rows were shuffled."""
        known = np.flatnonzero(self.split.labels >= 0)
        if self.split.readable is not None:
            known = known[self.split.readable[known]]
        if not len(known):
            return "none to compare with"
        best = np.concatenate([self.epochs[0].best(known[i : i + 2**16]) for i in range(0, len(known), 2**16)])
        labels, num_classes = self.split.labels[known], self.split.num_classes
        shares = [np.bincount(ids[ids < num_classes], minlength=num_classes) / len(known) for ids in (best, labels)]
        chance = float(shares[0] @ shares[1])
        accuracy = float((best == labels).mean())
        if accuracy <= chance + LABEL_SIGMA * np.sqrt(chance * (1 - chance) / len(known)):
            raise ValueError(
                f"{self.folder}: its best class is the label of {accuracy:.2%} of the examples, and would be of"
                f" {chance:.2%} if they were shuffled: other data, another order or other class numbers"
            )
        return f"best class of {accuracy:.4f} of the labelled examples, {chance:.4f} if shuffled"

    @cached_property
    def rows_of_keys(self) -> Mapping[str, int] | None:
        """Row by key text; None when keys are row numbers."""
        if self.options["keys"] == "positions":
            return None
        paths = getattr(self.split.samples, "paths", None)
        if paths is None:
            raise ValueError(f"keys=paths needs images in files, and {self.split.spec} has none; pass keys=positions")
        return _PathEnds(paths)

    @cached_property
    def _digest(self) -> str:
        return files_digest([path for epoch in self.epochs for path in sorted(epoch.folder.glob("rank*-*"))])


class _PathEnds(dict[str, int]):
    """Row of the one path that ends with a key of any number of parts; an end that several paths share is not there."""

    def __init__(self, paths: list[Path]) -> None:
        super().__init__()
        self._paths, self._depths = paths, set[int]()

    def __missing__(self, key: str) -> int:
        depth = key.count("/") + 1
        if depth in self._depths or depth > _MAX_DEPTH:
            raise KeyError(key)
        self._depths.add(depth)
        ends = ["/".join(path.parts[-depth:]) for path in self._paths]
        counts = Counter(ends)
        self.update({end: row for row, end in enumerate(ends) if counts[end] == 1})
        return self[key]


class _Epoch:
    """The records of one epoch, by row of the data."""

    def __init__(self, folder: Path, top_k: int, answers: TinyVitAnswers) -> None:
        self.folder, split = folder, answers.split
        record = np.dtype([("seed", "<i4"), ("index", "<u2", (top_k,)), ("prob", "<f2", (top_k,))])
        self._maps = []
        self._place = np.full((len(split), 2), -1, np.int64)  # which file, which record
        for number, values in enumerate(_ranks(folder)):
            size, count = values.stat().st_size, 0
            for count, key in enumerate(_keys(values.with_name(values.name.replace("-values.bin", "-keys.txt"))), 1):
                row = _row(key, answers.rows_of_keys, len(split), folder)
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
        """Class ids and probabilities, [len(rows), K]."""
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


def _row(key: str, rows_of_keys: Mapping[str, int] | None, num_examples: int, folder: Path) -> int | None:
    """The row that a key means; None for an example that this data does not have."""
    if rows_of_keys is not None:
        try:
            return rows_of_keys[key]
        except KeyError:
            return None
    if not key.isdecimal() or int(key) >= num_examples:
        raise ValueError(
            f"{folder}: key {key[:60]!r} is no row of {num_examples} examples; pass keys=paths, or the data it is about"
        )
    return int(key)


def _parse(spec: str) -> tuple[Path, dict[str, str]]:
    path, _, query = spec.removeprefix(TINYVIT_PREFIX).partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    for option in options:
        if option not in OPTIONS:
            raise ValueError(f"{spec}: {unknown('option', option, OPTIONS)}")
    for option, values in OPTIONS.items():
        if options.get(option) not in values:
            said = {
                "keys": "keys=paths when keys are file names, keys=positions when they are row numbers of this data",
                "pixels": "pixels=plain when nothing was augmented, else pixels=augmented, which cannot be replayed",
            }
            raise ValueError(f"{spec}: the cache does not say what its {option} are; pass {said[option]}")
    return Path(path), options


def _epochs(folder: Path) -> tuple[int, list[Path]]:
    """K and the folders of the epochs in order."""
    found = [(match, path) for path in folder.glob("*") if (match := _EPOCH.fullmatch(path.name)) and path.is_dir()]
    if not found:
        raise ValueError(f"{folder}: no folders logits_topK_epochE; expected those that TinyViT's save_logits.py wrote")
    kept = sorted({int(match[1]) for match, _ in found})
    if len(kept) > 1:
        raise ValueError(
            f"{folder}: holds the top {kept[0]} and the top {kept[1]}; keep caches in folders of their own"
        )
    return kept[0], [path for _, path in sorted(found, key=lambda pair: int(pair[0][2]))]


def _ranks(folder: Path) -> list[Path]:
    found = [(match, path) for path in folder.glob("*") if (match := _VALUES.fullmatch(path.name)) and path.is_file()]
    if not found:
        raise ValueError(f"{folder}: no rank0-values.bin in it; fetch it again")
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][1]))]


def _keys(path: Path) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            while line := file.readline(MAX_KEY):
                if not line.endswith(b"\n") and len(line) == MAX_KEY:
                    raise ValueError(f"{path}: a key of more than {MAX_KEY} bytes; expected one key a line")
                yield line.decode(errors="replace").strip()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); values and keys belong together") from error
