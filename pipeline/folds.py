"""Cross-fitting folds: who may answer which row.

The examples are cut into B folds; the teacher of fold b is trained on the other folds, and answers the rows of
fold b only, so no row is answered by a teacher that has seen it. Equal examples (equal content keys) are one example
in several rows: whoever has seen one has seen all, so they share a fold, whatever the strategy.

Shapes: N examples, U of them different.

References:
    Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021, section 4.1.
"""

import csv
import hashlib
import heapq
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.spelling import unknown
from logitbank.pipeline.views import draw, view_seeds
from logitbank.stores.write.building import build

Folds = npt.NDArray[np.uint16]
Rows = npt.NDArray[np.int64]
MAX_FOLDS = 2**16
_HASH_BATCH = 4096


def _kfold(split: Split, first_U: Rows, num_folds: int, seed: int) -> npt.NDArray[np.integer]:
    """A seeded permutation modulo B: fold sizes differ by at most one (equal rows counted once).

    Of our own, since scikit-learn's shuffled KFold gives other folds, and stores record these.
    """
    return np.asarray(np.random.default_rng(seed).permutation(len(first_U)) % num_folds)


def _stratified(split: Split, first_U: Rows, num_folds: int, seed: int) -> npt.NDArray[np.integer]:
    """Every class is spread evenly over the folds, and so are rows without a label, however few."""
    from sklearn.model_selection import StratifiedKFold

    if split.positions is not None:
        raise ValueError(
            f"stratified folds need one label an example, {split.spec} has {split.positions}; use --fold-strategy"
            " kfold, group or hash"
        )
    labels_U = split.labels[first_U]
    _, counts = np.unique(labels_U[labels_U >= 0], return_counts=True)
    if counts.min(initial=len(first_U)) < num_folds:
        raise ValueError(
            f"stratified folds need at least {num_folds} different examples of every class, the rarest of"
            f" {len(counts)} classes has {counts.min()}; if label= is the right column, use"
            " fewer --folds or --fold-strategy kfold"
        )
    folds = np.empty(len(first_U), dtype=np.int64)
    splitter = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # few rows without a label
        for fold, (_, rows) in enumerate(splitter.split(np.zeros(len(first_U)), labels_U)):
            folds[rows] = fold
    return folds


def _group(split: Split, first_U: Rows, num_folds: int, seed: int) -> npt.NDArray[np.integer]:
    """Examples of one group share a fold; the largest groups are placed first, each into the emptiest fold.

    scikit-learn's GroupKFold has the same rule, but no seed among groups of one size, and stores record these folds.
    """
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
    return np.asarray(fold_of_group[group_of[first_U]])


def _hash(split: Split, first_U: Rows, num_folds: int, seed: int) -> npt.NDArray[np.integer]:
    """A hash of the example's content key: an example keeps its fold when others come or go."""
    folds = draw(view_seeds(seed, split.keys[first_U], 0), 0, num_folds)
    empty = np.setdiff1d(np.arange(num_folds), folds)
    if len(empty):
        raise ValueError(
            f"hash folds left fold {empty[0]} of {num_folds} without an example; use fewer --folds or another strategy"
        )
    return folds


def group_ids(split: Split) -> npt.NDArray[np.uint64]:
    """The group of every example, uint64 [N]: the split's own groups, or else near-duplicates.

    Images are near-duplicates when their 8 x 8 difference hashes are the same (brightness, noise and recompression
    hardly change it); rows of a table when they are equal. Two groups that hold equal examples are one.

    References:
        Zauner. Implementation and Benchmarking of Perceptual Image Hash Functions. 2010, section 3.2 (the family).
    """
    if split.groups is not None:
        return _joined(split.groups, split.keys)
    if not split.is_image:
        return split.keys
    hashes = [
        _difference_hash(split.samples[start : start + _HASH_BATCH]) for start in range(0, len(split), _HASH_BATCH)
    ]
    return _joined(np.concatenate(hashes), split.keys)


