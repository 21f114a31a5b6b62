"""One teacher's features nested in another's: the small one's first, then what the large one knows beyond them.

Shapes: N rows, R rows of a block, A features of the small teacher, D of the large one, K = D, F folds (1 without).
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.stores import Store, StoreError, Teacher, TeacherWriter, open_store
from logitbank.stores.read.gather import RowReader

Array = npt.NDArray[np.float64]
LAYER = "nested"


def nest_features(path: Path, small: str, large: str, name: str, *, num_rows: int = 5000) -> int:
    """Adds a teacher to a store: the answers of the large one, and features [h_S; P^T (h_L - R h_S)].

    R is the linear regression of the large teacher's features on the small one's, P the first D - A principal
    directions of what it leaves over, both about their means, on random rows of the first view; fold by fold. The last
    layer of the large teacher is kept as it reads the nested features, up to the directions left out.

    Args:
        path: A store with both teachers, finished.
        small: Name of the teacher whose features come first.
        large: Name of the one with more features.
        name: The new teacher's name.
        num_rows: Rows that R and P are fitted on; the authors' published models took 5,000.

    Returns:
        How many features a row has.

    Raises:
        ValueError: A teacher keeps no features, or the large one no more than the small one, or too few rows.

    References:
        Reverse Distillation, the authors' code (protein language models): linear R, chained from small to large.
    """
    store = open_store(path)
    first, second = store.teacher(small), store.teacher(large)
    sizes = [_size(store, teacher) for teacher in (first, second)]
    if sizes[0] >= sizes[1]:
        raise ValueError(f"teacher {small!r} has {sizes[0]} features, {large!r} {sizes[1]}; the second must have more")
    fold_N = _folds(store, first, second)
    maps = _fit(store, first, second, fold_N, num_rows)
    arrays = {**second.row_arrays, "embedding": replace(second.row_arrays["embedding"], row_shape=(sizes[1],))}
    writer = TeacherWriter(
        path,
        name,
        identity=_identity(first, second, num_rows),
        encoding=second.encoding,
        arrays=arrays,
        folds=second.folds,
        constants=_constants(second, maps, sizes),
        block_rows=second.block_rows,
    )
    reader = RowReader(first, ["embedding"])
    for cell in writer.pending():
        rows = np.arange(writer.rows(cell.block).start, writer.rows(cell.block).stop)
        values = second.block(cell.view, cell.block)
        h_small = reader.answers(cell.view, rows)["embedding"].astype(np.float64)
        h_large = values["embedding"].astype(np.float64)
        found = np.concatenate([h_small, _beyond(maps, fold_N[rows], h_small, h_large)], axis=1)
        writer.write(cell, {**values, "embedding": found.astype(arrays["embedding"].dtype)})
    asked = {key: value for key, value in second.summary.items() if key != "asked"}
    if not open_store(path, allow_incomplete=True).teacher(name).complete:
        writer.finish(fidelity=second.fidelity, summary=asked)
    return sizes[1]


def _folds(store: Store, first: Teacher, second: Teacher) -> npt.NDArray[np.int64]:
    """Whose features a row's are, int64 [N]."""
    if (first.row_folds is None) != (second.row_folds is None):
        raise ValueError(
            f"of teachers {first.name!r} and {second.name!r} one has folds and the other none, so their features do not"
            " go together; cache both with folds or both without"
        )
    masks = [teacher.slab(0, ["mask"])["mask"] for teacher in (first, second) if "mask" in teacher.row_arrays]
    if len(masks) == 1 or (masks and not np.array_equal(masks[0], masks[1])):
        raise ValueError(f"teachers {first.name!r} and {second.name!r} serve different rows; merge what both serve")
    return np.zeros(store.num_examples, np.int64) if first.row_folds is None else first.row_folds.astype(np.int64)


def _size(store: Store, teacher: Teacher) -> int:
    if "embedding" not in teacher.row_arrays:
        raise ValueError(
            f"teacher {teacher.name!r} of {store.path} keeps no features; cache it with --embedding penultimate"
        )
    if store.positions is not None:
        raise ValueError(
            f"{store.path} has features at positions, which nest cannot join; take a store with one answer an example"
        )
    return int(teacher.row_arrays["embedding"].row_shape[0])


