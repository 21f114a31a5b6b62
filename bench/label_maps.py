"""What one pass with label maps is worth, against stored views: bytes of an example, and accuracy at the same steps.

    python -m bench.label_maps OUT --data 'torchvision:CIFAR10?root=DIR&split=train' --weights resnet20.th

The teacher, the student, its steps and the augmentation are those of ``bench.views``. A store of V views holds the
teacher's answers to V crops of each image; a label map of G x G what its head says of each place of the whole image,
and students take the answer to a fresh crop in every epoch from it. What is finished in OUT is not done again.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.views import LOSSES, SCALING, STUDENT, TEACHER
from logitbank import Encoding, Run, Training, Views, cache_teacher, copy_store, load_split, open_store, train_student
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.train_student.compare import compare
from logitbank.pipeline.train_student.inputs import open_inputs

Results = dict[str, dict[int, dict[str, Any]]]
"""Name of a store -> seed -> result."""


def make_stores(out: Path, data: str, weights: str, grids: list[int], views: list[int]) -> dict[str, Path]:
    """``map-G.zarr`` and ``views-V.zarr``, in 8 bits, by name."""
    split = load_split(data)
    encoding = Encoding(kind="dense", num_classes=split.num_classes, bits=8)
    asked = {f"views-{max(views)}": Views(transform="flip-crop", num_views=max(views))}
    asked |= {f"map-{grid}": Views(label_map=grid) for grid in grids}
    stores = {name: out / f"{name}.zarr" for name in asked}
    for name, path in stores.items():
        teachers = load_teachers(split, TEACHER, weights, preprocessing=SCALING)
        cache_teacher(NetworkTeacher(split, teachers, asked[name]), path, encoding=encoding)
    for count in views:
        path = out / f"views-{count}.zarr"
        if count != max(views):
            copy_store(stores[f"views-{max(views)}"], path, num_views=count)
        stores[path.stem] = path
    return stores


def train_all(out: Path, data: str, stores: dict[str, Path], epochs: int, seeds: int) -> Results:
    """Every student, seed by seed, so that a run that is stopped has whole seeds."""
    found: Results = {name: {} for name in stores}
    mean, std = (",".join(map(str, values)) for values in (SCALING.mean, SCALING.std))
    base = Run(store="", data=data, student=STUDENT, loss="kd", settings=LOSSES["kd"], mean=mean, std=std, threads=1)
    for seed in range(seeds):
        training = Training(epochs=epochs, batch_size=128, lr=0.05, seed=seed)
        for name, path in stores.items():
            crops = "flip-crop" if name.startswith("map") else ""
            run = replace(base, store=str(path), transform=crops, training=training)
            folder = out / "runs" / f"{name}-seed{seed}"
            folder.parent.mkdir(exist_ok=True)
            found[name][seed] = train_student(run, folder, inputs=open_inputs(run))
            print(json.dumps({"name": folder.name, "accuracy": found[name][seed]["accuracy"]}), flush=True)
    return found


def table(found: Results, stores: dict[str, Path], baseline: str) -> str:
    """Markdown."""
    lines = ["| store | passes | bytes an example | n | accuracy, % (std) | against fresh views, points | NLL |"]
    lines.append("|---|---:|---:|---:|---:|---:|---:|")
    for row in compare(found, baseline):
        store = open_store(stores[row.name])
        size = store.num_views * (store.positions or 1) * store.teacher(None).bytes_per_row()
        difference = (
            "" if row.name == baseline else row.difference_text().replace("+-", "±").strip().replace("*", "\\*")
        )
        accuracy = f"{100 * row.mean:.2f} ({100 * row.std:.2f})"
        cells = (row.name, store.num_views, f"{size:.0f}", row.num_seeds, accuracy, difference, f"{row.nll:.3f}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> int:
    """Prints a line for each student and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--data", help="training images, as cli commands take them")
    parser.add_argument("--weights", help=f"of the {TEACHER}")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--grids", default="1,2,4,8")
    parser.add_argument("--views", default="1,2,4,8")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    if not (arguments.out and arguments.data and arguments.weights):
        print(json.dumps({"name": "label_maps", "skipped": "name a folder, --data and --weights"}))
        return 0
    torch.set_num_threads(1)
    grids, views = ([int(number) for number in text.split(",")] for text in (arguments.grids, arguments.views))
    data = f"{arguments.data}{'&' if '?' in arguments.data else '?'}limit={arguments.rows}"
    arguments.out.mkdir(parents=True, exist_ok=True)
    stores = make_stores(arguments.out, data, arguments.weights, grids, views)
    print(
        table(train_all(arguments.out, data, stores, arguments.epochs, arguments.seeds), stores, f"views-{max(views)}")
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
