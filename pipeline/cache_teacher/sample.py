"""The few rows that decide how a teacher's answers are encoded, and how faithful that is.

Shapes: C classes, N rows of the sample.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.cache_teacher.answers import Answers
from pipeline.cache_teacher.fidelity import PredictorFit, choose_encoding, measure_fidelity
from pipeline.encoding import Encoding
from pipeline.tail_predictor import TailPredictor

FIDELITY_ROWS = 1000  # at most; few rows of a small dataset, since answering them costs a second time
_CHUNK_ROWS = 4096


class Sample:
    """Random rows of the first view: some measure the encoding, the others fit it, none does both.

    Which rows depends on the store's seed alone, so every process of a pass has the same ones.

    Args:
        answers: Who answers.
        predictor_rows: Rows that fit the tail predictor.
    """

    def __init__(self, answers: Answers, predictor_rows: int) -> None:
        self.answers = answers
        order = np.random.default_rng(answers.views.seed).permutation(len(answers.split))
        if answers.split.readable is not None:
            order = order[answers.split.readable[order]]
        num_measured = min(FIDELITY_ROWS, max(256, len(order) // 50), max(1, len(order) // 4))
        self.measured = np.sort(order[:num_measured])
        self.fitted = np.sort(order[num_measured : num_measured + predictor_rows])

    @cached_property
    def measured_logits_NC(self) -> Tensor:
        return self.answers(self.measured, 0)

    def choose(self, kl: float, temperatures: Sequence[float]) -> Encoding:
        """The smallest encoding whose KL T^2 stays within ``kl`` nats at every temperature."""
        rows = np.concatenate([self.measured, self.fitted[:FIDELITY_ROWS]])
        held_out_N = torch.arange(len(rows)) < len(self.measured)
        logits_NC = torch.cat([self.measured_logits_NC, self.answers(rows[len(self.measured) :], 0)])
        return choose_encoding(
            logits_NC, self._labels(rows), kl, temperatures, held_out_N=held_out_N.to(logits_NC.device)
        )

    def fit_predictor(self, encoding: Encoding) -> TailPredictor | None:
        """The tail predictor of the rows that do not measure."""
        if encoding.kind == "dense" or not len(self.fitted):
            return None
        folds = self.answers.folds
        fit = PredictorFit(encoding, num_folds=1 if folds is None else int(folds.max()) + 1)
        for start in range(0, len(self.fitted), _CHUNK_ROWS):
            rows = self.fitted[start : start + _CHUNK_ROWS]
            fit.update(self.answers(rows, 0), folds_of(self.answers, rows))
        return fit.fit()

    def measure(
        self, encoding: Encoding, predictor: TailPredictor | None, temperatures: Sequence[float]
    ) -> dict[str, Any]:
        """The encoding's fidelity on rows that took no part in any fit."""
        return measure_fidelity(
            self.measured_logits_NC,
            self._labels(self.measured),
            encoding,
            predictor,
            temperatures=temperatures,
            folds_N=folds_of(self.answers, self.measured),
        )

    def _labels(self, rows: npt.NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(self.answers.split.labels[rows])


def folds_of(answers: Answers, rows: npt.NDArray[np.int64]) -> Tensor | None:
    """The fold of each row, int64 [len(rows)], or None without cross-fitting."""
    return None if answers.folds is None else torch.from_numpy(answers.folds[rows].astype(np.int64))
