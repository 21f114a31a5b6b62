"""The K best classes of a row: what they are, and how their log-probabilities become bytes.

Shape suffixes: B rows, C classes, K kept classes.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from logitbank.pipeline.encoding.groups import in_rows
from logitbank.pipeline.encoding.kind import Code
from logitbank.pipeline.encoding.packing import float16_keeping_order, gap_decode, gap_encode
from logitbank.stores.format.schema import GAP_NEVER


class HeadCode(ABC, Code):
    """Log-probabilities of the kept classes, best first."""

    @abstractmethod
    def encode(self, best_BK: Tensor, logsumexp_B: Tensor, rank_B: Tensor) -> Tensor:
        """``array`` of raw logits; ``rank_B``: number of classes at or above the label, 0 without one."""

    @abstractmethod
    def values(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Logits up to ``offset``, float32 [B, K], newly made."""

    @abstractmethod
    def offset(self, values_BK: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        """What makes raw logits of the values, float32 [B]."""

    def logits(self, arrays: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Raw logits float32 [B, K], and their offset [B]."""
        values_BK = self.values(arrays)
        offset_B = self.offset(values_BK, arrays)
        return values_BK + offset_B[:, None], offset_B

    def log_prob(self, arrays: Mapping[str, Tensor]) -> Tensor:
        """Log-probabilities, float32 [B, K]."""
        return self.logits(arrays)[0] - arrays["logsumexp"].float()[:, None]


class Gaps(HeadCode):
    """A byte each: the step down from the class before."""

    array, dtype, zero = "log_prob_code", "uint8", float(GAP_NEVER)

    def encode(self, best_BK: Tensor, logsumexp_B: Tensor, rank_B: Tensor) -> Tensor:
        return gap_encode(best_BK, logsumexp_B, rank_B)

    def values(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return gap_decode(arrays["log_prob_code"])

    def offset(self, values_BK: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        log_head_mass_B = torch.log(-torch.expm1(arrays["log_tail_mass"].float()))
        return arrays["logsumexp"].float() + log_head_mass_B - values_BK.logsumexp(1)


class Halves(HeadCode):
    """float16 each."""

    array, dtype, zero = "log_prob", "float16", -math.inf

    def encode(self, best_BK: Tensor, logsumexp_B: Tensor, rank_B: Tensor) -> Tensor:
        label_B = best_BK.gather(1, (rank_B - 1).clamp(0, best_BK.shape[1] - 1)[:, None]).squeeze(1)
        return float16_keeping_order(best_BK, logsumexp_B, label_B.where(rank_B > 0, -math.inf))

    def values(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return arrays["log_prob"].to(torch.float32, copy=True)

    def offset(self, values_BK: Tensor, arrays: Mapping[str, Tensor]) -> Tensor:
        return arrays["logsumexp"].float()

    def log_prob(self, arrays: Mapping[str, Tensor]) -> Tensor:
        return arrays["log_prob"].float()


def label_rank(logits_BC: Tensor, label_logit_B: Tensor, best_BK: Tensor) -> Tensor:
    """Number of classes at or above the label's logit, int64 [B]."""
    rank_B = (best_BK >= label_logit_B[:, None]).sum(1)
    low_R = (label_logit_B <= best_BK[:, -1]).nonzero().squeeze(1)
    for own in in_rows(len(low_R), logits_BC.shape[1]):
        few_BC = logits_BC[low_R[own]]
        above_BC = torch.ge(few_BC, label_logit_B[low_R[own], None], out=few_BC)  # as floats they are counted faster
        rank_B[low_R[own]] = above_BC.sum(1).long()
    return rank_B


def log_sums(logits_BC: Tensor, best_BK: Tensor, index_BK: Tensor) -> tuple[Tensor, Tensor]:
    """logsumexp outside and inside the head, less the best logit; each summed by itself so that nothing cancels."""
    best_B1 = best_BK[:, :1]
    tail_B = torch.empty_like(best_B1[:, 0])
    for own in in_rows(*logits_BC.shape):
        tail_B[own] = (logits_BC[own] - best_B1[own]).exp_().scatter_(1, index_BK[own], 0.0).sum(1)
    log_tail_B = tail_B.log()
    small_B = tail_B < 1e-30
    if small_B.any():
        small_BC = logits_BC[small_B] - best_B1[small_B]
        log_tail_B[small_B] = small_BC.scatter(1, index_BK[small_B], -math.inf).logsumexp(1)
    return log_tail_B, (best_BK - best_B1).logsumexp(1)
