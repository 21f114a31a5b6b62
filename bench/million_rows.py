"""Seconds from opening tar shards of a million rows to the first batch, when nothing is noted and when keys are.

`python -m bench.million_rows [--rows N] [--shards S]` prints one JSON object a line: {name, value, goal, ok}. The
pictures are tiny PNGs, so that the index is what costs; the shards take 2 KB a row of the temporary folder, as do notes
of a cache folder of their own. ``begun`` is what `cache-teacher` does before its first row as well: it describes the
data, answers 1,000 rows that measure its encoding, and writes keys and labels; the rows that fit a tail predictor are
left out, since what they cost is reading.
"""

import argparse
import io
import json
import os
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from bench.photographs import MEAN, STD, small_network
from logitbank.pipeline.cache_teacher.begin import begin_pass
from logitbank.pipeline.cache_teacher.settings import Compute
from logitbank.pipeline.cache_teacher.teachers.load import TeacherSet
from logitbank.pipeline.cache_teacher.teachers.networks import TeacherNetwork
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.resize_crop import STANDARD
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models import Preprocessing
from logitbank.pipeline.views import Views

BATCH, CLASSES = 256, 1000


def write_shards(folder: Path, rows: int, shards: int) -> None:
    """Samples of one picture and its class; what follows the picture's end makes each file another one."""
    made = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(made, "PNG")
    for shard, own in enumerate(np.array_split(np.arange(rows), shards)):
        with (folder / f"train-{shard:03}.tar").open("wb") as file:
            for row in own.tolist():
                file.write(member(f"{row:08}.png", made.getvalue() + row.to_bytes(4, "big")))
                file.write(member(f"{row:08}.cls", str(row % CLASSES).encode()))
            file.write(bytes(2 * tarfile.BLOCKSIZE))


def member(name: str, data: bytes) -> bytes:
    header = tarfile.TarInfo(name)
    header.size = len(data)
    return header.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE)


def teacher_of(split: Split) -> NetworkTeacher:
    scaling = Preprocessing(mean=MEAN, std=STD, fit=STANDARD)
    identity = {"architecture": "patches", "weights_sha256": "0" * 64}
    network = TeacherNetwork(model=small_network(), preprocessing=scaling, identity=identity)
    seen = TeacherSet(teachers=(network,), seen=np.zeros(len(split), np.int8))
    return NetworkTeacher(split, seen, Views(transform="rrc"), compute=Compute(batch_size=BATCH))


def opened(folder: Path, name: str, out: Path) -> None:
    """Opens the data as a command does that has seen nothing of it in this process."""
    start = time.perf_counter()
    split = load_split(f"webdataset:{folder}/train-*.tar")
    say(f"{name}, index", time.perf_counter() - start)
    assert len(split.keys)
    say(f"{name}, index and keys", time.perf_counter() - start)
    teacher = teacher_of(split)
    next(teacher.batches(np.arange(2 * BATCH), 0))
    say(f"{name}, to the first batch", time.perf_counter() - start)
    encoding = Encoding(kind="topk", num_classes=CLASSES, top_k=10, bits=8)
    begin_pass(teacher, out, encoding=encoding, predictor_rows=0)
    say(f"{name}, to the first batch, and begun", time.perf_counter() - start)


def say(name: str, value: float) -> None:
    print(json.dumps({"name": f"{name}, s", "value": round(value, 2), "goal": None, "ok": True}), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=10)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        os.environ["LOGITBANK_CACHE"] = f"{name}/cache"
        start = time.perf_counter()
        write_shards(Path(name), options.rows, options.shards)
        say(f"{options.rows} rows, writing the shards", time.perf_counter() - start)
        for number, which in enumerate(("first", "second", "third")):
            opened(Path(name), f"{options.rows} rows, {which} opening", Path(name) / f"{number}.zarr")
    return 0


if __name__ == "__main__":
    sys.exit(main())
