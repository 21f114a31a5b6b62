"""Reading photographs: views against a `DataLoader` of torchvision transforms with the same number of workers.

`python -m bench.photographs [--pictures N] [--workers W] [--rounds R]` prints one JSON object a line: {name, value,
goal, ok}. The JPEGs are made here, 500 x 375 pixels of smooth colours and noise, about 100 KB each. Both sides are run
in turns within one run, from the files to scaled float32 batches of 224 x 224; the ratio of rates takes the best of
each, since noise only adds. The ratio of processor times counts every thread and process, and is what a busy machine
still tells. Lines in ms say where one picture's processor time goes.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.datasets.resize_crop import STANDARD
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.views import Views, view_seeds
from logitbank.pipeline.views.geometry import crop_originals
from logitbank.pipeline.views.randaugment import randaugment_pictures

BATCH, GOAL = 64, 1.2
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def write_pictures(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(count):
        place = folder / f"class{number % 10}"
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noise = rng.normal(0, 12, (375, 500, 3))
        pixels = np.clip(np.asarray(coarse).astype(float) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number:05}.jpg", quality=85)


def ours(split: Split, views: Views, workers: int) -> Iterator[Tensor]:
    """As stage one and stage two read: threads make batches of bytes, which are scaled where the model is."""
    scaling = Preprocessing(mean=MEAN, std=STD, fit=STANDARD)
    batches = [np.arange(len(split))[start : start + BATCH] for start in range(0, len(split), BATCH)]
    for shown in in_order(lambda rows: views.samples(split, rows, 0, STANDARD), batches, workers):
        yield scaling(torch.from_numpy(shown))


def theirs(folder: Path, transform: str, workers: int) -> Iterator[Tensor]:
    """As everybody reads: processes decode, transform and scale, and hand batches over."""
    prepare_torchvision()
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    steps: dict[str, list[Any]] = {
        "none": [T.Resize(256), T.CenterCrop(224)],
        "rrc": [T.RandomResizedCrop(224), T.RandomHorizontalFlip()],
        "rrc+randaugment": [T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.RandAugment()],
    }
    data = ImageFolder(str(folder), T.Compose([*steps[transform], T.ToTensor(), T.Normalize(MEAN, STD)]))
    for inputs, _ in torch.utils.data.DataLoader(data, BATCH, num_workers=workers, prefetch_factor=2):
        yield inputs


def seconds(batches: Iterator[Tensor]) -> tuple[float, float]:
    """Wall time from the second batch on, since starting processes is no reading, and processor time of all."""
    before = sum(os.times()[:4])
    next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start, sum(os.times()[:4]) - before


def milliseconds(work: Callable[[], object], pictures: int) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return 1000 * best / pictures


def parts(split: Split) -> dict[str, Callable[[], object]]:
    """The work on the first pictures, step by step."""
    originals, rows = split.originals, np.arange(BATCH)
    assert originals is not None
    source, seeds = originals.source, view_seeds(0, split.keys[rows], 0)
    decoded = [source.original(row) for row in range(BATCH)]
    crops = crop_originals(originals, rows, seeds, STANDARD)
    scaling = Preprocessing(mean=MEAN, std=STD)
    box = (60, 80, 250, 300)
    return {
        "decoding": lambda: [source.original(row) for row in range(BATCH)],
        "crop and resize": lambda: [np.asarray(STANDARD.cut(picture, box, (224, 224))) for picture in decoded],
        "resize 256 and crop": lambda: [np.asarray(STANDARD(picture)) for picture in decoded],
        "rrc, whole": lambda: crop_originals(originals, rows, seeds, STANDARD),
        "randaugment": lambda: randaugment_pictures(crops, seeds),
        "scaling": lambda: scaling(torch.from_numpy(crops)),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=640)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pictures(folder, options.pictures)
        split = load_split(f"imagefolder:{folder}")
        assert len(split.keys)  # hashing the data is part of neither side
        for step, work in parts(split).items():
            value = round(milliseconds(work, BATCH), 3)
            print(
                json.dumps({"name": f"{step}, CPU ms a picture", "value": value, "goal": None, "ok": True}), flush=True
            )
        for transform in ("none", "rrc", "rrc+randaugment"):
            mine, other = [], []
            for _ in range(options.rounds):
                mine.append(seconds(ours(split, Views(transform=transform), options.workers)))
                other.append(seconds(theirs(folder, transform, options.workers)))
            for place, kind in enumerate(("rate", "processor")):
                ratio = min(each[place] for each in other) / min(each[place] for each in mine)
                what = f"views over DataLoader, {transform}, {options.workers} workers, {kind}"
                goal, ok = (GOAL, ratio >= GOAL) if kind == "rate" else (None, True)
                print(json.dumps({"name": what, "value": round(ratio, 3), "goal": goal, "ok": ok}), flush=True)
            rate = (options.pictures - BATCH) / min(wall for wall, _ in mine)
            what = f"views, {transform}, pictures/s"
            print(json.dumps({"name": what, "value": round(rate, 1), "goal": None, "ok": True}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
