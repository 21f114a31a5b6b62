"""Cost of stage one against the bare loop "load, transform, forward" of the same model, batch and views.

`python -m bench.cache_teacher [--rows N] [--teacher NAME] [--device cuda]` prints one JSON object a line: {name, value,
goal, ok}. Both sides are run in turns within one run; the ratio of wall times takes the best of each, since noise
only adds. The ratio of processor times counts what reads ahead and writes behind as if nothing overlapped; it is
printed without a goal of its own. The whole pass is everything the command does: describing the data, a sample that
measures fidelity, encoding, durable writing, reading back and summing up. The same pass with answers from an array
says what all of that costs without the teacher.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.load import TeacherSet, load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.views import Views

BATCH = 256
GOAL = 1.05


def images(num_rows: int, num_classes: int) -> Split:
    """Random pixels: what a pass costs does not depend on them."""
    rng = np.random.default_rng(0)
    return Split(
        name="noise",
        split="train",
        spec="noise",
        samples=rng.integers(0, 256, (num_rows, 32, 32, 3), dtype=np.uint8),
        labels=rng.integers(0, num_classes, num_rows),
        num_classes=num_classes,
    )


def bare_loop(split: Split, teachers: TeacherSet, views: Views, device: torch.device) -> float:
    """What anybody would write who wants no store; the sum keeps the work from being left out."""
    teacher, total = teachers.teachers[0], 0.0
    for start in range(0, len(split), BATCH):
        samples = torch.from_numpy(views.samples(split, slice(start, start + BATCH), 0)).to(device)
        with torch.inference_mode():
            total += float(teacher.model(teacher.preprocessing(samples)).sum())
    return total


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - processor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6_400)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    torch.set_num_threads(1)
    split, device = images(options.rows, options.classes), torch.device(options.device)
    assert len(split.keys)  # hashing the data is part of neither side: a training script reads it all as well
    teachers = load_teachers(split, options.teacher, "random-init")
    views = Views(transform="flip-crop", num_views=1)
    encoding = Encoding(kind="dense", num_classes=options.classes, bits=8)
    answers = NetworkTeacher(split, teachers, views, compute=Compute(batch_size=BATCH), device=device)
    bare_loop(images(2 * BATCH, options.classes), teachers, views, device)
    bare, whole, writing = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.rounds):
            out = Path(folder) / f"{number}.zarr"
            bare.append(timed(lambda: bare_loop(split, teachers, views, device)))
            whole.append(timed(lambda out=out: cache_teacher(answers, out, encoding=encoding)))  # type: ignore[misc]
        np.save(f"{folder}/logits.npy", answers(np.arange(options.rows), 0).cpu().numpy())
        spoken = ArrayTeacher(Path(f"{folder}/logits.npy"), split, views)
        for number in range(3):
            out = Path(folder) / f"spoken-{number}.zarr"
            writing.append(timed(lambda out=out: cache_teacher(spoken, out, encoding=encoding)))  # type: ignore[misc]
    wall, processor = (min(w[i] for w in whole) / min(b[i] for b in bare) for i in (0, 1))
    name = f"cache-teacher over bare loop, {options.teacher}, {options.rows} rows, {device.type}"
    print(json.dumps({"name": f"{name}, wall", "value": round(wall, 3), "goal": GOAL, "ok": wall <= GOAL}))
    print(json.dumps({"name": f"{name}, processor", "value": round(processor, 3), "goal": None, "ok": True}))
    share = min(w[0] for w in writing) / min(b[0] for b in bare)
    name_of_share = f"encoding and writing / teacher pass, {options.teacher}, {options.rows} rows, {device.type}, wall"
    print(json.dumps({"name": name_of_share, "value": round(share, 4), "goal": 0.03, "ok": share <= 0.03}))
    rate = options.rows / min(w[0] for w in whole)
    print(json.dumps({"name": f"{name}, rows/s", "value": round(rate, 1), "goal": None, "ok": True}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
