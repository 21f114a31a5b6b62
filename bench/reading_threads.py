"""Threads against processes that read photographs, and the share of a picture's time that holds the interpreter's lock.

`python -m bench.reading_threads [--pictures N] [--rounds R]` prints one JSON object a line: {name, value, goal, ok}.
The same reading (decode, crop, resize: `Views.samples`) is done by 1 and 2 threads and by 1 and 2 processes of a
`DataLoader`, in turns, best of the rounds; starting them is not counted. Needs two cores that nobody else uses.

The lock: a thread that counts in plain Python holds it whenever the reader does not. What it counts less than when it
is alone is the time that the reader held the lock; caches and clocks that both share make that too much rather than too
little. What 16 threads would gain is computed from it by Amdahl's law, n / (1 + (n - 1) share), and not measured; the
lock alone allows no more than 1 / share.
"""

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.photographs import BATCH, write_pictures
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.datasets.resize_crop import STANDARD
from logitbank.pipeline.views import Views

TRANSFORMS = ("none", "rrc", "rrc+randaugment")
CORES, SWITCH_SECONDS = 16, 1e-4


class Batches(torch.utils.data.Dataset[Any]):
    """Batches of a split's views, made where they are asked for."""

    def __init__(self, split: Split, transform: str) -> None:
        self.split, self.views = split, Views(transform=transform)
        self.rows = np.split(np.arange(len(split)), range(BATCH, len(split), BATCH))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, number: int) -> Any:
        return torch.from_numpy(self.views.samples(self.split, self.rows[number], 0, STANDARD))


def by_threads(batches: Batches, workers: int) -> Iterator[Any]:
    return in_order(batches.__getitem__, range(len(batches)), workers)


def by_processes(batches: Batches, workers: int) -> Iterator[Any]:
    return iter(torch.utils.data.DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=2))


def rate(made: Iterator[Any]) -> float:
    """Pictures a second from the second batch on."""
    next(made)
    start, count = time.perf_counter(), 0
    for batch in made:
        count += len(batch)
    return count / (time.perf_counter() - start)


def counted(work: Callable[[], object]) -> tuple[float, float]:
    """What a thread in plain Python counts a second beside ``work``, and the seconds that ``work`` takes."""
    count, done = [0], threading.Event()

    def spin() -> None:
        while not done.is_set():
            for _ in range(1000):
                count[0] += 1

    spinner = threading.Thread(target=spin)
    spinner.start()
    start, before = time.perf_counter(), count[0]
    work()
    wall, found = time.perf_counter() - start, count[0] - before
    done.set()
    spinner.join()
    return found / wall, wall


def held_seconds(read: Callable[[], object], rounds: int) -> float:
    """How long ``read`` holds the interpreter's lock: the median of the rounds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_SECONDS)  # or each time that the reader wants the lock would cost it 5 ms
    try:
        held = []
        for _ in range(rounds):
            alone, _ = counted(lambda: time.sleep(1.0))
            beside, wall = counted(read)
            held.append((1 - beside / alone) * wall)
        return float(np.median(held))
    finally:
        sys.setswitchinterval(usual)


def report(split: Split, transform: str, rounds: int) -> None:
    batches = Batches(split, transform)
    ways = {"thread": by_threads, "process": by_processes}
    best: dict[tuple[str, int], float] = {}
    for _ in range(rounds):
        for kind, read in ways.items():
            for workers in (1, 2):
                found = rate(read(batches, workers))
                best[kind, workers] = max(found, best.get((kind, workers), 0.0))
    for (kind, workers), pictures in best.items():
        say(f"{transform}, {workers} {kind}, pictures/s", pictures)
    for kind in ways:
        say(f"{transform}, 2 over 1 {kind}", best[kind, 2] / best[kind, 1])
    few = range(min(len(batches), 4))
    held = held_seconds(lambda: [batches[number] for number in few], rounds) / sum(len(batches.rows[n]) for n in few)
    share = held * best["thread", 1]
    say(f"{transform}, lock held, ms a picture", 1000 * held)
    say(f"{transform}, lock held, share of a thread's time", share)
    say(f"{transform}, {CORES} threads over 1, computed by Amdahl's law", CORES / (1 + (CORES - 1) * share))
    say(f"{transform}, threads over 1, at most by the lock", 1 / share)


def say(name: str, value: float) -> None:
    print(json.dumps({"name": name, "value": round(value, 3), "goal": None, "ok": True}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=640)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as cache:
        os.environ["LOGITBANK_CACHE"] = cache
        write_pictures(Path(name), options.pictures)
        split = load_split(f"imagefolder:{name}")
        assert len(split.keys)
        for transform in TRANSFORMS:
            report(split, transform, options.rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
