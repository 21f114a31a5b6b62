"""The rows of a cell, encoded while they are answered: what is held follows the batch, not the block.

Rows are encoded in groups whose size depends on the number of classes alone, so that a store's bytes do not depend on
how a teacher forms its batches beyond what its own rounding does.

Shapes: B rows of a group, N rows of a cell, C classes; of examples with L positions [B, L] and [N, L].
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.embedding import Embedding
from logitbank.pipeline.cache_teacher.sample import folds_of
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher, Batch, gathered, held_rows
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.tail_predictor import TailPredictor

_WAITING = 2  # groups that are answered and not yet encoded


class EncodedRows:
    """Answers a teacher's rows of a view, and encodes some in another thread while it answers the next.

    Args:
        teacher: Who answers.
        encoding: What is kept of a row.
        predictor: The tail predictor, where there is one.
        embedding: What is kept of its features, if anything.
        rows: Row numbers, int64 [N].
        view: Which view.
        thread: Encodes, one group after another.
        on_rows: Hears of each batch that is answered how many rows it had.
        shifted: The store keeps the shift of a row's predicted tail.
    """

    def __init__(
        self,
        teacher: AnsweringTeacher,
        encoding: Encoding,
        predictor: TailPredictor | None,
        embedding: Embedding | None,
        rows: npt.NDArray[np.int64],
        view: int,
        thread: Executor,
        on_rows: Callable[[int], None] = lambda _: None,
        *,
        shifted: bool = False,
    ) -> None:
        self._teacher, self._encoding, self._predictor, self._rows = teacher, encoding, predictor, rows
        self._shifted, self._embedding = shifted, embedding
        kept = {} if embedding is None else embedding.row_arrays
        self._arrays = {
            name: np.empty((len(rows), *row.at(teacher.split.positions).row_shape), row.dtype)
            for name, row in {**encoding.row_arrays(shifted=shifted), **kept}.items()
        }
        self._best_N = np.empty((len(rows), *teacher.split.labels.shape[1:]), np.int64)
        self._parts: list[Future[None]] = []
        step = held_rows(teacher.split.num_classes, teacher.split.positions)
        for positions, logits_BC in gathered(self._heard(teacher.batches(rows, view), on_rows), len(rows), step):
            if len(self._parts) >= _WAITING:
                self._parts[-_WAITING].result()
            self._parts.append(thread.submit(self._encode, positions, logits_BC))

    def _heard(self, batches: Iterable[Batch], on_rows: Callable[[int], None]) -> Iterator[Batch]:
        """The batches as they come; their features are kept at once."""
        for batch in batches:
            on_rows(len(batch.positions))
            if self._embedding is not None and batch.features is not None:
                folds_B = folds_of(self._teacher, self._rows[batch.positions])
                self._arrays["embedding"][batch.positions] = self._embedding.rows(batch.features, folds_B)
            yield batch

    def _encode(self, positions: npt.NDArray[np.int64], logits_BC: Tensor) -> None:
        rows = self._rows[positions]
        encoded = encode(
            logits_BC,
            torch.from_numpy(self._teacher.split.labels[rows]),
            self._encoding,
            predictor=self._predictor,
            folds_B=folds_of(self._teacher, rows),
            shifted=self._shifted,
        )
        for name, array in encoded.items():
            self._arrays[name][positions] = array
        self._best_N[positions] = logits_BC.argmax(dim=-1).cpu().numpy()

    def arrays(self) -> tuple[dict[str, npt.NDArray[np.generic]], npt.NDArray[np.int64]]:
        """Arrays [N, *row_shape] by name, and the best class of each answer, [N] or [N, L], once all are encoded."""
        for part in self._parts:
            part.result()
        return self._arrays, self._best_N
