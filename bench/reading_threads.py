"""Threads against processes that read photographs, and the share of a picture's time that holds the interpreter's lock.

`python -m bench.reading_threads [--pictures N] [--rounds R]` prints one JSON object a line: {name, value, goal, ok}.
The same reading (decode, crop, resize: `Views.samples`) is done by 1 and 2 threads and by 1 and 2 processes of a
`DataLoader`, in turns, best of the rounds; starting them is not counted. Needs two cores that nobody else uses.

The lock: Pillow gives it up while it decodes and while it resizes. What a thread's processor time holds beside those
two is counted as holding the lock, which is too much rather than too little, and can be measured on a busy machine.
What 16 threads would gain is computed from it by Amdahl's law, n / (1 + (n - 1) share), and not measured; the lock
alone would allow 1 / share.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from bench.photographs import BATCH, write_pictures
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.datasets.resize_crop import STANDARD
from logitbank.pipeline.views import Views

TRANSFORMS = ("none", "rrc", "rrc+randaugment")
CORES = 16


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


class Clocked:
    """A decoder of Pillow whose work without the lock is timed."""

    def __init__(self, decoder: Any, free: list[float]) -> None:
        self._decoder, self._free = decoder, free

    def __getattr__(self, name: str) -> Any:
        return getattr(self._decoder, name)

    def decode(self, data: bytes) -> Any:
        return clocked(self._free, self._decoder.decode, data)


def clocked(free: list[float], work: Callable[..., Any], *args: Any, **options: Any) -> Any:
    start = time.thread_time()
    try:
        return work(*args, **options)
    finally:
        free[0] += time.thread_time() - start


def held_share(read: Callable[[], object], rounds: int) -> float:
    """The most of a thread's processor time that holds the lock: the median of the rounds."""
    free, decoder, resize = [0.0], Image._getdecoder, Image.Image.resize
    resized = partialmethod(lambda picture, *args, **options: clocked(free, resize, picture, *args, **options))
    shares = []
    with (
        mock.patch.object(Image, "_getdecoder", lambda *args: Clocked(decoder(*args), free)),
        mock.patch.object(Image.Image, "resize", resized),
    ):
        for _ in range(rounds):
            free[0], start = 0.0, time.thread_time()
            read()
            shares.append(1 - free[0] / (time.thread_time() - start))
    return float(np.median(shares))


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
    share = held_share(lambda: [batches[number] for number in range(min(len(batches), 4))], rounds)
    say(f"{transform}, lock held, share of a thread's time, at most", share)
    say(f"{transform}, {CORES} threads over 1, computed by Amdahl's law", CORES / (1 + (CORES - 1) * share))
    say(f"{transform}, threads over 1, the lock's own limit", 1 / share)


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
