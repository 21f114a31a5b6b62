"""What a store says in natural numbers: log-probabilities at temperature 1, block by block.

Shapes: V views, N examples, K kept classes, C classes, R rows of a chunk. Where examples are answered at L positions,
[..., L, *row_shape] stands for [..., *row_shape].
"""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.answers.teacher_rows import TeacherRows
from logitbank.pipeline.exchange.document import DENSE, TOP_K
from logitbank.stores import RowArray, Store, StoreError

CHUNK_BYTES = 2**24  # of the values of one chunk of one view
HELD_BYTES = 2**27  # of the values, and of the blocks, that are held when all views of a chunk are wanted together

Arrays = dict[str, npt.NDArray[np.generic]]


class Values:
    """One teacher's answers, of a store that is open.

    Args:
        store: A finished store.
        name: Which teacher (None: the only one).
        num_views: The first views of the store; None: all.
        dense: Decode all classes also where the store holds the top K and predicts the others.
        on_rows: Called with the number of rows of each chunk that was decoded.

    Raises:
        ValueError: No such teacher or views.
    """

    def __init__(
        self,
        store: Store,
        name: str | None = None,
        *,
        num_views: int | None = None,
        dense: bool = False,
        on_rows: Callable[[int], None] | None = None,
    ) -> None:
        self.store, self.teacher = store, store.teacher(name)
        self.num_views = store.num_views if num_views is None else num_views
        if not 1 <= self.num_views <= store.num_views:
            raise ValueError(f"--views asks for {self.num_views} views; {store.path} has {store.num_views}")
        self._decoder = TeacherRows(store, self.teacher)
        self.encoding = self._decoder.encoding
        if self.encoding.num_classes != store.num_classes:
            raise StoreError(f"{store.path}: its encoding is for {self.encoding.num_classes} classes; do not use it")
        self.dense = dense or not self.encoding.has_tail
        self.predicts = self.dense and self.encoding.has_tail
        taken = {*self.encoding.row_arrays(shifted=self.predicts), "mask"}
        self._stored = [name for name in self.teacher.arrays if name in taken]
        self._on_rows = on_rows
        self._held: dict[tuple[int, int], Arrays] = {}
        self.arrays = self._natural_arrays()
        self.folds = self.teacher.row_folds

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of one view, all its positions."""
        return (self.store.positions or 1) * sum(array.row_bytes for array in self.arrays.values())

    def chunks(self, view: int) -> Iterator[tuple[slice, Arrays]]:
        """All rows of a view in order: which rows, and arrays [R, *row_shape] by name."""
        step = max(1, CHUNK_BYTES // self.row_bytes)
        for block in range(self.teacher.num_blocks):
            rows = self.teacher.rows(block)
            stored = self.teacher.answers(view, block, self._stored)
            for start in range(rows.start, rows.stop, step):
                here = slice(start, min(start + step, rows.stop))
                yield here, self._natural(stored, here, rows.start)

    def chunks_of_all_views(self) -> Iterator[tuple[slice, Arrays]]:
        """All rows in order: which rows, and arrays [V, R, *row_shape] by name.

        A block of a view is decoded once where a block of all views fits into ``HELD_BYTES``, else for every chunk.
        """
        step = max(1, HELD_BYTES // (self.num_views * self.row_bytes))
        for block in range(self.teacher.num_blocks):
            rows = self.teacher.rows(block)
            self._held = {}
            for start in range(rows.start, rows.stop, step):
                here = slice(start, min(start + step, rows.stop))
                shape = (self.num_views, here.stop - here.start)
                values: Arrays = {
                    name: np.empty((*shape, *array.row_shape), dtype=array.dtype) for name, array in self.arrays.items()
                }
                for view in range(self.num_views):
                    for name, part in self._natural(self._block(view, block), here, rows.start).items():
                        values[name][view] = part
                yield here, values
        self._held = {}

    def _block(self, view: int, block: int) -> Arrays:
        if (view, block) in self._held:
            return self._held[view, block]
        stored: Arrays = dict(self.teacher.answers(view, block, self._stored))
        if self.num_views * sum(array.nbytes for array in stored.values()) <= HELD_BYTES:
            self._held[view, block] = stored
        return stored

    def _natural_arrays(self) -> dict[str, RowArray]:
        """What is exported of a row."""
        float32, num_classes = RowArray(dtype="float32"), self.encoding.num_classes
        arrays: dict[str, RowArray]
        if self.dense:
            arrays = dict.fromkeys(DENSE, float32)
            arrays["log_prob"] = RowArray(dtype="float32", row_shape=(num_classes,))
            if self.encoding.lossless:
                arrays["logit"] = arrays["log_prob"]  # log_prob + logsumexp would be off by a rounding
        else:
            arrays = dict.fromkeys(TOP_K, float32)
            arrays["index"] = self.encoding.row_arrays()["index"]
            arrays["log_prob"] = RowArray(dtype="float32", row_shape=(self.encoding.top_k,))
            arrays["label_rank"] = RowArray(dtype="int32")
        return arrays | ({"mask": RowArray(dtype="bool")} if "mask" in self.teacher.arrays else {})

    def _natural(self, stored: Arrays, rows: slice, start: int) -> Arrays:
        here = slice(rows.start - start, rows.stop - start)
        arrays = {name: torch.from_numpy(array[here]) for name, array in stored.items() if name != "mask"}
        if self.dense:
            logits = self._decoder.decode(arrays, torch.arange(rows.start, rows.stop))
            found = {"log_prob": torch.log_softmax(logits, -1), "logsumexp": torch.logsumexp(logits, -1)}
            found |= {"logit": logits} if "logit" in self.arrays else {}
        else:
            kept = {name: arrays[name] for name in TOP_K if name in arrays}
            flat = arrays if self.store.positions is None else {name: a.flatten(0, 1) for name, a in arrays.items()}
            log_prob = self.encoding.kept_log_prob(flat)
            found = {**kept, "log_prob": log_prob.view(*kept["index"].shape[:-1], -1)}
        values: Arrays = {name: array.numpy().astype(self.arrays[name].dtype) for name, array in found.items()}
        if "mask" in stored:
            values["mask"] = mask = np.asarray(stored["mask"][here], dtype=np.bool_)
            for name, value in values.items():
                if name != "mask":
                    value[~mask] = np.nan if value.dtype.kind == "f" else 0
        if self._on_rows is not None:
            self._on_rows(rows.stop - rows.start)
        return values
