"""The K best classes of a row, and the others in a few bits: what is left of them after their prediction.

Shape suffixes: B rows, C classes, K kept classes.
"""

from collections.abc import Mapping

from torch import Tensor

from logitbank.pipeline.encoding.settings import DENSE_CLASSES, LabelledLogits, Settings, Tail, tail_bits_of
from logitbank.pipeline.encoding.tail_predictor import tail_residual
from logitbank.pipeline.encoding.topk import TopK
from logitbank.stores import RowArray

_LADDER_BYTES = (32, 64, 128, 256, 512, 1024)


class TopKTail(TopK):
    """As `TopK`, with a code of the tail's residual about its prediction (`tail_basis`)."""

    options = ("top_k", "tail_bits", "bits")
    every_class = True

    def check_tail_bits(self, settings: Settings) -> None:
        if not 0 < settings.tail_bits <= 4:
            raise ValueError(f"expected tail_bits above 0 and up to 4 for topk+tail, found {settings.tail_bits}")

    def row_arrays(self, settings: Settings) -> dict[str, RowArray]:
        return {**super().row_arrays(settings), "tail_code": RowArray(dtype="uint8", row_shape=(settings.tail_bytes,))}

    def encode(self, rows: LabelledLogits, settings: Settings, tail: Tail) -> dict[str, Tensor]:
        if tail.predictor is None or tail.predictor.basis is None:
            raise ValueError("encoding topk+tail needs a fitted tail predictor; pass the one from fit_predictor")
        arrays = super().encode(rows, settings, tail)
        predictor = tail.predictor.to(rows.logits_BC.device)
        assert predictor.basis is not None
        head_BK, _ = self.codes[settings.bits].logits(arrays)  # as a reader will see it
        residual_BC = tail_residual(rows.logits_BC, head_BK, arrays["index"], predictor, tail.folds_B)
        folds_B = tail.folds_B if predictor.num_folds > 1 else None
        return {**arrays, "tail_code": predictor.basis.encode(residual_BC, folds_B, settings.tail_bytes)}

    def tail_code(self, arrays: Mapping[str, Tensor]) -> Tensor | None:
        return arrays["tail_code"]

    def ladder(self, num_classes: int) -> list[Settings]:
        if num_classes <= DENSE_CLASSES:
            shares, heads = [0.125, 0.25, 0.5, 1, 2, 3], (10, 20)
        else:
            shares, heads = [tail_bits_of(size, num_classes) for size in _LADDER_BYTES], (20, 50)
        return [
            Settings(num_classes=num_classes, top_k=top_k, tail_bits=tail_bits)
            for top_k in heads
            for tail_bits in shares
            if 2 * top_k <= num_classes
        ]

    def describe(self, settings: Settings) -> str:
        if settings.num_classes > DENSE_CLASSES:
            return f"{super().describe(settings)}, {settings.tail_bytes} bytes of tail"
        return f"{super().describe(settings)}, {settings.tail_bits:.3g}-bit tail"
