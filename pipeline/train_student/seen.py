"""Which examples a student has been trained on, by content key."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.models.parts import split_selection
from logitbank.pipeline.models.weights import KEY_SPACE, KEYS_COMPLETE, read_metadata, read_training_keys
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.user_code import is_factory


def student_keys(run: Run, split: Split, rows: npt.NDArray[np.integer] | None) -> tuple[npt.NDArray[np.uint64], bool]:
    """Content keys of what the student was trained on (rows None: all), as far as is known, and whether that is all."""
    keys, complete = split.keys if rows is None else split.keys[rows], not is_factory(run.student)
    if run.init:
        file = Path(split_selection(run.init)[0])
        before, said = read_training_keys(file), read_metadata(file)
        keys = keys if before is None else np.union1d(keys, before)
        known = before is not None and said.get(KEYS_COMPLETE) is True and said.get(KEY_SPACE) == split.key_space
        complete = complete and known
    return keys, complete
