"""The table of encodings.

Shape suffixes: B rows, C classes, K kept classes.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from logitbank.pipeline.encoding.dense import Dense
from logitbank.pipeline.encoding.kind import Code, Kind
from logitbank.pipeline.encoding.settings import Settings
from logitbank.pipeline.encoding.topk import TopK
from logitbank.pipeline.encoding.topk_tail import TopKTail
from logitbank.stores import RowArray

KINDS: dict[str, Kind] = {"topk": TopK(), "topk+tail": TopKTail(), "dense": Dense()}


@dataclass(frozen=True, kw_only=True)
class Encoding(Settings):
    """What is kept of a row of logits: a kind, by its name in `KINDS`, and its numbers.

    Args:
        kind: "topk", "topk+tail" or "dense".
        num_classes: C.
        top_k: K, the classes kept exactly (0 for dense).
        tail_bits: Bits per class that the tail's code takes on average, up to 4 for "topk+tail", else 0.
        bits: Bits of a log-probability: 8 (default) or 16, for dense also 32, which is lossless.
    """

    kind: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected an encoding among {', '.join(KINDS)}, found {self.kind!r}")
        if not 2 <= self.num_classes <= 2**31:
            raise ValueError(f"expected 2 to 2^31 classes, found {self.num_classes}")
        if self.bits not in self.of_kind.codes:
            widths = tuple(self.of_kind.codes)
            raise ValueError(f"expected bits among {widths} for {self.kind}, found {self.bits}")
        self.of_kind.check(self)

    @property
    def of_kind(self) -> Kind:
        """What answers all that differs between kinds."""
        return KINDS[self.kind]

    def attributes(self) -> dict[str, Any]:
        """JSON-able description; `from_attributes` is its inverse."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> "Encoding":
        """The encoding that `attributes` describes; ValueError when it holds what is not known here."""
        known = {field.name for field in fields(cls)}
        if unknown := set(attributes) - known:
            raise ValueError(
                f"expected an encoding with {sorted(known)}, found also {sorted(unknown)}; update the reader"
            )
        numbers = {name: attributes.get(name, 0) for name in known - {"kind"}}
        if wrong := sorted(name for name, number in numbers.items() if type(number) not in (int, float)):
            raise ValueError(f"expected numbers in the encoding, found {wrong[0]} {attributes[wrong[0]]!r}")
        return cls(**{"kind": "", "num_classes": 0, **attributes})

    @property
    def has_tail(self) -> bool:
        """Whether classes are left out of what is stored one by one, so that a tail rule matters."""
        return self.of_kind.has_tail

    @property
    def every_class(self) -> bool:
        """Whether a row says something of every class."""
        return self.of_kind.every_class

    @property
    def lossless(self) -> bool:
        """Whether the logits come back bit for bit."""
        return self.code.lossless

    @property
    def row_bytes(self) -> float:
        """Bytes of a row after compression, without keys; an estimate that orders encodings."""
        return self.of_kind.row_bytes(self)

    @property
    def code(self) -> Code:
        """How the log-probabilities of the classes that a row holds become bytes."""
        return self.of_kind.codes[self.bits]

    @property
    def best_array(self) -> str:
        """The array that tells a row's best class."""
        return self.of_kind.best_array(self)

    def best_class(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        """The best class of each row, int64 [B], from that array."""
        return self.of_kind.best_class(values)

    def kept(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Which classes a row holds one by one, the label's aside, bool [B, C]."""
        return self.of_kind.kept(arrays, self)

    def kept_log_prob(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities of those classes, as exactly as they are stored, float32 [B, K] or [B, C]."""
        return self.of_kind.kept_log_prob(arrays, self)

    def row_arrays(self, *, shifted: bool = False) -> dict[str, RowArray]:
        """The arrays a row is stored in: name -> dtype and shape of one row; ``shifted``: with its `tail_shift`."""
        return {**self.of_kind.row_arrays(self), **({"tail_shift": RowArray(dtype="float32")} if shifted else {})}

    def describe(self) -> str:
        """In words."""
        return self.of_kind.describe(self)


def ladder(num_classes: int) -> list[Encoding]:
    """What a fidelity budget chooses among: of every kind some, as far as C allows; the smallest first."""
    rungs = [
        Encoding(kind=name, **asdict(settings)) for name, kind in KINDS.items() for settings in kind.ladder(num_classes)
    ]
    return sorted(rungs, key=lambda encoding: encoding.row_bytes)
