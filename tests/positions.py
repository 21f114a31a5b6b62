"""Examples that are answered at L positions, and stores of them."""

from pathlib import Path

import numpy as np

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.views import Views

LENGTHS = (1, 7, 128)


def encodings(num_classes: int) -> dict[str, Encoding]:
    """One of each kind and width."""
    return {
        "topk": Encoding(kind="topk", num_classes=num_classes, top_k=4),
        "topk-16": Encoding(kind="topk", num_classes=num_classes, top_k=4, bits=16),
        "topk+tail": Encoding(kind="topk+tail", num_classes=num_classes, top_k=4, tail_bits=1),
        "dense-8": Encoding(kind="dense", num_classes=num_classes, bits=8),
        "dense-16": Encoding(kind="dense", num_classes=num_classes, bits=16),
        "dense-32": Encoding(kind="dense", num_classes=num_classes, bits=32),
    }


def make_logits(num_examples: int, length: int, num_classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits [N, L, C] whose tails are a function of a few features, and labels [N, L] that they mostly know."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(-1, num_classes, (num_examples, length))
    features = rng.normal(size=(num_examples, length, 4))
    logits = features @ rng.normal(size=(4, num_classes)) * 2 + rng.normal(size=(num_examples, length, num_classes)) / 4
    np.put_along_axis(logits, np.maximum(labels, 0)[..., None], np.abs(logits).max() * 0.7, 2)
    return logits.astype(np.float32), labels


def write_files(
    folder: Path, num_examples: int, length: int, num_classes: int, *, ragged: bool = False, seed: int = 0
) -> tuple[str, str]:
    """A data spec and a teacher for it."""
    logits, labels = make_logits(num_examples, length, num_classes, seed)
    rng = np.random.default_rng(7)
    arrays = {"x": rng.normal(size=(num_examples, 3)), "y": labels, "group": np.arange(num_examples) // 2}
    if ragged:
        arrays["length"] = rng.integers(0, length + 1, num_examples)
        arrays["length"][0] = length
        logits[np.arange(length) >= arrays["length"][:, None]] = np.nan  # nobody looks there
    test = {f"{name}_test": array[:10] + (name == "x") for name, array in arrays.items()}
    np.savez(folder / "data.npz", **arrays, **test)  # type: ignore[arg-type]
    np.save(folder / "logits.npy", logits)
    return f"npz:{folder}/data.npz?positions={length}&classes={num_classes}", f"array:{folder}/logits.npy"


def write_store(
    folder: Path,
    split: Split | str,
    encoding: Encoding,
    *,
    logits: str = "logits.npy",
    out: str = "s.zarr",
    plan: FoldPlan | None = None,
    num_views: int = 1,
    block_rows: int | None = None,
    predictor_rows: int = 1000,
) -> Path:
    """The store of the logits of a file."""
    split = load_split(split) if isinstance(split, str) else split
    teacher = ArrayTeacher(folder / logits, split, Views(num_views=num_views), plan=plan)
    cache_teacher(teacher, folder / out, encoding=encoding, predictor_rows=predictor_rows, block_rows=block_rows)
    return folder / out
