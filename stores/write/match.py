"""Which row of one store is which row of another: by content key and label, never by position.

Labels of examples with L positions are [N, L]: those of an example are one thing, and are numbered.

Shapes: N examples of a result, M of a source, L positions, P probes.
"""

from collections.abc import Sequence

import numpy as np

from logitbank.stores.format.schema import StoreError
from logitbank.stores.read.lineage import last_step
from logitbank.stores.read.reader import Store


def match_rows(
    keys: np.ndarray,
    labels: np.ndarray,
    folds: np.ndarray | None,
    store: Store,
    ranks: tuple[np.ndarray, np.ndarray] | None = None,
) -> np.ndarray:
    """The store's row of each example, int64 [N], -1 where it has none.

    Args:
        keys: [N].
        labels: [N].
        folds: [N].
        store: Where they are looked for.
        ranks: Of the examples [N] and of the store's rows [M], where they are parts of one whole: which of the equal
            examples of the whole each is. Without them, examples that are equal to the last bit are told apart by
            their folds, then by their order.

    Raises:
        StoreError: an example has other labels in the store, or another number of positions.
    """
    if labels.shape[1:] != store.labels.shape[1:]:
        raise StoreError(
            f"{store.path} answers an example at {_positions(store.labels)}, the others are answered at"
            f" {_positions(labels)}; only stores of one kind go together"
        )
    if ranks is None and _are_equal(
        (keys, store.keys), (labels, store.labels), (folds, None if folds is None else store.folds)
    ):
        return np.arange(len(keys))
    ids = _pair_ids(np.concatenate([keys, store.keys]), np.concatenate([labels, store.labels]))
    own, other = ids[: len(keys)], ids[len(keys) :]
    strange = np.isin(keys, store.keys) & ~np.isin(own, other)
    if strange.any() and ranks is None:  # one whole may hold an example twice, with two labels
        raise StoreError(
            f"{store.path} has other labels on {int(strange.sum())} examples; stores must agree on the labels"
        )
    if ranks is None:
        ranks = _occurrence(own, folds), _occurrence(other, store.folds if folds is not None else None)
    own_rank, other_rank = ranks
    stride = max(int(own_rank.max(initial=0)), int(other_rank.max(initial=0))) + 1
    wanted, found = own * stride + own_rank, other * stride + other_rank
    order = np.argsort(found)
    place = np.minimum(np.searchsorted(found[order], wanted), len(found) - 1)
    rows = order[place]
    return np.where(found[rows] == wanted, rows, -1).astype(np.int64)


def _are_equal(*pairs: tuple[np.ndarray | None, np.ndarray | None]) -> bool:
    """Whether examples are the very same in the same order, as most often: sorting 10^6 of them takes seconds."""
    return all(
        one is other or (one is not None and other is not None and np.array_equal(one, other)) for one, other in pairs
    )


def _positions(labels: np.ndarray) -> str:
    return "one position" if labels.ndim == 1 else f"{labels.shape[1]} positions"


