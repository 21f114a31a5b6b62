"""The table of encodings: which arrays a row is stored in.

Shape suffixes: B rows, C classes, K kept classes.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from logitbank.pipeline.encoding.packing import smallest_uint
from logitbank.stores import RowArray

KINDS = ("topk", "topk+tail", "dense")
_BITS = {"topk": (8, 16), "topk+tail": (8, 16), "dense": (8, 16, 32)}


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """What is kept of a row of logits.

    Args:
        kind: "topk", "topk+tail" or "dense".
        num_classes: C.
        top_k: K, the classes kept exactly (0 for dense).
        tail_bits: Bits per class that the tail's code takes on average, 0.1 to 4 for "topk+tail", else 0.
            They go where they remove most error (see `tail_basis`), so 1 does more than 2 bits for every
            class would.
        bits: Bits of a log-probability: 8 (default) or 16, for dense also 32, which is lossless.
    """

    kind: str
    num_classes: int
    top_k: int = 0
    tail_bits: float = 0
    bits: int = 8

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"expected an encoding among {', '.join(KINDS)}, found {self.kind!r}")
        if not 2 <= self.num_classes <= 2**31:
            raise ValueError(f"expected 2 to 2^31 classes, found {self.num_classes}")
        if self.bits not in _BITS[self.kind]:
            raise ValueError(f"expected bits among {_BITS[self.kind]} for {self.kind}, found {self.bits}")
        if self.kind == "dense":
            if self.top_k or self.tail_bits:
                raise ValueError("dense stores every class; leave out top_k and tail_bits")
            return
        if not 1 <= self.top_k <= self.num_classes:
            raise ValueError(f"expected top_k from 1 to {self.num_classes} (the classes), found {self.top_k}")
        if self.kind == "topk" and self.tail_bits:
            raise ValueError(f"expected no tail_bits for topk, found {self.tail_bits}; use topk+tail")
        if self.kind == "topk+tail" and not 0.1 <= self.tail_bits <= 4:
            raise ValueError(f"expected tail_bits from 0.1 to 4 for topk+tail, found {self.tail_bits}")

    @property
    def tail_bytes(self) -> int:
        """Bytes of a row's tail code."""
        return math.ceil(self.num_classes * self.tail_bits / 8)

    def attributes(self) -> dict[str, Any]:
        """JSON-able description; `from_attributes` is its inverse."""
        return asdict(self)

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any]) -> "Encoding":
        """The encoding that `attributes` describes; ValueError when it holds what is not known here."""
        known = set(cls.__dataclass_fields__)
        if unknown := set(attributes) - known:
            raise ValueError(
                f"expected an encoding with {sorted(known)}, found also {sorted(unknown)}; update the reader"
            )
        numbers = {name: attributes.get(name, 0) for name in ("num_classes", "top_k", "tail_bits", "bits")}
        if wrong := [name for name, number in numbers.items() if type(number) not in (int, float)]:
            raise ValueError(f"expected numbers in the encoding, found {wrong[0]} {attributes[wrong[0]]!r}")
        return cls(**{"kind": "", "num_classes": 0, **attributes})

    def row_arrays(self) -> dict[str, RowArray]:
        """The arrays a row is stored in: name -> dtype and shape of one row."""
        per_row = {
            "label_log_prob": RowArray(dtype="float16"),
            "label_rank": RowArray(dtype=smallest_uint(self.num_classes)),
        }
        if self.kind == "dense" and self.bits == 32:
            return {"logit": RowArray(dtype="float32", row_shape=(self.num_classes,)), **per_row}
        per_row["logsumexp"] = RowArray(dtype="float32")
        if self.kind == "dense" and self.bits == 16:
            return {"log_prob": RowArray(dtype="float16", row_shape=(self.num_classes,)), **per_row}
        if self.kind == "dense":
            per_row["log_prob_scale"] = RowArray(dtype="float32")
            per_row["log_prob_floor"] = RowArray(dtype="float32")
            return {"log_prob_code": RowArray(dtype="uint8", row_shape=(self.num_classes,)), **per_row}
        per_row["log_tail_mass"] = RowArray(dtype="float16")
        head = {"index": RowArray(dtype=smallest_uint(self.num_classes - 1), row_shape=(self.top_k,))}
        if self.bits == 16:
            head["log_prob"] = RowArray(dtype="float16", row_shape=(self.top_k,))
        else:
            head["log_prob_code"] = RowArray(dtype="uint8", row_shape=(self.top_k,))
        if self.tail_bytes:
            per_row["tail_code"] = RowArray(dtype="uint8", row_shape=(self.tail_bytes,))
        return {**head, **per_row}
