"""The K best classes of a row, and the mass of the others, whose shape is predicted: the only tail rule.

Shape suffixes: B rows, C classes, K kept classes.
"""

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from logitbank.pipeline.encoding.head import Gaps, Halves, HeadCode, label_rank, log_sums
from logitbank.pipeline.encoding.kind import Kind, label_arrays
from logitbank.pipeline.encoding.packing import below, round_mantissa, smallest_uint, to_float16
from logitbank.pipeline.encoding.settings import LabelledLogits, Settings, Tail, check_finite
from logitbank.pipeline.encoding.tail_mass import log_minus, shift_to_mass
from logitbank.stores import RowArray

_CHUNK = 256  # rows whose dense logits stay in a cache
_TERMS = "row_terms_"
_SPENT = ("logsumexp", "log_tail_mass", "label_log_prob")  # what the terms of a row take the place of


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
        best_BK, index_BK = torch.topk(logits_BC, settings.top_k, dim=1)
        log_tail_B, log_head_B = log_sums(logits_BC, best_BK, index_BK)
        log_sum_B = torch.logaddexp(log_head_B, log_tail_B)
        logsumexp_B = check_finite(best_BK[:, 0] + log_sum_B)
        rank_B = torch.where(rows.labelled_B, label_rank(logits_BC, rows.label_logit_B, best_BK), 0)
        label_log_prob_B = rows.label_log_prob(log_sum_B)
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

    def prepare(
        self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail
    ) -> dict[str, Tensor]:
        """The arrays without some of one number a row, whose place `row_terms_*` float32 [B, 3] takes.

        The terms are the head's offset, the tail's shift, the label's logit. The name says which tail they are for
        ("bucket" shares that of "predicted"), and `decode` takes no other. Nothing is copied but 12 bytes a row, and 8
        are left out.
        """
        terms_B3 = torch.empty((len(labels_B), 3), device=labels_B.device)
        for start in range(0, len(labels_B), _CHUNK):
            rows = slice(start, start + _CHUNK)
            part = {name: array[rows] for name, array in arrays.items()}
            terms_B3[rows] = self._terms(part, labels_B[rows], settings, tail.of(rows))
        left = {name: array for name, array in arrays.items() if name not in _SPENT}
        return {**left, _terms_name(tail): terms_B3}

    def decode(self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail) -> Tensor:
        terms = _terms_name(tail)
        if terms not in arrays:
            _refuse_other_terms(arrays, tail)
            arrays = self.prepare(arrays, labels_B, settings, tail)
        offset_B, shift_B, label_logit_B = arrays[terms].unbind(1)
        head_BK = self.codes[settings.bits].values(arrays).add_(offset_B[:, None])
        index_BK = arrays["index"].long()
        if tail.rule == "renormalise":
            out_BC = torch.full((len(head_BK), settings.num_classes), -math.inf, device=head_BK.device)
        elif tail.prediction is None:
            out_BC = shift_B[:, None].repeat(1, settings.num_classes)
        else:
            code = self.tail_code(arrays)
            out_BC = tail.prediction.predict(index_BK, head_BK, tail.folds_B, tail_code=code, shift_B=shift_B)
        out_BC.clamp_(max=below(head_BK[:, -1])[:, None])
        label_B = _label_or_best(labels_B, index_BK)
        if tail.rule == "bucket":
            out_BC = _bucket(out_BC, torch.cat([index_BK, label_B[:, None]], 1), tail)
        # The label, then the head: a label inside the head takes the head's value.
        out_BC.scatter_(1, label_B[:, None], label_logit_B[:, None])
        return out_BC.scatter_(1, index_BK, head_BK)

    def tail_code(self, arrays: Mapping[str, Tensor]) -> Tensor | None:
        """What the row says of its tail besides the mass: nothing."""
        return None

    def _terms(self, arrays: Mapping[str, Tensor], labels_B: Tensor, settings: Settings, tail: Tail) -> Tensor:
        """Head offset, shift that makes the tail's mass exact at T = 1, label logit."""
        head_BK, offset_B = self.codes[settings.bits].logits(arrays)
        index_BK, logsumexp_B = arrays["index"].long(), arrays["logsumexp"].float()
        label_logit_B = torch.minimum(arrays["label_log_prob"] + logsumexp_B, below(head_BK[:, -1]))
        if tail.rule == "renormalise":
            return torch.stack([offset_B, torch.zeros_like(offset_B), label_logit_B], 1)
        outside_B = (labels_B >= 0) & ~(index_BK == labels_B[:, None]).any(1)
        known = torch.cat([index_BK, _label_or_best(labels_B, index_BK)[:, None]], 1)
        tail_B = arrays["log_tail_mass"].float() + logsumexp_B
        rest_B = log_minus(tail_B, torch.where(outside_B, label_logit_B, -math.inf))
        if tail.prediction is None:
            count_B = settings.num_classes - settings.top_k - outside_B.long()
            shift_B = torch.where(count_B > 0, rest_B - count_B.log(), -math.inf)
        else:
            shape_BC = tail.prediction.predict(index_BK, head_BK, tail.folds_B, tail_code=self.tail_code(arrays))
            shift_B = shift_to_mass(shape_BC, known, rest_B, below(head_BK[:, -1]))
        return torch.stack([offset_B, shift_B, label_logit_B], 1)

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


def _terms_name(tail: Tail) -> str:
    if tail.rule == "renormalise":
        return f"{_TERMS}renormalise"
    return f"{_TERMS}uniform" if tail.prediction is None else f"{_TERMS}predicted"


def _refuse_other_terms(arrays: Mapping[str, Tensor], tail: Tail) -> None:
    if any(name.startswith(_TERMS) for name in arrays):
        wanted = _terms_name(tail).removeprefix(_TERMS)
        raise ValueError(f"expected a slab prepared for {wanted} tails, found another; prepare it for {tail.rule}")


def _label_or_best(labels_B: Tensor, index_BK: Tensor) -> Tensor:
    """The label, or the best class of a row without one: writing there changes nothing."""
    return torch.where(labels_B < 0, index_BK[:, 0], labels_B)


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