def _pair_ids(keys: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A number for each (key, label), equal for equal pairs."""
    if labels.ndim > 1:
        rows = np.ascontiguousarray(labels.astype("<i4")).view(f"V{4 * labels.shape[1]}")[:, 0]
        labels = np.unique(rows, return_inverse=True)[1]
    order = np.lexsort((labels, keys))
    first = (np.diff(keys[order]) != 0) | (np.diff(labels[order]) != 0)
    ids = np.empty(len(keys), dtype=np.int64)
    ids[order] = np.r_[0, np.cumsum(first)]
    return ids


def _occurrence(ids: np.ndarray, folds: np.ndarray | None) -> np.ndarray:
    """Of each row, how many rows of the same id stand before it, by fold and then by position."""
    order = np.lexsort((np.arange(len(ids)), np.zeros(len(ids)) if folds is None else folds, ids))
    ordered = ids[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    rank = np.arange(len(ids)) - np.repeat(starts, np.diff(np.r_[starts, len(ids)]))
    out = np.empty(len(ids), dtype=np.int64)
    out[order] = rank
    return out


def twins(store: Store, rows: np.ndarray) -> list[list[int]]:
    """Those of some rows [N] whose examples the store holds more than once: place in N, and which of them it is.

    A part of a store says so in its lineage, so that parts become the whole again.
    """
    ids = _pair_ids(store.keys, store.labels)
    several = np.flatnonzero(np.bincount(ids)[ids[rows]] > 1)
    ranks = _occurrence(ids, store.folds)[rows[several]]
    return [[int(place), int(rank)] for place, rank in zip(several, ranks, strict=True)]


def _ranks_in_one_whole(stores: Sequence[Store]) -> list[np.ndarray] | None:
    """Which of the equal examples of one whole each row is, int64 [M] a store; None when they have no such whole."""
    steps = [last_step(store.attributes) for store in stores]
    if len({str(step.get("digest")) for step in steps}) > 1:
        return None
    ranks = []
    for store, step in zip(stores, steps, strict=True):
        rank = np.zeros(store.num_examples, dtype=np.int64)
        try:
            for place, which in step["twins"]:
                rank[place] = which
        except (KeyError, TypeError, ValueError, IndexError, OverflowError):
            return None
        ids = _pair_ids(store.keys, store.labels)
        if rank.min() < 0 or len(np.unique(np.stack([ids, rank]), axis=1).T) < len(ids):
            return None
        ranks.append(rank)
    return ranks


def merged_examples(stores: Sequence[Store]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Keys and labels of the examples of all stores, first come first, and each store's row of each of them."""
    keys, labels, folds = stores[0].keys, stores[0].labels, stores[0].folds
    ranks = _ranks_in_one_whole(stores)
    rank = None if ranks is None else ranks[0]

    def match(number: int) -> np.ndarray:
        both = None if ranks is None or rank is None else (rank, ranks[number])
        return match_rows(keys, labels, folds, stores[number], both)

    for number, store in enumerate(stores[1:], 1):
        known = match(number)
        new = np.setdiff1d(np.arange(store.num_examples), known[known >= 0])
        keys, labels = np.concatenate([keys, store.keys[new]]), np.concatenate([labels, store.labels[new]])
        if ranks is not None and rank is not None:
            rank = np.concatenate([rank, ranks[number][new]])
        if len(new):
            more = store.folds
            folds = None if folds is None or more is None else np.concatenate([folds, more[new]])
    return keys, labels, [match(number) for number in range(len(stores))]


def pick(stores: Sequence[Store], rows: Sequence[np.ndarray], name: str) -> np.ndarray | None:
    """Folds or groups [N] of the result; None when no store has them.

    Raises:
        StoreError: stores disagree, or some examples have them and others not.
    """
    values: np.ndarray | None = None
    known = np.zeros(len(rows[0]), dtype=np.bool_)
    for store, found in zip(stores, rows, strict=True):
        own = store.folds if name == "folds" else store.groups
        if own is None:
            continue
        here = found >= 0
        if values is None:
            values = np.zeros(len(found), dtype=own.dtype)
        assert values is not None
        both = here & known
        different = int((values[both] != own[found[both]]).sum())
        if different and name == "folds":
            raise StoreError(
                f"{store.path} has {different} examples in other folds; cross-fitted teachers of one store share its"
                " folds: make them with the same --folds, --fold-strategy and --fold-seed"
            )
        new = here & ~known
        values[new] = own[found[new]]
        known |= here
    if values is not None and not known.all():
        missing = int((~known).sum())
        if name == "folds":
            raise StoreError(
                f"{missing} examples are only in stores without folds, the others have folds; merge stores of one kind"
            )
        return None
    return values


def merged_probes(stores: Sequence[Store], rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Probes of the views, with row numbers of the result.

    Raises:
        StoreError: two stores saw other pixels in the same view of an example, or no probed example is left.
    """
    digests: dict[int, np.ndarray] = {}
    for store, found in zip(stores, rows, strict=True):
        probes = store.probes
        if not {"row", "digest"} <= set(probes):
            continue
        back = np.full(store.num_examples, -1, dtype=np.int64)
        back[found[found >= 0]] = np.flatnonzero(found >= 0)
        for row, digest_V in zip(probes["row"].tolist(), probes["digest"].T[:, : store.num_views], strict=True):
            if not 0 <= row < store.num_examples or back[row] < 0:
                continue
            if not np.array_equal(digests.setdefault(int(back[row]), digest_V), digest_V):
                raise StoreError(
                    f"{store.path}: its teacher saw other pixels in the views of an example; the library versions that"
                    " made the views differ, so the stores cannot be merged"
                )
    if not any(store.probes for store in stores):
        return {}
    if not digests:
        raise StoreError("no probed example is among the rows, so the views could not be proved; choose more rows")
    order = sorted(digests)
    return {"row": np.array(order, dtype=np.uint32), "digest": np.stack([digests[row] for row in order], axis=1)}
