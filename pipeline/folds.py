"""Cross-fitting folds: who may answer which row.

The examples are cut into B folds; the teacher of fold b is trained on the other folds, and answers the rows of
fold b only, so no row is answered by a teacher that has seen it.

Shapes: N examples.

References:
    Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021, section 4.1.
"""

import csv
import hashlib
import heapq
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Split
from pipeline.spelling import unknown
from pipeline.views import draw, view_seeds

Folds = npt.NDArray[np.uint16]
MAX_FOLDS = 2**16
_HASH_BATCH = 4096


def _kfold(split: Split, num_folds: int, seed: int) -> npt.NDArray[np.integer]:
    """A seeded permutation modulo B: fold sizes differ by at most one."""
    return np.asarray(np.random.default_rng(seed).permutation(len(split)) % num_folds)


def _stratified(split: Split, num_folds: int, seed: int) -> npt.NDArray[np.integer]:
    """Every class is spread evenly over the folds."""
    from sklearn.model_selection import StratifiedKFold

    _, counts = np.unique(split.labels, return_counts=True)
    if counts.min() < num_folds:
        raise ValueError(
            f"stratified folds need at least {num_folds} examples of every class, the rarest has {counts.min()};"
            " use fewer --folds or --fold-strategy kfold"
        )
    folds = np.empty(len(split), dtype=np.int64)
    splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    for fold, (_, rows) in enumerate(splitter.split(np.zeros(len(split)), split.labels)):
        folds[rows] = fold
    return folds


def _group(split: Split, num_folds: int, seed: int) -> npt.NDArray[np.integer]:
    """Examples of one group share a fold; the largest groups are placed first, each into the emptiest fold."""
    groups = group_ids(split)
    _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if len(sizes) < num_folds:
        raise ValueError(f"group folds need at least {num_folds} groups, {split.spec} has {len(sizes)}; use fewer")
    shuffled = np.random.default_rng(seed).permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    filled = [(0, fold) for fold in range(num_folds)]
    fold_of_group = np.empty(len(sizes), dtype=np.int64)
    for group in order:
        rows, fold = heapq.heappop(filled)
        fold_of_group[group] = fold
        heapq.heappush(filled, (rows + int(sizes[group]), fold))
    return np.asarray(fold_of_group[group_of])


def _hash(split: Split, num_folds: int, seed: int) -> npt.NDArray[np.integer]:
    """A hash of the example's content key: an example keeps its fold when others come or go."""
    folds = draw(view_seeds(seed, split.keys, 0), 0, num_folds)
    empty = np.setdiff1d(np.arange(num_folds), folds)
    if len(empty):
        raise ValueError(
            f"hash folds left fold {empty[0]} of {num_folds} without an example; use fewer --folds or another strategy"
        )
    return folds


def group_ids(split: Split) -> npt.NDArray[np.uint64]:
    """The group of every example, uint64 [N]: the split's own groups, or else near-duplicates.

    Images are near-duplicates when their 8 x 8 difference hashes are the same (brightness, noise and recompression
    hardly change it); rows of a table when they are equal.

    References:
        Zauner. Implementation and Benchmarking of Perceptual Image Hash Functions. 2010, section 3.2 (the family).
    """
    if split.groups is not None:
        return split.groups
    if not split.is_image:
        return split.keys
    hashes = [
        _difference_hash(split.samples[start : start + _HASH_BATCH]) for start in range(0, len(split), _HASH_BATCH)
    ]
    return np.concatenate(hashes)


def _difference_hash(images: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """64 bits an image: is each of 8 x 8 patches brighter than its right neighbour."""
    import torch

    grey = torch.from_numpy(images).float().mean(dim=-1)[:, None]
    small = torch.nn.functional.adaptive_avg_pool2d(grey, (8, 9))[:, 0]
    bits = (small[:, :, :-1] > small[:, :, 1:]).flatten(1).numpy()
    return np.packbits(bits, axis=1).view("<u8")[:, 0].astype(np.uint64)


STRATEGIES: dict[str, Callable[[Split, int, int], npt.NDArray[np.integer]]] = {
    "kfold": _kfold,
    "stratified": _stratified,
    "group": _group,
    "hash": _hash,
}


@dataclass(frozen=True, kw_only=True)
class FoldPlan:
    """How rows were assigned to folds; the same plan on the same data gives the same folds."""

    num_folds: int
    strategy: str = "stratified"
    seed: int = 0

    def assign(self, split: Split) -> Folds:
        """The fold of every row, uint16 [N]; every fold holds at least one row.

        Raises:
            ValueError: Unknown strategy, or a number of folds that the data cannot be cut into.
        """
        if self.strategy not in STRATEGIES:
            raise ValueError(unknown("fold strategy", self.strategy, STRATEGIES))
        if not 2 <= self.num_folds <= min(len(split), MAX_FOLDS):
            raise ValueError(
                f"--folds is {self.num_folds}; expected 2 to {min(len(split), MAX_FOLDS)} for {len(split)} examples"
            )
        return STRATEGIES[self.strategy](split, self.num_folds, self.seed).astype(np.uint16)

    def groups(self, split: Split) -> npt.NDArray[np.uint64] | None:
        """The groups that a store records: what kept examples together, or what the data says."""
        return group_ids(split) if self.strategy == "group" else split.groups

    def attributes(self) -> dict[str, Any]:
        return asdict(self)


def fold_digest(keys: npt.NDArray[np.uint64], folds: Folds) -> str:
    """SHA-256 of the (key, fold) pairs: two assignments agree on every example when their digests do."""
    order = np.lexsort((folds, keys))
    digest = hashlib.sha256(np.ascontiguousarray(keys[order], dtype="<u8").data)
    digest.update(np.ascontiguousarray(folds[order], dtype="<u2").data)
    return digest.hexdigest()


def write_assignment(split: Split, plan: FoldPlan, out: Path) -> Folds:
    """Writes who may answer which row, for code elsewhere that trains the fold teachers.

    Train teacher b on the rows whose fold is not b, save it as ``fold{b}.pt`` or ``.safetensors``, and pass the same
    strategy, number and seed to ``cache-teacher``.

    Args:
        split: The examples.
        plan: How they are assigned.
        out: A new folder for ``folds.npz`` (arrays key, label, fold, and group when there are groups) and ``folds.csv``
            (columns row, key, label, fold); it appears whole or not at all.

    Returns:
        The fold of every row.
    """
    folds = plan.assign(split)
    if out.exists():
        raise ValueError(f"{out} exists already; choose another --out or remove it")
    arrays: dict[str, Any] = {"key": split.keys, "label": split.labels, "fold": folds}
    groups = plan.groups(split)
    if groups is not None:
        arrays["group"] = groups
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        np.savez(partial / "folds.npz", **arrays)
        with (partial / "folds.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["row", "key", "label", "fold"])
            for row, (key, label, fold) in enumerate(zip(split.keys, split.labels, folds, strict=True)):
                writer.writerow([row, f"{int(key):016x}", int(label), int(fold)])
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return folds
