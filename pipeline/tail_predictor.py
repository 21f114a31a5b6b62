"""Predicts a row's tail logits from its head (ridge regression); one matrix per teacher."""

from torch import Tensor


class TailPredictor:
    """Sparse head logits -> dense logits."""

    def predict(self, index_BK: Tensor, head_BK: Tensor, folds_B: Tensor | None = None) -> Tensor:
        """Tail logits relative to the row's K-th, float32 [B, C]."""
        raise NotImplementedError
