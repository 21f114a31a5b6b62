"""Teachers that have already spoken, to Microsoft's TinyViT: its folders of saved logits (`tinyvit_files`).

Two things a cache of theirs cannot prove, so whoever imports it says them:

- which record is whose. Keys are file names (``keys=paths``: matched with the ends of the images' paths) or, for a
  folder of images, row numbers of the data as they had it (``keys=positions``). Declared positions are refused when
  the answers know the labels no better than they know other examples' labels.
- what the teacher saw. Their augmentation is a fork of timm, replayed from the seed by a generator of their own; it
  cannot be replayed here. ``pixels=plain`` says that it was off: one view, and saved epochs that differ are refused.
  ``pixels=augmented`` takes each epoch as the answer to a view of the plain image, which it is not, and the teacher's
  name says so wherever it is shown.

Shapes: C classes, N examples, V views.
"""

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from logitbank.pipeline.answers.guessed_labels import labels_named
from logitbank.pipeline.cache_teacher.teachers import TINYVIT_PREFIX
from logitbank.pipeline.cache_teacher.teachers.answering import Batch, Features, Rows, in_turn
from logitbank.pipeline.cache_teacher.teachers.arrays import declared_folds
from logitbank.pipeline.cache_teacher.teachers.claims import nothing_known
from logitbank.pipeline.cache_teacher.teachers.exported import files_digest
from logitbank.pipeline.cache_teacher.teachers.sparse import from_probabilities, sparse_logits
from logitbank.pipeline.cache_teacher.teachers.tinyvit_files import (
    Epoch,
    RowsByPath,
    RowsByPosition,
    check_files,
    find_epochs,
)
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.views import Views

OPTIONS: dict[str, tuple[str, ...]] = {"keys": ("paths", "positions"), "pixels": ("plain", "augmented")}
MAX_CLASSES = 65_536  # ids of 16 bits
LABEL_SIGMA = 5.0
_SAMPLE = 4096
_BATCH = 2**16


class TinyVitTeacher:
    """A folder of saved logits.

    Args:
        spec: ``tinyvit:DIR?keys=positions&pixels=augmented``, options as above.
        split: The examples; each must have a record in every epoch that is used.
        views: Transform "none"; as many views as epochs are wanted (the first ones), one for plain pixels.
        plan: How rows were assigned to folds, when the answers are out-of-fold ones.

    Raises:
        ValueError: An option is missing, files are, examples are, or records do not fit the data.
    """

    features: Features | None = None

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
        self.top_k, folders = find_epochs(self.folder)
        if self.top_k > split.num_classes:
            raise ValueError(
                f"{self.folder}: top {self.top_k} of {split.num_classes} classes; pass the data it is about"
            )
        most = 1 if self.options["pixels"] == "plain" else len(folders)
        if views.num_views > most:
            raise ValueError(f"--views is {views.num_views}; {spec} has {most} ({self.options['pixels']} pixels)")
        self._folders = folders[: views.num_views]
        self._keys = RowsByPosition(split) if self.options["keys"] == "positions" else RowsByPath(split)
        for folder in folders:
            check_files(folder, self.top_k, split)
        self._epoch, self._labels_agree = self._load(folders[0])
        if self.options["pixels"] == "plain":
            for folder in folders[1:]:
                self._check_plain(self._load(folder)[0])
        self.folds, self.fold_attributes = declared_folds(plan, split)
        self.groups = split.groups if plan is None else plan.groups(split)
        self.seen = nothing_known(split)

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
                "epochs": [folder.name for folder in self._folders],
                "keys": known[self.options["keys"]],
                "pixels": saw,
                "labels": self._labels_agree,
                **self._labels_named,
                "assumed": [
                    f"the mass outside the top {self.top_k} is spread evenly, the label among it",
                    "logsumexp is 0: only probabilities were saved",
                    "label_rank of a label outside them is counted among these even logits",
                ],
            },
        }

    def __call__(self, rows: Rows, view: int) -> Tensor:
        if self._epoch.folder != self._folders[view]:  # one at a time is in memory
            self._epoch, _ = self._load(self._folders[view])
        index, prob = self._epoch.records(rows)
        blank = np.zeros(len(rows), np.bool_) if self.split.readable is None else ~self.split.readable[rows]
        logits_NC = torch.zeros((len(rows), self.split.num_classes))
        try:
            arrays = from_probabilities(index[~blank], prob[~blank], self.split.num_classes)
        except ValueError as error:
            raise ValueError(f"{self._epoch.folder}: {error}; check --data and the files") from error
        labels = torch.full((int((~blank).sum()),), -1)
        logits_NC[torch.from_numpy(~blank)] = sparse_logits(arrays, labels, self.split.num_classes)
        return logits_NC

    def batches(self, rows: Rows, view: int) -> Iterator[Batch]:
        return in_turn(self, rows, view, self.split)

    def _load(self, folder: Path) -> tuple[Epoch, str]:
        """An epoch, and how well it knows the labels.

        Raises:
            ValueError: It knows them no better than if its rows were shuffled.
        """
        epoch = Epoch(folder, self.top_k, self.split, self._keys)
        known = self._labelled
        if not len(known):
            return epoch, "none to compare with"
        best = np.concatenate([epoch.best(known[i : i + _BATCH]) for i in range(0, len(known), _BATCH)])
        labels, num_classes = self.split.labels[known], self.split.num_classes
        shares = [np.bincount(ids[ids < num_classes], minlength=num_classes) / len(known) for ids in (best, labels)]
        chance = float(shares[0] @ shares[1])
        accuracy = float((best == labels).mean())
        if accuracy <= chance + LABEL_SIGMA * np.sqrt(chance * (1 - chance) / len(known)):
            raise ValueError(
                f"{folder}: its best class is the label of {accuracy:.2%} of the examples, and would be of"
                f" {chance:.2%} if they were shuffled: other data, another order or other class numbers"
            )
        return epoch, f"best class of {accuracy:.4f} of the labelled examples, {chance:.4f} if shuffled"

    def _check_plain(self, other: Epoch) -> None:
        """Plain pixels get the same answer in every epoch, up to rounding."""
        rows = np.unique(np.linspace(0, len(self.split) - 1, _SAMPLE).astype(np.int64))
        best, best_other = (np.max(epoch.records(rows)[1].astype(np.float64), 1) for epoch in (self._epoch, other))
        if float(np.abs(best - best_other).mean()) > 0.01:
            raise ValueError(
                f"{other.folder}: answers differ from those of {self._epoch.folder.name}, so the pixels were not"
                " plain; pass pixels=augmented"
            )

    @cached_property
    def _labelled(self) -> Rows:
        """The rows that have a label and an answer."""
        labelled = self.split.labels >= 0
        return np.flatnonzero(labelled if self.split.readable is None else labelled & self.split.readable)

    @cached_property
    def _labels_named(self) -> dict[str, Any]:
        """Of how many answers of the views the label's probability is known; each epoch is read once for it."""
        parts = [self._labelled[start : start + _BATCH] for start in range(0, len(self._labelled), _BATCH)]
        epochs = (self._load(folder)[0] for folder in self._folders)
        return labels_named((epoch.records(some)[0], self.split.labels[some]) for epoch in epochs for some in parts)

    @cached_property
    def _digest(self) -> str:
        return files_digest([path for folder in self._folders for path in sorted(folder.glob("rank*-*"))])


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
