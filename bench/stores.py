"""Speed of the store: opening, loading a view, writing.

`python -m bench.stores [--rows N]` prints one JSON object per line: {name, value, goal, ok}. Ratios compare
both sides in turns within one run, by their best times, since noise only adds. The store is made in the
temporary folder with the arrays of a top-10 teacher of 1,000 classes, 1,280,000 rows by 8 views. Goals are for
that size: of 20,000 rows a cell has 1,280, and to make its eight files durable costs more than to write them.
"""

import argparse
import json
import operator
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import zarr

from logitbank.stores import RowArray, TeacherWriter, create_store, open_store, verify_store

V, C, K = 8, 1000, 10
ARRAYS = {
    "index": RowArray(dtype="uint16", row_shape=(K,)),
    "log_prob_code": RowArray(dtype="uint8", row_shape=(K,)),
    "label_log_prob": RowArray(dtype="float16"),
    "label_rank": RowArray(dtype="uint16"),
    "logsumexp": RowArray(dtype="float32"),
    "log_tail_mass": RowArray(dtype="float16"),
}


def answers(num_rows: int) -> dict[str, np.ndarray]:
    """Rows that compress about as real answers do."""
    rng = np.random.default_rng(0)
    best = rng.integers(0, C, (num_rows, 1))
    near = rng.integers(0, 60, (C, K))
    made = {
        "index": (best + near[best[:, 0]] + rng.integers(0, 30, (num_rows, K))) % C,
        "log_prob_code": np.minimum(rng.exponential(40, (num_rows, K)), 255),
        "label_log_prob": -rng.exponential(1, num_rows),
        "label_rank": np.minimum(1 + rng.exponential(0.5, num_rows), C),
        "logsumexp": np.round(rng.normal(12, 2, num_rows) * 64) / 64,
        "log_tail_mass": -rng.exponential(2, num_rows),
    }
    return {name: made[name].astype(array.dtype) for name, array in ARRAYS.items()}


def write(path: Path, num_rows: int) -> float:
    """Write the store; rows per second of writing alone."""
    keys, labels = np.arange(num_rows, dtype=np.uint64), np.zeros(num_rows, dtype=np.int32)
    dataset = {
        "name": "bench",
        "split": "train",
        "num_examples": num_rows,
        "num_classes": C,
        "fingerprint": "0",
    }
    create_store(path, dataset=dataset, views={"num_views": V}, keys=keys, labels=labels)
    teacher = TeacherWriter(path, "t", identity={}, encoding={"kind": "topk", "top_k": K}, arrays=ARRAYS)
    made = answers(teacher.block_rows)
    started = time.perf_counter()
    for cell in teacher.pending():
        rows = teacher.rows(cell.block)
        teacher.write(cell, {name: array[: rows.stop - rows.start] for name, array in made.items()})
    teacher.finish(fidelity={})
    return num_rows * V / (time.perf_counter() - started)


def seconds(call: Callable[[], object]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def best(one: Callable[[int], object], two: Callable[[int], object], rounds: int) -> tuple[float, float]:
    """Least seconds of two calls, taken in turns."""
    pairs = [(seconds(lambda i=i: one(i)), seconds(lambda i=i: two(i))) for i in range(rounds)]  # type: ignore[misc]
    return min(pair[0] for pair in pairs), min(pair[1] for pair in pairs)


def opening(path: Path) -> float:
    """Seconds to open store and teacher and to read every commit, key and label."""

    def everything() -> None:
        store = open_store(path)
        store.teacher().committed()
        _ = store.keys, store.labels

    return statistics.median(seconds(everything) for _ in range(5))


def slab_ratio(path: Path) -> float:
    """Speed of a checked slab against zarr reading and decompressing the same bytes."""
    teacher = open_store(path).teacher()
    plain = zarr.open_group(str(path / "teachers" / "t"), mode="r")
    arrays = [plain[name] for name in ARRAYS]
    base, own = best(lambda i: [array[i % V] for array in arrays], lambda i: teacher.slab(i % V), 2 * V)  # type: ignore[index]
    return base / own


MEMORY = """
import sys
from pathlib import Path
from logitbank.stores import open_store
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024
teacher = open_store(sys.argv[1]).teacher()
teacher.block(0, 0, ["label_rank"])
before = peak()
slab = teacher.slab(1)
size = sum(array.nbytes for array in slab.values())
print((peak() - before) / size)
"""


def memory_ratio(path: Path) -> float:
    """Peak memory of loading one slab, in a process of its own, against the slab's size."""
    command = [sys.executable, "-c", MEMORY, str(path)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def results(num_rows: int) -> Iterator[tuple[str, float, str, float]]:
    """Name, value, comparison and goal of each figure."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.zarr"
        yield "writing, durable (rows/s)", write(path, num_rows), ">=", 200_000
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        overhead = sum(file.stat().st_size for file in path.rglob("zarr.json")) / size
        yield "metadata / store bytes", overhead, "<=", 0.01
        yield "opening, with commits, keys and labels (s)", opening(path), "<=", 1
        yield "slab speed / zarr reading the same bytes", slab_ratio(path), ">=", 0.7
        yield "slab peak memory / slab", memory_ratio(path), "<=", 1.25
        yield "verify, every byte (s)", seconds(lambda: verify_store(path)), "<=", 60


def main() -> None:
    """Print one JSON object per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_280_000)
    compare = {">=": operator.ge, "<=": operator.le}
    for name, value, sign, goal in results(parser.parse_args().rows):
        ok = compare[sign](value, goal)
        line = {"name": f"stores: {name}", "value": round(value, 4), "goal": f"{sign} {goal}", "ok": ok}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
