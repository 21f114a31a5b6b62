"""What a row of `topk` takes in a store, all of it: what `bench.rate_distortion` counts, the label's, and the shift."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import arange, from_numpy

from bench.loss_encoding import read_labels
from bench.rate_distortion import codec_bytes
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.fitting.predictor import TailFit


def stored_row(folder: Path) -> list[dict[str, Any]]:
    """Bytes of a row of ten of 1,000 classes on real logits with their labels, after and before compression."""
    logits = from_numpy(np.load(folder / "logits" / "nips17_logits.npy"))
    encoding = Encoding(kind="topk", num_classes=1000, top_k=10)
    fit = TailFit(encoding.num_classes, encoding.top_k)
    fit.update(logits, arange(len(logits)) % 8 == 7)
    labels = read_labels(folder / "nips17" / "labels.tsv")
    arrays = encode(logits, labels, encoding, predictor=fit.fit(encoding.tail_bytes), shifted=True)
    packed = sum(codec_bytes(name, array) for name, array in arrays.items()) / len(logits)
    plain = sum(array.nbytes for array in arrays.values()) / len(logits)
    return [
        {"name": "topk_10_stored_row_bytes", "value": packed, "goal": 30, "ok": packed <= 30},
        {"name": "topk_10_row_bytes_before_compression", "value": plain, "goal": 44, "ok": plain <= 44},
    ]
