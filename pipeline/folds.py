"""Cross-fitting folds: who may answer which row.

The examples are cut into B folds; the teacher of fold b is trained on the other folds, and answers the rows of
fold b only, so no row is answered by a teacher that has seen it.

Shapes: N examples.

References:
    Dao, Kamath, Syrgkanis, Mackey. Knowledge Distillation as Semiparametric Inference. ICLR 2021, section 4.1.
"""

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.datasets import Split
from pipeline.spelling import unknown

Folds = npt.NDArray[np.uint16]
MAX_FOLDS = 2**16


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


STRATEGIES: dict[str, Callable[[Split, int, int], npt.NDArray[np.integer]]] = {
    "kfold": _kfold,
    "stratified": _stratified,
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

    def attributes(self) -> dict[str, Any]:
        return asdict(self)


def fold_digest(keys: npt.NDArray[np.uint64], folds: Folds) -> str:
    """SHA-256 of the (key, fold) pairs: two assignments agree on every example when their digests do."""
    order = np.lexsort((folds, keys))
    digest = hashlib.sha256(np.ascontiguousarray(keys[order], dtype="<u8").data)
    digest.update(np.ascontiguousarray(folds[order], dtype="<u2").data)
    return digest.hexdigest()
