"""Speed of encoding and decoding, and bytes of whole stores of real answers.

`python -m bench.encoding` prints one JSON object per line: {name, value, goal, ok}. C = 1000, k = 10, the best of many
rounds, since noise only adds. The encoder's speed is the processor time of one thread times two cores; decoding is
measured by the wall clock in two processes at once, two students that read one store. The process first starts itself
again with glibc told to keep freed memory. Bytes need LOGITBANK_DATA: whole stores on disk of 20,000
examples by 8 views made from the 1,000 real rows of logits/nips17_logits.npy, each with noise (standard
deviation 0.3) and with classes renumbered at random, so that no row repeats another's bytes; constants
count as if shared by 1.28 million rows.
"""

import json
import os
import statistics
import subprocess
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
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding, with_tail_shift
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.views import Views
from logitbank.stores import TeacherWriter, create_store, open_store

CLASSES, TOP_K, BATCH, CORES = 1000, 10, 256, 2
TOPK = Encoding(kind="topk", num_classes=CLASSES, top_k=TOP_K)
TAIL = Encoding(kind="topk+tail", num_classes=CLASSES, top_k=TOP_K, tail_bits=2)
NUM_EXAMPLES, NUM_VIEWS, SHARED_ROWS = 20_000, 8, 1_280_000
ROWS, ROUNDS = 256 * 100, 20  # of the store that students read


def report(name: str, value: float, goal: float | None, ok: bool) -> None:
    """One line."""
    line = {"name": f"encoding/{name}", "value": round(value, 3), "goal": goal, "ok": ok}
    print(json.dumps(line), flush=True)


def best_seconds(run: Callable[[], object], rounds: int, repeats: int = 10) -> float:
    """Least time of one call, over rounds of several calls."""
    run()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        for _ in range(repeats):
            run()
        times.append((time.process_time() - begin) / repeats)
    return min(times)


def made_up_logits(num_rows: int) -> Tensor:
    """Logits of low rank plus noise, so that a predictor helps."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(64, CLASSES, generator=generator) / 4
    features = torch.randn(num_rows, 64, generator=generator)
    return features @ weights + 0.5 * torch.randn(num_rows, CLASSES, generator=generator)


def speeds() -> None:
    """Encoder, slab preparation, and shuffled batches from a prepared slab to dense logits."""
    logits_NC, labels_N = made_up_logits(4096), torch.arange(4096) % CLASSES
    predictor = fit_predictor(logits_NC, TOPK)
    rate = CORES * 4096 / best_seconds(lambda: encode(logits_NC, labels_N, TOPK), 40, 1)
    report("encode_rows_per_s", rate, 200_000, rate >= 200_000)
    stored = encode(logits_NC, labels_N, TOPK)
    arrays = {name: torch.from_numpy(array) for name, array in stored.items()}
    rate = CORES * 4096 / best_seconds(lambda: with_tail_shift(arrays, labels_N, TOPK, predictor=predictor), 10, 2)
    report("prepare_rows_per_s", rate, None, True)


def students(num_students: int = CORES) -> None:
    """Shuffled batches from one store to dense logits, as stage two takes them, in several processes at once."""
    logits_NC, num_rows = made_up_logits(ROWS), ROWS
    rng = np.random.default_rng(0)
    split = Split(
        name="bench",
        split="train",
        spec="bench",
        samples=rng.random((num_rows, 4), dtype=np.float32),
        labels=rng.integers(0, CLASSES, num_rows),
        num_classes=CLASSES,
    )
    with tempfile.TemporaryDirectory() as folder:
        np.save(f"{folder}/logits.npy", logits_NC.numpy())
        answers = ArrayTeacher(Path(f"{folder}/logits.npy"), split, Views())
        cache_teacher(answers, Path(f"{folder}/s.zarr"), encoding=TOPK, predictor_rows=4096)
        environment = os.environ | {"LOGITBANK_CACHE": folder}
        command = [sys.executable, "-m", "bench.encoding", "--student", f"{folder}/s.zarr"]
        processes = [
            subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(num_students)
        ]
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()  # it is ready
        found = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in processes:
            found.append(json.loads(process.communicate()[0]))
    rate = sum(one["rows_per_s"] for one in found)
    of_write = statistics.mean(one["of_write"] for one in found)
    ok = rate >= 1_000_000 or of_write <= 1.5
    report(f"gather_and_decode_rows_per_s_{num_students}_processes_wall_clock", rate, 1_000_000, ok)
    report("gather_and_decode_over_writing_the_dense_array", of_write, 1.5, ok)


def student(store: Path) -> None:
    """One of the processes: the best of many rounds by the wall clock, since noise only adds."""
    answers = StoredAnswers(open_store(store))
    batches = torch.randperm(ROWS, generator=torch.Generator().manual_seed(0)).split(BATCH)  # type: ignore[no-untyped-call]
    dense = torch.empty(BATCH, CLASSES)

    def every(work: Callable[[Tensor], object]) -> float:
        begin = time.perf_counter()
        for rows in batches:
            work(rows)
        return (time.perf_counter() - begin) / len(batches)

    def answer(rows_B: Tensor) -> Tensor:
        return answers.logits(rows_B, 0)

    every(answer)
    print("ready", flush=True)
    sys.stdin.readline()
    rounds = [(every(answer), every(lambda rows: dense.fill_(1.0))) for _ in range(ROUNDS)]
    seconds, write = (min(times[i] for times in rounds) for i in (0, 1))
    print(json.dumps({"rows_per_s": BATCH / seconds, "of_write": seconds / write}))
    answers.close()


def examples_of(logits_NC: Tensor) -> Tensor:
    """NUM_EXAMPLES rows that look like the real ones and share no bytes with one another."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.cat([logits_NC[:, torch.randperm(CLASSES, generator=generator)] for _ in range(NUM_EXAMPLES // 1000)])
    return noisy(rows[torch.randperm(len(rows), generator=generator)], 100)


