"""Every class of a row, in 8, 16 or 32 bits.

Shape suffixes: B rows, C classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.encoding.kind import Code, Kind, label_arrays
from logitbank.pipeline.encoding.packing import (
    affine_decode,
    affine_encode,
    float16_keeping_order,
    round_mantissa,
    to_float16,
)
from logitbank.pipeline.encoding.settings import LabelledLogits, Settings, Tail, check_finite
from logitbank.stores import RowArray


class _DenseCode(ABC, Code):
    numbers: tuple[str, ...]
    """float32 arrays of one number a row beside it."""

    @abstractmethod
    def encode(self, logits_BC: Tensor, logsumexp_B: Tensor, label_logit_B: Tensor) -> dict[str, Tensor]:
        """``array``, and those of ``numbers`` that are its own; the label's logit is -inf where there is none."""

    @abstractmethod
    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Raw logits, float32 [B, C]."""


class _Bytes(_DenseCode):
    array, dtype, zero = "log_prob_code", "uint8", 0.0
    numbers = ("logsumexp", "log_prob_scale", "log_prob_floor")

    def encode(self, logits_BC: Tensor, logsumexp_B: Tensor, label_logit_B: Tensor) -> dict[str, Tensor]:
        code_BC, scale_B, floor_B = affine_encode(logits_BC, logsumexp_B, label_logit_B)
        return {"log_prob_code": code_BC, "log_prob_scale": scale_B, "log_prob_floor": floor_B}

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        log_prob_BC = affine_decode(arrays["log_prob_code"], arrays["log_prob_scale"], arrays["log_prob_floor"])
        return log_prob_BC + arrays["logsumexp"].float()[:, None]


class _Half(_DenseCode):
    array, dtype, zero = "log_prob", "float16", -math.inf
    numbers = ("logsumexp",)

    def encode(self, logits_BC: Tensor, logsumexp_B: Tensor, label_logit_B: Tensor) -> dict[str, Tensor]:
        return {"log_prob": float16_keeping_order(logits_BC, logsumexp_B, label_logit_B)}

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return arrays["log_prob"].float() + arrays["logsumexp"].float()[:, None]


class _Exact(_DenseCode):
    array, dtype, zero = "logit", "float32", -math.inf
    numbers = ()
    lossless = True

    def encode(self, logits_BC: Tensor, logsumexp_B: Tensor, label_logit_B: Tensor) -> dict[str, Tensor]:
        return {"logit": logits_BC}

    def decode(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return arrays["logit"].float()


class Dense(Kind):
    """Every class by itself: nothing is predicted, and no tail rule matters."""

    options = ("bits",)
    has_tail, every_class = False, True
    codes: Mapping[int, _DenseCode] = {8: _Bytes(), 16: _Half(), 32: _Exact()}

    def check(self, settings: Settings) -> None:
        if settings.top_k or settings.tail_bits:
            raise ValueError("dense stores every class; leave out top_k and tail_bits")

    def row_arrays(self, settings: Settings) -> dict[str, RowArray]:
        code = self.codes[settings.bits]
        return {
            code.array: RowArray(dtype=code.dtype, row_shape=(settings.num_classes,)),
            **label_arrays(settings.num_classes),
            **{name: RowArray(dtype="float32") for name in code.numbers},
        }

    def encode(self, rows: LabelledLogits, settings: Settings, tail: Tail) -> dict[str, Tensor]:
        logits_BC, labelled_B = rows.logits_BC, rows.labelled_B
        best_B = logits_BC.amax(1)
        log_sum_B = (logits_BC - best_B[:, None]).logsumexp(1)
        logsumexp_B = check_finite(best_B + log_sum_B)
        label_logit_B = rows.label_logit_B.where(labelled_B, -math.inf)
        return {
            **self.codes[settings.bits].encode(logits_BC, logsumexp_B, label_logit_B),
            "label_rank": torch.where(labelled_B, (logits_BC >= label_logit_B[:, None]).sum(1), 0),
            "label_log_prob": to_float16(rows.label_log_prob(log_sum_B, best_B)),
            "logsumexp": round_mantissa(logsumexp_B, 10),
        }

    def decode(self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail) -> Tensor:
        return self.codes[settings.bits].decode(arrays)

    def kept_log_prob(self, arrays: Mapping[str, Tensor], settings: Settings) -> Tensor:
        return torch.log_softmax(self.codes[settings.bits].decode(arrays), 1)

    def kept(self, arrays: Mapping[str, Tensor], settings: Settings) -> Tensor:
        return torch.ones_like(arrays[self.codes[settings.bits].array], dtype=torch.bool)

    def best_array(self, settings: Settings) -> str:
        return self.codes[settings.bits].array

    def best_class(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        return np.asarray(values.argmax(1), np.int64)

    def row_bytes(self, settings: Settings) -> float:
        shrinks = 1.0 if self.codes[settings.bits].lossless else 0.9
        return settings.num_classes * settings.bits / 8 * shrinks + 8

    def ladder(self, num_classes: int) -> list[Settings]:
        return [Settings(num_classes=num_classes, bits=bits) for bits in self.codes]

    def describe(self, settings: Settings) -> str:
        return f"dense, {settings.bits} bits a class{', lossless' if self.codes[settings.bits].lossless else ''}"
