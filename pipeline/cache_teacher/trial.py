"""What a pass will cost and keep, from a few batches and without writing anything.

Shapes: N examples, V views.
"""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from logitbank.pipeline.cache_teacher.asked import Budget
from logitbank.pipeline.cache_teacher.embedding import Embedding
from logitbank.pipeline.cache_teacher.sample import Sample
from logitbank.pipeline.cache_teacher.sound import ask_first
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.encoding import Encoding

TIMED_ROWS = 1024
_WARM_ROWS = 64


def try_out(
    teacher: AnsweringTeacher,
    encoding: Encoding | Budget,
    *,
    predictor_rows: int,
    embedding_dim: int = 0,
    temperatures: Sequence[float],
) -> dict[str, Any]:
    """Answers some rows and estimates the whole pass.

    Args:
        teacher: Who answers.
        encoding: What is kept of a row, or a budget that decides it.
        predictor_rows: As for the pass, but at most ``TIMED_ROWS`` of them are answered here.
        embedding_dim: How many principal components are kept of a teacher's features, if it gives some; 0: all.
        temperatures: Where fidelity is measured.

    Returns:
        ``rows_per_second`` and ``seconds`` of this process, ``bytes`` of the store (an estimate),
        ``embedding_bytes_per_row``, those of features before compression, ``encoding``, ``fidelity`` and ``num_rows``.
    """
    teacher = ask_first(teacher)
    predictor_rows = teacher.fitting_rows(encoding, predictor_rows)
    num_rows, length = len(teacher.split) * teacher.views.num_views, teacher.split.positions or 1
    timed = max(1, TIMED_ROWS // length)
    chosen = np.sort(np.random.default_rng(0).permutation(len(teacher.split))[:timed])
    teacher(chosen[:_WARM_ROWS], 0)
    started = time.perf_counter()
    teacher(chosen, 0)
    rows_per_second = len(chosen) / (time.perf_counter() - started)
    sample = Sample(teacher, min(predictor_rows, TIMED_ROWS))
    if isinstance(encoding, Budget):
        encoding = sample.choose(encoding.kl, encoding.temperatures)
    predictor = sample.fit_predictor(encoding)
    features = sample.teacher.features
    embedding = None if features is None else Embedding.of(features, sample, embedding_dim)
    kept = 0 if embedding is None else 2 * embedding.size
    fitted = min(predictor_rows // length, len(teacher.split)) if predictor is not None else 0
    answered_twice = len(sample.measured.rows) + fitted
    return {
        "num_rows": num_rows,
        "rows_per_second": rows_per_second,
        "seconds": (num_rows + answered_twice) / rows_per_second,
        "bytes": round(num_rows * length * (encoding.row_bytes + kept)),
        "embedding_bytes_per_row": kept,
        "encoding": encoding.attributes(),
        "fidelity": sample.measure(encoding, predictor, temperatures),
    }
