"""Writes small stores with the program's own encoder, and what they decode to: kept in git and read for ever.

Run `python -m tests.golden.make_decoded KIND` only to add a kind. Never rewrite what is here: when its test fails, the
program decodes other numbers from what people have written, and the program is at fault.
"""

import sys
from pathlib import Path

import numpy as np
import torch

from logitbank.pipeline.cache_teacher.fidelity import fit_predictor
from logitbank.pipeline.encoding import Encoding, decode
from logitbank.pipeline.encoding.encode import encode
from logitbank.stores import TeacherWriter, create_store
from tests.golden.make import version_of

FOLDER = Path(__file__).parent / "decoded"
N, C, NUM_FOLDS = 96, 12, 2
KINDS = {
    "topk": Encoding(kind="topk", num_classes=C, top_k=3),
    "topk-16": Encoding(kind="topk", num_classes=C, top_k=3, bits=16),
    "topk-tail": Encoding(kind="topk+tail", num_classes=C, top_k=3, tail_bits=2),
    "dense-8": Encoding(kind="dense", num_classes=C, bits=8),
    "dense-16": Encoding(kind="dense", num_classes=C, bits=16),
    "dense-32": Encoding(kind="dense", num_classes=C, bits=32),
}
KINDS |= {f"v2-{kind}": KINDS[kind] for kind in ("topk", "topk-tail", "dense-8")}
AT_POSITIONS, LENGTH = {"v2-positions": KINDS["topk-tail"]}, 4  # the same rows, as answers to N / 4 examples


def teacher_logits(rows: int, seed: int) -> torch.Tensor:
    """Logits whose tail follows from their head, more or less: two hidden directions and noise."""
    rng = np.random.default_rng(seed)
    directions = np.random.default_rng(1).normal(size=(2, C))
    logits = rng.normal(size=(rows, 2)) @ directions * 2 + rng.normal(size=(rows, C)) * 0.7
    return torch.from_numpy(logits.astype(np.float32))


def write(kind: str, folder: Path) -> None:
    """Writes ``KIND.zarr`` and ``KIND.npy``, the decoded logits float32 [N, C], or [N / L, L, C]."""
    encoding, version = (KINDS | AT_POSITIONS)[kind], version_of(kind)
    shifted = version > 1 and encoding.has_tail
    logits = teacher_logits(N, seed=2)
    if kind.endswith("dense-8"):
        logits[::7, 4] = -torch.inf
    labels, folds = torch.arange(N) % (C + 1) - 1, torch.arange(N) % NUM_FOLDS
    positions, count = (LENGTH, N // LENGTH) if kind in AT_POSITIONS else (None, N)
    if positions is not None:
        labels, folds = labels.reshape(count, positions), torch.arange(count) % NUM_FOLDS
        logits = logits.reshape(count, positions, C)
    predictor = fit_predictor(
        teacher_logits(4000, seed=3), encoding, folds_N=torch.arange(4000) % NUM_FOLDS, num_folds=NUM_FOLDS
    )
    path = folder / f"{kind}.zarr"
    create_store(
        path,
        dataset={
            "name": "golden",
            "split": "train",
            "num_examples": count,
            "num_classes": C,
            "fingerprint": "00",
            **({} if positions is None else {"num_positions": positions}),
        },
        views={"num_views": 1, "transform": "none", "seed": 0, "versions": {}},
        keys=np.arange(count, dtype=np.uint64),
        labels=labels.numpy(),
        folds=folds.numpy().astype(np.uint16),
        version=version,
    )
    writer = TeacherWriter(
        path,
        "golden",
        identity={"architecture": "none", "weights_sha256": ["00"]},
        encoding=encoding.attributes(),
        arrays={name: array.at(positions) for name, array in encoding.row_arrays(shifted=shifted).items()},
        folds={"num_folds": NUM_FOLDS, "strategy": "modulo", "seed": 0},
        constants=None if predictor is None else predictor.constants(),
    )
    arrays = encode(logits, labels, encoding, predictor=predictor, folds_B=folds, shifted=shifted)
    writer.write(writer.pending()[0], arrays)
    writer.finish(fidelity={"1": 0.0}, summary={})
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    np.save(folder / f"{kind}.npy", decode(tensors, labels, encoding, predictor=predictor, folds_B=folds).numpy())


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        write(wanted, FOLDER)
