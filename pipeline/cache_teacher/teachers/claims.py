"""What weights say of themselves: their network, their input scaling, and which examples they were trained on.

Shapes: N examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import Split
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.models.weights import KEY_SPACE, KEYS_COMPLETE, Keys, read_metadata, read_training_keys

Seen = npt.NDArray[np.int8]
SEEN, UNSEEN, UNKNOWN = 1, 0, -1
_MAX_TEXT, _MAX_SEED = 200, 2**32


@dataclass(frozen=True, kw_only=True)
class FoldClaim:
    """A fold teacher's: how rows were assigned, and the fold that it was trained without."""

    plan: FoldPlan
    left_out: int
    digest: str


@dataclass(frozen=True, kw_only=True)
class Claims:
    """The claims of one file of weights; None where it is silent.

    Attributes:
        architecture: Of the network.
        preprocessing: Its input scaling.
        dataset: What it was trained on, for people.
        fingerprint: Of that dataset.
        folds: Of a fold teacher.
        training_keys: Content keys of the examples it was trained on, uint64, sorted.
        keys_complete: It has seen no others.
        key_space: What these keys are hashes of; an example of data with others cannot be looked up.
        all_labelled: It was trained on every labelled example of the dataset (but for its fold).
    """

    architecture: str | None = None
    preprocessing: Preprocessing | None = None
    dataset: str = "data without a name"
    fingerprint: str | None = None
    folds: FoldClaim | None = None
    training_keys: Keys | None = None
    keys_complete: bool = False
    key_space: str | None = None
    all_labelled: bool = False

    @classmethod
    def read(cls, path: Path) -> "Claims":
        """Those of a file.

        Raises:
            ValueError: Metadata of another form than ``train-teacher`` and ``train-student`` write.
        """
        said, training_keys = read_metadata(path), read_training_keys(path)
        try:
            return cls(
                architecture=_text(said, "architecture"),
                preprocessing=Preprocessing.from_attributes(said["preprocessing"]) if "preprocessing" in said else None,
                dataset=_text(said, "dataset") or cls.dataset,
                fingerprint=_text(said, "data_fingerprint"),
                folds=_fold_claim(said.get("folds")),
                training_keys=training_keys,
                keys_complete=said.get(KEYS_COMPLETE) is True,
                key_space=_text(said, KEY_SPACE),
                all_labelled="loss" not in said,  # a student may have left out validation rows
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}; fetch or train it again") from error

    def seen(self, split: Split) -> Seen:
        """Which examples the weights were trained on, int8 [N]: SEEN, UNSEEN or UNKNOWN. Equal examples count alike."""
        if self.training_keys is not None:
            others = UNSEEN if self.keys_complete and self.key_space == split.key_space else UNKNOWN
            return np.where(np.isin(split.keys, self.training_keys), SEEN, others).astype(np.int8)
        if self.fingerprint == split.fingerprint and self.folds is None and self.all_labelled:
            return trained_on(split)
        return nothing_known(split)


def trained_on(split: Split) -> Seen:
    """What a teacher that was trained on this very split has seen: the examples with a label that can be read."""
    return np.isin(split.keys, split.keys[split.usable]).astype(np.int8)


def nothing_known(split: Split) -> Seen:
    """All examples UNKNOWN, int8 [N]."""
    return np.full(len(split), UNKNOWN, np.int8)


def nothing_seen(split: Split) -> Seen:
    """All examples UNSEEN, int8 [N]."""
    return np.full(len(split), UNSEEN, np.int8)


def _fold_claim(said: object) -> FoldClaim | None:
    if not said:
        return None
    if not isinstance(said, Mapping):
        raise ValueError(f"its folds are {str(said)[:80]!r}; expected an object")
    for name in ("num_folds", "seed", "left_out"):
        if type(said.get(name)) is not int or not 0 <= said[name] < _MAX_SEED:
            raise ValueError(f"{name} of its folds is {str(said.get(name))[:80]!r}; expected a whole number")
    strategy, digest = _text(said, "strategy"), _text(said, "digest")
    if strategy is None or digest is None:
        raise ValueError("its folds lack a strategy or a digest")
    plan = FoldPlan(num_folds=said["num_folds"], strategy=strategy, seed=said["seed"])
    return FoldClaim(plan=plan, left_out=said["left_out"], digest=digest)


def _text(said: Mapping[str, Any], name: str) -> str | None:
    value = said.get(name)
    if value is not None and not (isinstance(value, str) and value.isprintable() and len(value) <= _MAX_TEXT):
        raise ValueError(f"its {name} is {str(value)[:80]!r}; expected a short text")
    return value
