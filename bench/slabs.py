"""Speed of slabs: preparing one against reading its bytes, and decoding a batch with a predicted tail.

`python -m bench.slabs [--rows N]` prints one JSON object a line: {name, value, goal, ok}. Ratios compare both sides in
turns within one run, by their best processor times in one thread, since noise only adds. A slab is prepared from the
store's files to the mapped file that students share; reading is the same rows as checked arrays. Stores are of both
versions of the format: the first lacks the shift of a row's predicted tail, the second keeps it.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.losses import KEEP_MEMORY
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.fidelity import fit_predictor
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.tail_predictor import Gauge, TailPredictor
from logitbank.stores import Store, TeacherWriter, create_store, open_store

BATCH, ROUNDS, DRAWN = 256, 5, 2**24
KINDS = {
    "topk, 8 bits, C = 1000": Encoding(kind="topk", num_classes=1000, top_k=10),
    "topk, 16 bits, C = 1000": Encoding(kind="topk", num_classes=1000, top_k=10, bits=16),
    "topk+tail, 1 bit, C = 1000": Encoding(kind="topk+tail", num_classes=1000, top_k=10, tail_bits=1),
    "topk, 8 bits, C = 21841": Encoding(kind="topk", num_classes=21_841, top_k=10),
    "dense, 8 bits, C = 100": Encoding(kind="dense", num_classes=100, bits=8),
    "dense, 16 bits, C = 100": Encoding(kind="dense", num_classes=100, bits=16),
    "dense, 32 bits, C = 100": Encoding(kind="dense", num_classes=100, bits=32),
}


def logits_of(num_rows: int, num_classes: int, seed: int) -> Tensor:
    weights = torch.randn(64, num_classes, generator=torch.Generator().manual_seed(7)) / 4
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(num_rows, num_classes, generator=generator)
    return torch.randn(num_rows, 64, generator=generator) @ weights + 0.5 * noise


def predictor_of(encoding: Encoding) -> TailPredictor | None:
    """Fitted; for many classes made up in the form that a fit has, which would take minutes."""
    if encoding.num_classes <= 4096:
        return fit_predictor(logits_of(2048, encoding.num_classes, 1), encoding)
    generator = torch.Generator().manual_seed(3)
    matrix, factor = (torch.randn(1, *shape, generator=generator) / 16 for shape in ((21_841, 128), (128, 21_841)))
    return TailPredictor(matrix_FCD=matrix, bias_FC=torch.zeros(1, 21_841), factor_FDC=factor, gauge=Gauge(limit=100.0))


def make(path: Path, encoding: Encoding, num_rows: int, version: int) -> Store:
    """A store of one view, whose rows repeat after ``DRAWN`` logits."""
    group = min(num_rows, DRAWN // encoding.num_classes)
    labels, predictor = torch.arange(group) % encoding.num_classes, predictor_of(encoding)
    shifted = version > 1 and predictor is not None
    logits = logits_of(group, encoding.num_classes, 0)
    arrays = encode(logits, labels, encoding, predictor=predictor, shifted=shifted)
    create_store(
        path,
        dataset={"name": "bench", "split": "train", "num_examples": num_rows, "num_classes": encoding.num_classes},
        views={"num_views": 1},
        keys=np.arange(num_rows, dtype=np.uint64),
        labels=np.resize(labels.numpy(), num_rows),
        version=version,
    )
    writer = TeacherWriter(
        path,
        "t",
        identity={},
        encoding=encoding.attributes(),
        arrays=encoding.row_arrays(shifted=shifted),
        constants={} if predictor is None else predictor.constants(),
    )
    for cell in writer.pending():
        rows = np.arange(num_rows)[writer.rows(cell.block)] % group
        writer.write(cell, {name: array[rows] for name, array in arrays.items()})
    writer.finish(fidelity={})
    return open_store(path)


def least(*calls: Callable[[], object]) -> list[float]:
    """Least processor seconds of each, taken in turns."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(ROUNDS):
        for call, own in zip(calls, times, strict=True):
            begin = time.process_time()
            call()
            own.append(time.process_time() - begin)
    return [min(own) for own in times]


def prepare(answers: StoredAnswers) -> None:
    answers.close()
    answers.logits(torch.zeros(1, dtype=torch.int64), 0)


def report(name: str, value: float, goal: float | None = None, *, most: bool = False) -> None:
    ok = goal is None or (value <= goal if most else value >= goal)
    print(json.dumps({"name": f"slabs/{name}", "value": round(value, 3), "goal": goal, "ok": ok}), flush=True)


def slab(name: str, store: Store) -> None:
    """Preparing a slab against reading its rows, and what it takes a row."""
    answers = StoredAnswers(store)
    prepare(answers)
    own, read = least(lambda: prepare(answers), lambda: answers.teacher.slab(0, answers.decoder.names))
    answers.close()
    goal = 0.7 if store.version > 1 else None
    report(f"{name}, version {store.version}: speed of a slab / of reading", read / own, goal)
    report(f"{name}, version {store.version}: a slab, us a row", own / store.num_examples * 1e6)


def decoding(name: str, store: Store) -> None:
    """Shuffled batches from a slab to dense logits, by the two tails."""
    rows = torch.randperm(store.num_examples, generator=torch.Generator().manual_seed(0))[: 16 * BATCH].split(BATCH)  # type: ignore[no-untyped-call]
    tails = [StoredAnswers(store, tail=tail) for tail in ("predicted", "uniform")]
    for answers in tails:
        answers.logits(rows[0], 0)
    seconds = least(*(lambda answers=answers: [answers.logits(own, 0) for own in rows] for answers in tails))
    report(f"{name}: decoding, predicted / uniform tail", seconds[0] / seconds[1], 2.0, most=True)
    report(f"{name}: decoding, predicted tail, us a row", seconds[0] / (16 * BATCH) * 1e6)
    for answers in tails:
        answers.close()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    num_rows = parser.parse_args().rows
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOGITBANK_CACHE"] = f"{folder}/cache"
        for number, (name, encoding) in enumerate(KINDS.items()):
            rows = num_rows if encoding.num_classes <= 1000 else 16 * BATCH
            for version in (1, 2) if encoding.has_tail else (2,):
                store = make(Path(folder) / f"{number}-{version}.zarr", encoding, rows, version)
                slab(name, store)
            if encoding.has_tail:
                decoding(name, store)
    return 0


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, "-m", "bench.slabs", *sys.argv[1:]], os.environ | KEEP_MEMORY)
    sys.exit(main())