def _joined(groups: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The groups, those that are linked by equal keys as one, which keeps its smallest id."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ids, group_of = np.unique(groups, return_inverse=True)
    first_U, example_of = different(keys)
    links = (np.ones(len(keys), np.int8), (group_of, len(ids) + example_of))
    size = len(ids) + len(first_U)
    _, component = connected_components(coo_array(links, shape=(size, size)), directed=False)
    _, smallest, joined = np.unique(component[: len(ids)], return_index=True, return_inverse=True)
    return np.asarray(ids[smallest[joined]][group_of])


def different(keys: npt.NDArray[np.uint64]) -> tuple[Rows, Rows]:
    """The first row of each different example, in order, int64 [U], and which of these each row equals, int64 [N]."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(first)
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    return first[order], place[inverse]


def apart_from_equals(keys: npt.NDArray[np.uint64], folds: Folds) -> int:
    """How many rows have an equal in another fold: their teacher has seen what it answers."""
    first_U, example_of = different(keys)
    low, high = np.full(len(first_U), MAX_FOLDS), np.full(len(first_U), -1)
    np.minimum.at(low, example_of, folds)
    np.maximum.at(high, example_of, folds)
    return int((low < high)[example_of].sum())


def refuse_apart(keys: npt.NDArray[np.uint64], folds: Folds, source: str) -> None:
    """Raises ValueError when equal examples are in different folds."""
    apart = apart_from_equals(keys, folds)
    if apart:
        raise ValueError(
            f"{source}: {apart} of {len(keys)} rows have an equal in another fold, so their fold teacher has seen what"
            " it would answer; assign the folds again (every strategy keeps equal rows together), and train the fold"
            " teachers on them"
        )


def _difference_hash(images: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """64 bits an image: is each of 8 x 8 patches brighter than its right neighbour."""
    import torch

    grey = torch.from_numpy(images).float().mean(dim=-1)[:, None]
    small = torch.nn.functional.adaptive_avg_pool2d(grey, (8, 9))[:, 0]
    bits = (small[:, :, :-1] > small[:, :, 1:]).flatten(1).numpy()
    return np.packbits(bits, axis=1).view("<u8")[:, 0].astype(np.uint64)


# of the split, the first row of each different example, the number of folds and a seed: the fold of each of them [U]
STRATEGIES: dict[str, Callable[[Split, Rows, int, int], npt.NDArray[np.integer]]] = {
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
        """The fold of every row, uint16 [N]; every fold holds at least one row, equal rows are in one fold.

        Raises:
            ValueError: Unknown strategy, or a number of folds that the data cannot be cut into.
        """
        if self.strategy not in STRATEGIES:
            raise ValueError(unknown("fold strategy", self.strategy, STRATEGIES))
        first_U, example_of = different(split.keys)
        most = min(len(first_U), MAX_FOLDS)
        if not 2 <= self.num_folds <= most:
            raise ValueError(f"--folds is {self.num_folds}; expected 2 to {most} for {len(first_U)} different examples")
        return STRATEGIES[self.strategy](split, first_U, self.num_folds, self.seed).astype(np.uint16)[example_of]

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


def write_assignment(split: Split, plan: FoldPlan, out: Path) -> tuple[Folds, bool]:
    """Writes who may answer which row, for code elsewhere that trains the fold teachers.

    Train teacher b on the rows whose fold is not b, save it as ``fold{b}.pt`` or ``.safetensors``, and pass the same
    strategy, number and seed to ``cache-teacher``.

    Args:
        split: The examples.
        plan: How they are assigned.
        out: A folder for ``folds.npz`` (arrays key, label, fold, and group when there are groups) and ``folds.csv``
            (columns row, key, label, fold); it appears whole or not at all.

    Returns:
        The fold of every row, and whether the folder was written: False when it was there already.

    Raises:
        ValueError: Something else is there.
    """
    folds = plan.assign(split)
    arrays: dict[str, Any] = {"key": split.keys, "label": split.labels, "fold": folds}
    groups = plan.groups(split)
    if groups is not None:
        arrays["group"] = groups

    def make(built: Path) -> None:
        built.mkdir()
        np.savez(built / "folds.npz", **arrays)
        with (built / "folds.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            one = split.positions is None  # labels of positions are in the other file alone
            writer.writerow(["row", "key", *(["label"] if one else []), "fold"])
            for row, (key, label, fold) in enumerate(zip(split.keys, split.labels, folds, strict=True)):
                writer.writerow([row, f"{int(key):016x}", *([int(label)] if one else []), int(fold)])

    return folds, build(out, make)
