"""The few rows that decide how a teacher's answers are encoded, and how faithful that is.

Shapes: C classes, N answers of the sample. Where examples are answered at positions, numbers of rows are of answers.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.cache_teacher.fidelity import PredictorFit, choose_encoding, measure_fidelity
from logitbank.pipeline.cache_teacher.picked import pick, shown_rows
from logitbank.pipeline.cache_teacher.sound import ZERO_FLOOR, SoundTeacher, floored, is_zero
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher, gathered, held_rows
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.settings import DENSE_CLASSES
from logitbank.pipeline.encoding.tail_predictor import TailPredictor

FIDELITY_ROWS = 1000  # at most; few rows of a small dataset, since answering them costs a second time
_CHUNK_ROWS = 4096


class Sample:
    """Random rows of the first view: some measure the encoding, the others fit it, none does both.

    Which rows depends on the store's seed alone, so every process of a pass has the same ones.

    Args:
        teacher: Who answers.
        predictor_rows: Rows that fit the tail predictor.
    """

    def __init__(self, teacher: SoundTeacher, predictor_rows: int) -> None:
        self.teacher = teacher
        split, seed = teacher.split, teacher.views.seed
        order = shown_rows(split, np.random.default_rng(seed).permutation(len(split)))
        num_answers = len(order) * (split.positions or 1)
        num_measured = min(FIDELITY_ROWS, max(256, num_answers // 50), max(1, num_answers // 4))
        self.measured, rest = pick(split, order, num_measured, seed, most=max(1, len(order) // 4))
        self.fitted, _ = pick(split, rest, predictor_rows, seed)

    @cached_property
    def _measured_raw_NC(self) -> Tensor:
        return self.teacher.raw_of(self.measured, 0)

    @cached_property
    def measured_logits_NC(self) -> Tensor:
        return floored(self._measured_raw_NC)

    def choose(self, kl: float, temperatures: Sequence[float]) -> Encoding:
        """The smallest encoding whose KL T^2 stays within ``kl`` nats at every temperature."""
        some = self.fitted.first(FIDELITY_ROWS)
        held_out_N = torch.arange(len(self.measured) + len(some)) < len(self.measured)
        logits_NC = torch.cat([self.measured_logits_NC, floored(self.teacher.raw_of(some, 0))])
        labels_N = torch.cat([self.measured.labels, some.labels])
        return choose_encoding(logits_NC, labels_N, kl, temperatures, held_out_N=held_out_N.to(logits_NC.device))

    def fit_predictor(self, encoding: Encoding) -> TailPredictor | None:
        """The tail predictor of the rows that do not measure."""
        if not encoding.has_tail or not len(self.fitted):
            return None
        folds = self.teacher.folds
        fit = PredictorFit(encoding, num_folds=1 if folds is None else int(folds.max()) + 1)
        length = self.teacher.split.positions or 1
        step = _CHUNK_ROWS if encoding.num_classes <= DENSE_CLASSES else held_rows(encoding.num_classes)
        step, chunk = max(1, step // length), max(1, _CHUNK_ROWS // length)
        held_out = self.fitted.left_out(folds)
        for start in range(0, len(self.fitted.rows), chunk):
            part, part_Q = self.fitted.only(np.arange(start, min(start + chunk, len(self.fitted.rows))))
            more = False
            for places, logits_BC in gathered(self.teacher.batches(part.rows, 0), len(part.rows), step):
                own, own_BC = part.of_batch(places, logits_BC)
                held_out_B = None if held_out is None else torch.from_numpy(held_out[part_Q[own]])
                folds_Q = part.folds(folds)
                fit.update(own_BC, None if folds_Q is None else folds_Q[own], held_out_B, more=more)
                more = True
        return fit.fit()

    def measure(
        self, encoding: Encoding, predictor: TailPredictor | None, temperatures: Sequence[float]
    ) -> dict[str, Any]:
        """The encoding's fidelity on rows that took no part in any fit; that of a uniform tail as well.

        Besides the keys of `measure_fidelity`: ``zero_share``, how many of the teacher's probabilities are zero, and
        ``zero_floor``, what they were raised to; ``uniform_<T>`` where the tail is predicted.
        """
        measured = partial(
            measure_fidelity,
            self.measured_logits_NC,
            self.measured.labels,
            encoding,
            predictor,
            temperatures=temperatures,
            folds_N=self.measured.folds(self.teacher.folds),
        )
        zero_share = int(is_zero(self._measured_raw_NC).sum()) / self._measured_raw_NC.numel()
        found = {**measured(), "zero_share": zero_share, "zero_floor": ZERO_FLOOR}
        if predictor is not None:
            plain = measured(tail="uniform")
            found |= {f"uniform_{temperature:g}": plain[f"{temperature:g}"] for temperature in temperatures}
        return found


def zero_warnings(fidelity: Mapping[str, Any]) -> list[str]:
    """A line about probabilities of zero that were raised to the floor."""
    share, floor = fidelity.get("zero_share"), fidelity.get("zero_floor")  # an older store has none
    if not share or floor is None:
        return []
    return [
        f"{share:.1%} of the teacher's probabilities are zero (a logit of -inf, or far below the best): they are kept"
        f" as {floor:g}, or as the row's least other probability where that is lower"
    ]


def folds_of(teacher: AnsweringTeacher, rows: npt.NDArray[np.int64]) -> Tensor | None:
    """The fold of each row, int64 [len(rows)], or None without cross-fitting."""
    return None if teacher.folds is None else torch.from_numpy(teacher.folds[rows].astype(np.int64))
