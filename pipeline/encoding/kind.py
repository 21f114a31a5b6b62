"""What every kind of encoding answers.

Shape suffixes: B rows, C classes, K kept classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitbank.pipeline.encoding.packing import smallest_uint
from logitbank.pipeline.encoding.settings import LabelledLogits, Settings, Tail
from logitbank.pipeline.encoding.sparse import SparseLogits
from logitbank.stores import RowArray


class Code:
    """How the log-probabilities of the classes that a row holds become bytes."""

    array: str
    """Where they are; [B, K] or [B, C]."""
    dtype: str
    zero: float
    """The number that stands there for a probability of zero."""
    lossless = False


class Kind(ABC):
    """One way to store a row of logits; `kinds.KINDS` is the table of all.

    Attributes:
        options: The settings that it has besides the number of classes.
        has_tail: Whether classes are left out of what is stored one by one, so that a tail rule matters.
        every_class: Whether a row says something of every class; else some are predicted alone.
    """

    options: tuple[str, ...]
    has_tail: bool
    every_class: bool

    @property
    @abstractmethod
    def codes(self) -> Mapping[int, Code]:
        """Bits of a log-probability -> how it is coded."""

    @abstractmethod
    def check(self, settings: Settings) -> None:
        """Raises ValueError when no row could be stored so."""

    @abstractmethod
    def row_arrays(self, settings: Settings) -> dict[str, RowArray]:
        """The arrays a row is stored in: name -> dtype and shape of one row."""

    @abstractmethod
    def encode(self, rows: LabelledLogits, settings: Settings, tail: Tail) -> dict[str, Tensor]:
        """Those arrays, each [B, *row_shape]; others may be among them."""

    def tail_shift(
        self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail
    ) -> Tensor | None:
        """What raises the predicted tail of a row to its mass, float32 [B]; None where there is nothing predicted."""
        return None

    @abstractmethod
    def decode(self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail) -> Tensor:
        """Raw logits float32 [B, C], -inf for a masked class; sooner where the arrays have their `tail_shift`."""

    def sparse(
        self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail
    ) -> SparseLogits | None:
        """The same, finite, without a block [B, C]; None where rows have no such form."""
        return None

    @abstractmethod
    def kept_log_prob(self, arrays: Mapping[str, Tensor], settings: Settings) -> Tensor:
        """Log-probabilities of the classes held one by one, as exactly as they are stored, float [B, K] or [B, C]."""

    @abstractmethod
    def kept(self, arrays: Mapping[str, Tensor], settings: Settings) -> Tensor:
        """Which classes a row holds one by one, the label's aside, bool [B, C]."""

    @abstractmethod
    def best_array(self, settings: Settings) -> str:
        """The array that tells a row's best class."""

    @abstractmethod
    def best_class(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """The best class of each row, from that array."""

    @abstractmethod
    def row_bytes(self, settings: Settings) -> float:
        """Bytes of a row after compression, without keys; an estimate that orders encodings."""

    @abstractmethod
    def ladder(self, num_classes: int) -> list[Settings]:
        """What a fidelity budget may choose among."""

    @abstractmethod
    def describe(self, settings: Settings) -> str:
        """In words."""


def label_arrays(num_classes: int) -> dict[str, RowArray]:
    """What every row says of its label."""
    return {
        "label_log_prob": RowArray(dtype="float16"),
        "label_rank": RowArray(dtype=smallest_uint(num_classes)),
    }