class _Map:
    """R with both means, and P, of one fold."""

    def __init__(self, h_small_NA: Array, h_large_ND: Array) -> None:
        num_rows, width = h_small_NA.shape
        if num_rows <= h_large_ND.shape[1]:
            raise ValueError(
                f"{num_rows} rows of a fold are too few for {h_large_ND.shape[1]} features; raise --rows, or keep"
                " fewer features (--embedding-dim)"
            )
        self.mean_A, self.mean_D = h_small_NA.mean(0), h_large_ND.mean(0)
        small, large = h_small_NA - self.mean_A, h_large_ND - self.mean_D
        self.regression_AD: Array = np.linalg.lstsq(small, large, rcond=None)[0]
        left_ND = large - small @ self.regression_AD
        _, vectors = np.linalg.eigh(left_ND.T @ left_ND)
        self.directions_DP: Array = vectors[:, ::-1][:, : h_large_ND.shape[1] - width]
        self.directions_DP = self.directions_DP * np.sign(
            np.take_along_axis(self.directions_DP, np.abs(self.directions_DP).argmax(0)[None], 0)
        )

    def beyond(self, h_small_NA: Array, h_large_ND: Array) -> Array:
        """What the large teacher knows beyond the small one, [N, D - A]."""
        left_ND = h_large_ND - self.mean_D - (h_small_NA - self.mean_A) @ self.regression_AD
        return np.asarray(left_ND @ self.directions_DP)


def _fit(store: Store, first: Teacher, second: Teacher, fold_N: npt.NDArray[np.int64], num_rows: int) -> list[_Map]:
    order = np.random.default_rng(0).permutation(store.num_examples)
    if "mask" in first.row_arrays:
        order = order[first.slab(0, ["mask"])["mask"][order]]
    rows = np.sort(order[:num_rows])
    readers = (RowReader(teacher, ["embedding"]) for teacher in (first, second))
    small, large = (reader.answers(0, rows)["embedding"].astype(np.float64) for reader in readers)
    folds = range(int(fold_N.max()) + 1)
    return [_Map(small[fold_N[rows] == fold], large[fold_N[rows] == fold]) for fold in folds]


def _beyond(maps: list[_Map], fold_R: npt.NDArray[np.int64], h_small: Array, h_large: Array) -> Array:
    found = np.empty((len(h_small), maps[0].directions_DP.shape[1]))
    for fold in np.unique(fold_R).tolist():
        own_R = fold_R == fold
        found[own_R] = maps[fold].beyond(h_small[own_R], h_large[own_R])
    return found


def _identity(first: Teacher, second: Teacher, num_rows: int) -> dict[str, Any]:
    return {
        **second.identity,
        "architecture": f"{LAYER}:{first.name}+{second.name}",
        "embedding": LAYER,
        LAYER: {"small": first.identity, "large": second.identity, "rows": num_rows},
    }


def _constants(second: Teacher, maps: list[_Map], sizes: list[int]) -> Mapping[str, npt.NDArray[Any]]:
    """Those of the large teacher's answers, and its last layer on nested features."""
    kept = {
        name: array
        for name, array in second.constants().items()
        if name not in ("embedding_basis", "embedding_mean", "head_weight", "head_bias")
    }
    if "head_weight" not in second.constant_names:
        return kept
    weight, bias = second.constant("head_weight").astype(np.float64), second.constant("head_bias").astype(np.float64)
    if weight.ndim != 3 or weight.shape[2] != sizes[1] or bias.shape != weight.shape[:2]:
        raise StoreError(f"head_weight of teacher {second.name!r} is {list(weight.shape)}; do not use this store")
    weights, biases = [], []
    for fold, each in enumerate(maps):
        own, start = (weight[fold], bias[fold]) if len(weight) > 1 else (weight[0], bias[0])
        weights.append(np.concatenate([own @ each.regression_AD.T, own @ each.directions_DP], axis=1))
        biases.append(start + own @ (each.mean_D - each.regression_AD.T @ each.mean_A))
    return {**kept, "head_weight": np.array(weights, np.float32), "head_bias": np.array(biases, np.float32)}
