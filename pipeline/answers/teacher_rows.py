"""Everything that decoding one teacher's rows takes, beside the rows: both stages and all that looks decode with it.

Shapes: B rows, C classes, N examples. Where an example is answered at L positions, a row has L answers: logits are
[B, L, C], labels [N, L].
"""

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.encoding import TAIL_RULES, Encoding, decode, finite, sparse, with_tail_shift
from logitbank.pipeline.encoding.settings import DENSE_CLASSES
from logitbank.pipeline.encoding.sparse import SparseLogits
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.spelling import unknown
from logitbank.stores import Store, StoreError, Teacher
from logitbank.stores.read.gather import RowReader

DECODED_BYTES = 2**23
"""Of logits that are decoded together where rows are gone through one after the other."""

Arrays = Mapping[str, npt.NDArray[np.generic]]


class TeacherRows:
    """One teacher's encoding, tail predictor, labels, folds and mask.

    Args:
        store: A finished store.
        teacher: One of its teachers.
        tail: Tail rule for classes that are not stored: predicted, bucket, uniform or renormalise.
        device: Where logits are wanted.
        features: Rows have the teacher's features, too, where it has some.
    """

    def __init__(
        self,
        store: Store,
        teacher: Teacher,
        *,
        tail: str = "predicted",
        device: torch.device | None = None,
        features: bool = False,
    ) -> None:
        if tail not in TAIL_RULES:
            raise ValueError(unknown("tail rule", tail, TAIL_RULES))
        self.teacher, self.tail, self.device = teacher, tail, device or torch.device("cpu")
        self.encoding = encoding_of(teacher)
        self.labels_N = torch.from_numpy(np.asarray(store.labels, dtype=np.int64))
        folds = teacher.row_folds
        self.folds_N = None if folds is None else torch.from_numpy(np.asarray(folds, dtype=np.int64))
        predicts = tail in ("predicted", "bucket")
        self._predictor = TailPredictor.from_constants(teacher.constants()) if predicts else None
        self._predictor_here = None if self._predictor is None else self._predictor.to(self.device)
        idle = {"mask"} | (set() if features else {"embedding"}) | (set() if predicts else {"tail_shift"})
        self.names = [name for name in teacher.arrays if name not in idle]
        """Arrays that a row is decoded from, and its features."""

    def decode(
        self,
        arrays: Mapping[str, Tensor],
        rows_B: Tensor,
        *,
        positions_B: Tensor | None = None,
        student_BC: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """Dense logits, float32 [B, C], or [B, L, C]; -inf for a masked class.

        Args:
            arrays: Of the rows, as stored or as ``prepared`` gave them.
            rows_B: Their numbers, int64 [B] on the CPU.
            positions_B: Which position of each row the arrays have, int64 [B] on the CPU; None: all of them.
            student_BC: Student logits, for the ``bucket`` rule only.
            temperature: Where the mass of that rule's tail is exact.
        """
        return decode(
            *self._here(arrays, rows_B, positions_B),
            self.encoding,
            predictor=self._predictor_here,
            folds_B=self._folds(rows_B),
            tail=self.tail,
            student_BC=None if student_BC is None else student_BC.to(self.device),
            temperature=temperature,
        )

    def logits(
        self,
        arrays: Mapping[str, Tensor],
        rows_B: Tensor,
        *,
        positions_B: Tensor | None = None,
        student_BC: Tensor | None = None,
        temperature: float = 1.0,
    ) -> Tensor:
        """As ``decode``, with masked classes far below the others instead of at -inf."""
        return finite(
            self.decode(arrays, rows_B, positions_B=positions_B, student_BC=student_BC, temperature=temperature)
        )

    @property
    def sparse_rows(self) -> bool:
        """Whether a loss can do without a block of the logits of all classes: of many classes, where it saves most."""
        of_head = self.encoding.has_tail and self.encoding.num_classes > DENSE_CLASSES and self.tail != "bucket"
        return of_head and (self._predictor is None or self._predictor.factor_FDC is not None)

    def sparse(self, arrays: Mapping[str, Tensor], rows_B: Tensor, *, positions_B: Tensor | None) -> SparseLogits:
        """As ``logits``, without a block [B, C]: of answers [B], where there are ``sparse_rows``."""
        found = sparse(
            *self._here(arrays, rows_B, positions_B),
            self.encoding,
            predictor=self._predictor_here,
            folds_B=self._folds(rows_B),
            tail=self.tail,
        )
        assert found is not None
        return found

    def _here(
        self, arrays: Mapping[str, Tensor], rows_B: Tensor, positions_B: Tensor | None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Arrays and labels on the device."""
        labels_B = self.labels_N[rows_B] if positions_B is None else self.labels_N[rows_B, positions_B]
        return {name: array.to(self.device) for name, array in arrays.items()}, labels_B.to(self.device)

    def _folds(self, rows_B: Tensor) -> Tensor | None:
        return None if self.folds_N is None else self.folds_N[rows_B].to(self.device)

    def decoded(self, view: int, rows_N: npt.NDArray[np.int64]) -> Iterator[tuple[slice, Tensor]]:
        """Some rows of a view, in the order given, a batch at a time: what is held does not grow with their number.

        Args:
            view: Which view.
            rows_N: Row numbers.

        Yields:
            Which of ``rows_N``, and their logits float32 [B, C], or [B, L, C]; -inf for a masked class. Batches depend
            on the numbers of classes and positions alone.
        """
        reader = RowReader(self.teacher, self.names)
        step = max(1, max(16, DECODED_BYTES // (4 * self.encoding.num_classes)) // (self.teacher.positions or 1))
        group = max(step, reader.group_rows // step * step)
        for start in range(0, len(rows_N), group):
            rows_G = rows_N[start : start + group]
            arrays = {name: torch.from_numpy(array) for name, array in reader.answers(view, rows_G).items()}
            for first in range(0, len(rows_G), step):
                here = slice(first, min(first + step, len(rows_G)))
                few = {name: array[here] for name, array in arrays.items()}
                yield slice(start + here.start, start + here.stop), self.decode(few, torch.from_numpy(rows_G[here]))

    def prepared(self, arrays: Mapping[str, npt.NDArray[np.generic]], rows: slice) -> Arrays:
        """Arrays of some rows, with the shift of their tails where the store does not hold it."""
        if self._predictor is None or "tail_shift" in arrays:
            return arrays
        shifted = with_tail_shift(
            {name: torch.from_numpy(array) for name, array in arrays.items()},
            self.labels_N[rows],
            self.encoding,
            predictor=self._predictor,
            folds_B=None if self.folds_N is None else self.folds_N[rows],
            tail=self.tail,
        )
        return {name: array.numpy() for name, array in shifted.items()}

    def answered(self, view: int) -> npt.NDArray[np.bool_]:
        """What the teacher answers in a view: which rows, bool [N], or which of their positions, bool [N, L]."""
        if "mask" not in self.teacher.arrays:
            return np.ones(tuple(self.labels_N.shape), np.bool_)
        return self.teacher.slab(view, ["mask"])["mask"].astype(np.bool_)

    def served(self, view: int) -> npt.NDArray[np.bool_]:
        """Rows that the teacher answers in a view, at some position, bool [N]."""
        return np.asarray(self.answered(view).reshape(self.teacher.num_examples, -1).any(axis=1))


def encoding_of(teacher: Teacher) -> Encoding:
    """What a teacher's rows are stored in.

    Raises:
        ValueError: Not an encoding that is known here, or the teacher lacks arrays that it takes.
    """
    encoding = Encoding.from_attributes(teacher.encoding)
    if missing := sorted(set(encoding.row_arrays()) - set(teacher.row_arrays)):
        raise StoreError(
            f"teacher {teacher.name!r} has no array {missing[0]}, which its encoding ({encoding.describe()}) takes; do"
            " not use this store"
        )
    return encoding
