"""The K best classes of a row, and the mass of the others, whose shape is predicted: the only tail rule.

Shape suffixes: B rows, C classes, K kept classes.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.encoding.groups import best_classes
from logitbank.pipeline.encoding.head import Gaps, Halves, HeadCode, label_rank, log_sums
from logitbank.pipeline.encoding.kind import Kind, label_arrays
from logitbank.pipeline.encoding.packing import below, round_mantissa, smallest_uint, to_float16
from logitbank.pipeline.encoding.settings import FINITE_RANGE, LabelledLogits, Settings, Tail, check_finite
from logitbank.pipeline.encoding.sparse import SparseLogits
from logitbank.pipeline.encoding.tail_mass import log_minus, shift_to_mass
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.stores import RowArray

_NUMBERS, _FEWEST = 2**18, 64  # dense logits of a few rows, which stay in a cache


class TopK(Kind):
    """Exact for the K best classes and the label; of the others a row holds the mass."""

    options: tuple[str, ...] = ("top_k", "bits")
    has_tail, every_class = True, False
    codes: Mapping[int, HeadCode] = {8: Gaps(), 16: Halves()}

    def check(self, settings: Settings) -> None:
        if not 1 <= settings.top_k <= settings.num_classes:
            raise ValueError(f"expected top_k from 1 to {settings.num_classes} (the classes), found {settings.top_k}")
        self.check_tail_bits(settings)

    def check_tail_bits(self, settings: Settings) -> None:
        """Raises ValueError unless the tail takes what this kind gives it."""
        if settings.tail_bits:
            raise ValueError(f"expected no tail_bits for topk, found {settings.tail_bits}; use topk+tail")

    def row_arrays(self, settings: Settings) -> dict[str, RowArray]:
        code = self.codes[settings.bits]
        return {
            "index": RowArray(dtype=smallest_uint(settings.num_classes - 1), row_shape=(settings.top_k,)),
            code.array: RowArray(dtype=code.dtype, row_shape=(settings.top_k,)),
            **label_arrays(settings.num_classes),
            "logsumexp": RowArray(dtype="float32"),
            "log_tail_mass": RowArray(dtype="float16"),
        }

    def encode(self, rows: LabelledLogits, settings: Settings, tail: Tail) -> dict[str, Tensor]:
        logits_BC = rows.logits_BC
        best_BK, index_BK = best_classes(logits_BC, settings.top_k)
        log_tail_B, log_head_B = log_sums(logits_BC, best_BK, index_BK)
        log_sum_B = torch.logaddexp(log_head_B, log_tail_B)
        logsumexp_B = check_finite(best_BK[:, 0] + log_sum_B)
        rank_B = torch.where(rows.labelled_B, label_rank(logits_BC, rows.label_logit_B, best_BK), 0)
        label_log_prob_B = rows.label_log_prob(log_sum_B, best_BK[:, 0])
        # a label in the head is there already: here it takes only 6 bits of precision
        in_head_B = (index_BK == rows.labels_B[:, None]).any(1)
        label_log_prob_B = torch.where(in_head_B, round_mantissa(label_log_prob_B, 5), label_log_prob_B)
        log_tail_mass_B = to_float16(round_mantissa(log_tail_B - log_sum_B, 8))
        code = self.codes[settings.bits]
        return {
            "index": index_BK,
            code.array: code.encode(best_BK, logsumexp_B, rank_B),
            "label_rank": rank_B,
            "label_log_prob": to_float16(label_log_prob_B),
            "logsumexp": round_mantissa(logsumexp_B, 10),
            "log_tail_mass": log_tail_mass_B.clamp(max=-(2.0**-24)),
        }

    def tail_shift(
        self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail
    ) -> Tensor | None:
        return None if tail.prediction is None else self._shift(arrays, labels_B, settings, tail, tail.prediction)

    def _shift(
        self,
        arrays: Mapping[str, Tensor],
        labels_B: Tensor,
        settings: Settings,
        tail: Tail,
        prediction: TailPredictor,
    ) -> Tensor:
        shift_B = torch.empty(len(labels_B), device=labels_B.device)
        step = max(_FEWEST, _NUMBERS // settings.num_classes)
        for start in range(0, len(labels_B), step):
            own = slice(start, start + step)
            some = {name: array[own] for name, array in arrays.items()}
            rows = _Rows(some, labels_B[own], self.codes[settings.bits])
            folds_B = None if tail.folds_B is None else tail.folds_B[own]
            shape_BC = prediction.predict(rows.index_BK, rows.head_BK, folds_B, tail_code=self.tail_code(some))
            known = torch.cat([rows.index_BK, rows.label_or_best_B[:, None]], 1)
            shift_B[own] = shift_to_mass(shape_BC, known, rows.log_rest_B, rows.limit_B)
        return shift_B

    def decode(self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail) -> Tensor:
        rows = _Rows(arrays, labels_B, self.codes[settings.bits])
        if tail.prediction is None:
            out_BC = rows.level(settings, tail)[:, None].repeat(1, settings.num_classes)
        else:
            known = "tail_shift" in arrays
            shift_B = arrays["tail_shift"] if known else self._shift(arrays, labels_B, settings, tail, tail.prediction)
            code = self.tail_code(arrays)
            out_BC = tail.prediction.predict(
                rows.index_BK, rows.head_BK, tail.folds_B, tail_code=code, shift_B=shift_B, limit_B=rows.limit_B
            )
        label_B1 = rows.label_or_best_B[:, None]
        if tail.rule == "bucket":
            out_BC = _bucket(out_BC, torch.cat([rows.index_BK, label_B1], 1), tail)
        # The label, then the head: a label inside the head takes the head's value.
        out_BC.scatter_(1, label_B1, rows.label_logit_B[:, None])
        return out_BC.scatter_(1, rows.index_BK, rows.head_BK)

    def sparse(
        self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail
    ) -> SparseLogits | None:
        if tail.rule == "bucket" or (tail.prediction is not None and tail.prediction.factor_FDC is None):
            return None
        rows = _Rows(arrays, labels_B, self.codes[settings.bits])
        same_BK = rows.index_BK == rows.label_or_best_B[:, None]
        in_head_B = rows.head_BK.masked_fill(~same_BK, 0.0).sum(1)
        label_B = torch.where(rows.outside_B, rows.label_logit_B, in_head_B)
        logits_BJ = torch.cat([rows.head_BK, label_B[:, None]], 1)
        lowest_B1 = logits_BJ.amax(1, keepdim=True) - FINITE_RANGE
        said = SparseLogits(
            num_classes=settings.num_classes,
            index_BJ=torch.cat([rows.index_BK, rows.label_or_best_B[:, None]], 1),
            logits_BJ=torch.maximum(logits_BJ, lowest_B1),
            new_BJ=torch.cat([torch.ones_like(same_BK), rows.outside_B[:, None]], 1),
            lowest_B1=lowest_B1,
        )
        if tail.prediction is None:
            return replace(said, level_B1=torch.maximum(rows.level(settings, tail)[:, None], lowest_B1))
        known = "tail_shift" in arrays
        shift_B = arrays["tail_shift"] if known else self._shift(arrays, labels_B, settings, tail, tail.prediction)
        predicted = tail.prediction.low_rank(
            rows.index_BK,
            rows.head_BK,
            tail.folds_B,
            tail_code=self.tail_code(arrays),
            shift_B=shift_B,
            limit_B=rows.limit_B,
        )
        return replace(said, predicted=predicted)

    def tail_code(self, arrays: Mapping[str, Tensor]) -> Tensor | None:
        """What the row says of its tail besides the mass: nothing."""
        return None

    def kept_log_prob(self, arrays: Mapping[str, Tensor], settings: Settings) -> Tensor:
        return self.codes[settings.bits].log_prob(arrays)

    def kept(self, arrays: Mapping[str, Tensor], settings: Settings) -> Tensor:
        index_BK = arrays["index"].long()
        nothing_BC = torch.zeros((len(index_BK), settings.num_classes), dtype=torch.bool, device=index_BK.device)
        return nothing_BC.scatter_(1, index_BK, True)

    def best_array(self, settings: Settings) -> str:
        return "index"

    def best_class(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.int64]:
        return values[:, 0].astype(np.int64)

    def row_bytes(self, settings: Settings) -> float:
        id_bits = (settings.num_classes - 1).bit_length()
        return settings.top_k * (id_bits + 6.5) / 8 + settings.tail_bytes + 7

    def ladder(self, num_classes: int) -> list[Settings]:
        return [Settings(num_classes=num_classes, top_k=top_k) for top_k in (5, 10, 20, 50) if top_k < num_classes]

    def describe(self, settings: Settings) -> str:
        return f"top {settings.top_k} in {settings.bits} bits"


class _Rows:
    """What the stored numbers of some rows say by themselves, without a look at other classes."""

    def __init__(self, arrays: Mapping[str, Tensor], labels_B: Tensor, code: HeadCode) -> None:
        self.arrays, self._labels_B = arrays, labels_B
        self.index_BK = arrays["index"].long()
        self.head_BK, _ = code.logits(arrays)
        self.limit_B = below(self.head_BK[:, -1])
        """What no class outside the head exceeds."""
        self.label_logit_B = torch.minimum(arrays["label_log_prob"] + arrays["logsumexp"].float(), self.limit_B)
        """Of a label outside the head."""
        self.label_or_best_B = torch.where(labels_B < 0, self.index_BK[:, 0], labels_B)
        """The label, or the best class of a row without one: writing there changes nothing."""

    @cached_property
    def outside_B(self) -> Tensor:
        """Rows whose label is not in the head."""
        return (self._labels_B >= 0) & ~(self.index_BK == self._labels_B[:, None]).any(1)

    @property
    def log_rest_B(self) -> Tensor:
        """Log of the mass that is left to classes outside the head that are not the label, in raw logits."""
        tail_B = self.arrays["log_tail_mass"].float() + self.arrays["logsumexp"].float()
        return log_minus(tail_B, torch.where(self.outside_B, self.label_logit_B, -math.inf))

    def level(self, settings: Settings, tail: Tail) -> Tensor:
        """The logit that all classes share which nothing is said of, float32 [B]; -inf where they are impossible."""
        if tail.rule == "renormalise":
            return torch.full_like(self.limit_B, -math.inf)
        count_B = settings.num_classes - settings.top_k - self.outside_B.long()
        level_B = torch.where(count_B > 0, self.log_rest_B - count_B.log(), -math.inf)
        return torch.minimum(level_B, self.limit_B)


def _bucket(tail_BC: Tensor, known: Tensor, tail: Tail) -> Tensor:
    """The tail in the student's shape; ``known``: ids of the classes that take no part, [B, any number]."""
    if tail.student_BC is None:
        raise ValueError("tail rule bucket needs the student's logits; pass student_BC")
    student_BC, temperature = tail.student_BC.detach().float(), tail.temperature
    known_BC = torch.zeros_like(tail_BC, dtype=torch.bool).scatter_(1, known, True)
    log_mass_B1 = (tail_BC / temperature).masked_fill(known_BC, -math.inf).logsumexp(1, keepdim=True)
    shape_BC = (student_BC / temperature).masked_fill(known_BC, -math.inf)
    shape_BC = (shape_BC - shape_BC.logsumexp(1, keepdim=True)).nan_to_num(nan=-math.inf, neginf=-math.inf)
    return (shape_BC + log_mass_B1) * temperature