def noisy(logits: Tensor, seed: int) -> Tensor:
    """One view of the rows."""
    return logits + 0.3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(seed))


def store_bytes(logits: Tensor, labels: Tensor, encoding: Encoding, predictor: TailPredictor, num_views: int) -> float:
    """Bytes of a whole store over its rows; constants as their share of SHARED_ROWS rows."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "S.zarr"
        dataset = {"name": "bench", "split": "train", "num_examples": NUM_EXAMPLES, "num_classes": CLASSES}
        create_store(
            path,
            dataset={**dataset, "fingerprint": "0"},
            views={"num_views": num_views},
            keys=np.random.default_rng(0).integers(2**63, size=NUM_EXAMPLES).astype(np.uint64),
            labels=labels.numpy().astype(np.int32),
        )
        writer = TeacherWriter(
            path,
            "t",
            identity={},
            encoding=encoding.attributes(),
            arrays=encoding.row_arrays(),
            constants=predictor.constants(),
            block_rows=NUM_EXAMPLES,
        )
        for cell in writer.pending():
            writer.write(cell, encode(noisy(logits, cell.view), labels, encoding, predictor=predictor))
        writer.finish(fidelity={})
        files = [file for file in path.rglob("*") if file.is_file()]
        constants = set(predictor.constants())
        everything = sum(file.stat().st_size for file in files)
        shared = sum(file.stat().st_size for file in files if constants & set(file.parts))
    return (everything - shared) / (NUM_EXAMPLES * num_views) + shared / SHARED_ROWS


def sizes(folder: str) -> None:
    """Whole stores of `topk` and `topk+tail`."""
    real_NC = torch.from_numpy(np.load(Path(folder) / "logits" / "nips17_logits.npy"))
    logits = examples_of(real_NC)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=torch.Generator().manual_seed(2)).squeeze(1)
    for encoding, name, goal in ((TOPK, "topk_10", 27), (TAIL, "topk_tail_10_2_bits", 300)):
        predictor = fit_predictor(real_NC, encoding)
        assert predictor is not None
        for num_views in (NUM_VIEWS, 1):
            size = store_bytes(logits, labels, encoding, predictor, num_views)
            held = goal if num_views == NUM_VIEWS else None  # with one view, its key and label weigh in full
            report(f"{name}_bytes_{num_views}_views", size, held, held is None or size <= held)


def main() -> int:
    """All of it."""
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--student"]:
        student(Path(sys.argv[2]))
        return 0
    speeds()
    students()
    folder = os.environ.get("LOGITBANK_DATA")
    if folder:
        sizes(folder)
    else:
        print(json.dumps({"name": "encoding/bytes", "skipped": "set LOGITBANK_DATA to a folder with real logits"}))
    return 0


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, "-m", "bench.encoding", *sys.argv[1:]], os.environ | KEEP_MEMORY)
    sys.exit(main())
