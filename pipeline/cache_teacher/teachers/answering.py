"""What stage one asks of a teacher that answers now; what one has answered is a store's `Teacher`.

Shapes: C classes, N examples.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitbank.pipeline.cache_teacher.teachers.claims import Seen
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import Folds
from logitbank.pipeline.views import Views

Rows = npt.NDArray[np.integer]


class AnsweringTeacher(Protocol):
    """Gives the logits of any rows of any view, and everything a store records about where they come from.

    ``seen`` says of each row whether the teacher that answers it was trained on it, int8 [N]; see ``claims``.
    """

    split: Split
    views: Views
    folds: Folds | None
    fold_attributes: Mapping[str, Any] | None
    groups: npt.NDArray[np.uint64] | None
    seen: Seen

    def identity(self) -> dict[str, Any]:
        """Who answers: at least ``architecture`` and ``weights_sha256``."""
        ...

    def __call__(self, rows: Rows, view: int) -> Tensor:
        """Raw logits float32 [len(rows), C]; the same for the same rows, whoever asks."""
        ...
