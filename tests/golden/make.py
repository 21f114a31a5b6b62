"""Writes the golden stores: one small store for every kind of encoding, kept in git and read for ever.

Run `python -m tests.golden.make KIND` only to add a kind. Never rewrite a store that is here: when its test
fails, the program no longer reads what people have written, and the program is at fault. A new format version
gets new stores beside the old ones.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.stores import RowArray, TeacherWriter, create_store

N, V, C, K = 300, 2, 12, 3
PER_ROW = {"label_log_prob": "float16", "label_rank": "uint8", "logsumexp": "float32"}
HEAD: dict[str, tuple[str, tuple[int, ...]]] = {"index": ("uint8", (K,)), "log_tail_mass": ("float16", ())}
KINDS: dict[str, tuple[dict[str, Any], dict[str, tuple[str, tuple[int, ...]]]]] = {
    "topk": ({"kind": "topk", "top_k": K, "bits": 8}, {**HEAD, "log_prob_code": ("uint8", (K,))}),
    "topk-16": ({"kind": "topk", "top_k": K, "bits": 16}, {**HEAD, "log_prob": ("float16", (K,))}),
    "topk-tail": (
        {"kind": "topk+tail", "top_k": K, "tail_bits": 2, "bits": 8},
        {**HEAD, "log_prob_code": ("uint8", (K,)), "tail_code": ("uint8", (3,))},
    ),
    "dense-8": (
        {"kind": "dense", "bits": 8},
        {
            "log_prob_code": ("uint8", (C,)),
            "log_prob_scale": ("float32", ()),
            "log_prob_floor": ("float32", ()),
        },
    ),
    "dense-16": ({"kind": "dense", "bits": 16}, {"log_prob": ("float16", (C,))}),
    "dense-32": ({"kind": "dense", "bits": 32}, {"logit": ("float32", (C,))}),
}
KINDS["v2-topk"] = KINDS["topk"][0], {**KINDS["topk"][1], "tail_shift": ("float32", ())}
KINDS["v2-dense-8"] = KINDS["dense-8"]


def version_of(kind: str) -> int:
    """The format's version that a store of a kind is of."""
    return 2 if kind.startswith("v2-") else 1


def arrays_of(kind: str) -> dict[str, RowArray]:
    """Arrays per row of a kind."""
    arrays = {name: (dtype, ()) for name, dtype in PER_ROW.items()} | KINDS[kind][1]
    if kind == "dense-32":
        del arrays["logsumexp"]
    return {name: RowArray(dtype=dtype, row_shape=shape) for name, (dtype, shape) in arrays.items()}


def answers(kind: str, view: int) -> dict[str, np.ndarray]:
    """One view's rows: made from integers alone, so that they are the same on every machine."""
    made = {}
    for name, array in arrays_of(kind).items():
        count = N * int(np.prod(array.row_shape, dtype=int))
        steps = (np.arange(count, dtype=np.int64) * 7919 + view * 104_729 + len(name) * 31) % 251
        values = -steps / 16 if array.dtype.startswith("float") else steps % C if name == "index" else steps
        made[name] = values.astype(array.dtype).reshape(N, *array.row_shape)
    return made


def write(kind: str, path: Path) -> None:
    """Write the golden store of one kind."""
    encoding = {"num_classes": C, "top_k": 0, "tail_bits": 0, **KINDS[kind][0]}
    keys = np.arange(N, dtype=np.uint64) * np.uint64(11_400_714_819_323_198_485)
    create_store(
        path,
        dataset={
            "name": "golden",
            "split": "train",
            "num_examples": N,
            "num_classes": C,
            "fingerprint": "00",
        },
        views={"num_views": V, "transform": "none", "seed": 0, "versions": {}},
        keys=keys,
        labels=np.arange(N) % (C + 1) - 1,
        folds=np.arange(N) % 3,
        groups=keys // np.uint64(3),
        probes={"pixels": keys[:4].reshape(2, 2)},
        attributes={"license": "CC0-1.0", "description": f"golden store of format version {version_of(kind)}"},
        version=version_of(kind),
    )
    tail: dict[str, np.ndarray] = {
        "tail_matrix": np.arange(C * 2, dtype=np.float16).reshape(1, C, 2),
        "tail_bias": np.zeros((1, C), np.float32),
    }
    teacher = TeacherWriter(
        path,
        "golden",
        identity={"architecture": "none", "weights_sha256": "00"},
        encoding=encoding,
        arrays=arrays_of(kind),
        folds={"num_folds": 3, "strategy": "modulo", "seed": 0},
        constants=tail if "topk" in kind else None,
        block_rows=256,
    )
    for cell in teacher.pending():
        values = answers(kind, cell.view)
        teacher.write(cell, {name: array[teacher.rows(cell.block)] for name, array in values.items()})
    teacher.finish(fidelity={"1": 0.01}, summary={"top1": 0.5})


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        write(wanted, Path(__file__).parent / f"{wanted}.zarr")
