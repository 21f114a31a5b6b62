"""Reading photographs: views against a `DataLoader` of torchvision transforms with the same number of workers.

`python -m bench.photographs [--pictures N] [--workers W] [--rounds R]` prints one JSON object a line: {name, value,
goal, ok}. The JPEGs are made here, 500 x 375 pixels of smooth colours and noise, about 100 KB each. Both sides are run
in turns within one run, from the files to scaled float32 batches of 224 x 224; the ratio of rates takes the best of
each, since noise only adds. The ratio of processor times counts every thread and process, and is what a busy machine
still tells. Lines in ms say where one picture's processor time goes.

The whole pass is everything that `cache-teacher` does with an image folder whose keys are noted, against "load,
transform, forward" over that `DataLoader`, both with the start of their workers and the same network, which is so small
that reading decides. A pass answers some rows twice: those that fit its tail predictor are here the share of all that
they are on ImageNet, and the 256 that measure its encoding weigh little because the pictures are gone through many
times.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.load import TeacherSet
from logitbank.pipeline.cache_teacher.teachers.networks import TeacherNetwork
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.ahead import in_order
from logitbank.pipeline.datasets.resize_crop import STANDARD
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.views import Views, view_seeds
from logitbank.pipeline.views.geometry import crop_originals
from logitbank.pipeline.views.randaugment import randaugment_pictures

BATCH, GOAL = 64, 1.2
PASS_GOAL, CLASSES = 1.05, 1000
PREDICTOR_SHARE = 64  # one row of so many: the default's 20,000 rows of ImageNet's 1.28 million
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


def theirs(folder: Path, transform: str, workers: int, times: int = 1) -> Iterator[Tensor]:
    """As everybody reads: processes decode, transform and scale, and hand batches over, ``times`` times."""
    prepare_torchvision()
    from torchvision import transforms as T
    from torchvision.datasets import ImageFolder

    steps: dict[str, list[Any]] = {
        "none": [T.Resize(256), T.CenterCrop(224)],
        "rrc": [T.RandomResizedCrop(224), T.RandomHorizontalFlip()],
        "rrc+randaugment": [T.RandomResizedCrop(224), T.RandomHorizontalFlip(), T.RandAugment()],
    }
    data = ImageFolder(str(folder), T.Compose([*steps[transform], T.ToTensor(), T.Normalize(MEAN, STD)]))
    tiled = torch.utils.data.Subset(data, times * [*range(len(data))])
    for inputs, _ in torch.utils.data.DataLoader(tiled, BATCH, num_workers=workers, prefetch_factor=2):
        yield inputs


def seconds(batches: Iterator[Tensor]) -> tuple[float, float]:
    """Wall time from the second batch on, since starting processes is no reading, and processor time of all."""
    before = sum(os.times()[:4])
    next(batches)
    start = time.perf_counter()
    for _ in batches:
        pass
    return time.perf_counter() - start, sum(os.times()[:4]) - before


def small_network() -> nn.Module:
    """A millisecond a batch: one convolution over patches."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 16, 16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, CLASSES)
    ).eval()


def tiled(split: Split, times: int) -> Split:
    """The pictures ``times`` times, as examples of as many classes as ImageNet has."""
    rows = np.tile(np.arange(len(split)), times)
    samples: Any = split.samples
    return replace(split, samples=samples.subset(rows), labels=split.labels[rows], num_classes=CLASSES, class_names=())


def whole_pass(split: Split, transform: str, workers: int, out: Path) -> None:
    """`cache-teacher` with its default encoding for so many classes."""
    scaling = Preprocessing(mean=MEAN, std=STD, fit=STANDARD)
    identity = {"architecture": "patches", "weights_sha256": "0" * 64}
    network = TeacherNetwork(model=small_network(), preprocessing=scaling, identity=identity)
    answering = NetworkTeacher(
        split,
        TeacherSet(teachers=(network,), seen=np.zeros(len(split), np.int8)),
        Views(transform=transform),
        compute=Compute(batch_size=BATCH, workers=workers),
    )
    encoding = Encoding(kind="topk", num_classes=CLASSES, top_k=10, bits=8)
    cache_teacher(answering, out, encoding=encoding, predictor_rows=len(split) // PREDICTOR_SHARE)


def bare_loop(folder: Path, transform: str, workers: int, times: int) -> None:
    """What anybody would write who wants no store; the sum keeps the work from being left out."""
    total = 0.0
    model = small_network()
    for inputs in theirs(folder, transform, workers, times):
        with torch.inference_mode():
            total += float(model(inputs).sum())


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall time, and processor time of all threads and processes."""
    start, before = time.perf_counter(), sum(os.times()[:4])
    work()
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


def say(name: str, value: float, goal: float | None = None, ok: bool = True) -> None:
    print(json.dumps({"name": name, "value": round(value, 3), "goal": goal, "ok": ok}), flush=True)


def compare_reading(split: Split, folder: Path, transform: str, workers: int, rounds: int) -> None:
    mine, other = [], []
    for _ in range(rounds):
        mine.append(seconds(ours(split, Views(transform=transform), workers)))
        other.append(seconds(theirs(folder, transform, workers)))
    for place, kind in enumerate(("rate", "processor")):
        ratio = min(each[place] for each in other) / min(each[place] for each in mine)
        goal, ok = (GOAL, ratio >= GOAL) if kind == "rate" else (None, True)
        say(f"views over DataLoader, {transform}, {workers} workers, {kind}", ratio, goal, ok)
    each_round = [b[0] / a[0] for a, b in zip(mine, other, strict=True)]
    say(f"views over DataLoader, {transform}, {workers} workers, rate, least of the rounds", min(each_round))
    say(f"views over DataLoader, {transform}, {workers} workers, rate, most of the rounds", max(each_round))
    say(f"views, {transform}, pictures/s", (len(split) - BATCH) / min(wall for wall, _ in mine))


def compare_pass(split: Split, folder: Path, transform: str, workers: int, times: int, rounds: int) -> None:
    many, whole, bare = tiled(split, times), [], []
    assert len(many.keys)  # from the notes, as in every pass but the first
    for number in range(rounds):
        out = folder.parent / f"{folder.name}-{number}.zarr"
        whole.append(timed(lambda out=out: whole_pass(many, transform, workers, out)))  # type: ignore[misc]
        shutil.rmtree(out)
        bare.append(timed(lambda: bare_loop(folder, transform, workers, times)))
    for place, kind in enumerate(("wall", "processor")):
        ratio = min(each[place] for each in whole) / min(each[place] for each in bare)
        goal, ok = (PASS_GOAL, ratio <= PASS_GOAL) if kind == "wall" else (None, True)
        say(f"cache-teacher over bare loop, {transform}, {len(many)} rows, {workers} workers, {kind}", ratio, goal, ok)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=640)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--times", type=int, default=20, help="How often the whole pass goes through the pictures")
    parser.add_argument("--pass-rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as cache:
        os.environ["LOGITBANK_CACHE"] = cache
        folder = Path(name)
        write_pictures(folder, options.pictures)
        split = load_split(f"imagefolder:{folder}")
        assert len(split.keys)  # hashing the data is part of neither side
        for step, work in parts(split).items():
            say(f"{step}, CPU ms a picture", milliseconds(work, BATCH))
        for transform in ("none", "rrc", "rrc+randaugment"):
            compare_reading(split, folder, transform, options.workers, options.rounds)
        compare_pass(split, folder, "rrc", options.workers, options.times, options.pass_rounds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
