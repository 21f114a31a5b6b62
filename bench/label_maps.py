"""What one pass with label maps is worth, against stored views: bytes of an example, and accuracy at the same steps.

    python -m bench.label_maps OUT --data 'torchvision:CIFAR10?root=DIR&split=train' --weights resnet20.th [--seeds 5]
    python -m bench.label_maps OUT --page docs

The teacher, the student and its steps are those of ``bench.views``. A store of V views holds the teacher's answers to V
crops of each picture; a label map of G x G what its head says of each place of the whole picture, and students take the
answer to a fresh crop in every epoch from it. A seed has pictures of its own, as long as there are enough, a start of
its own, and crops of its own. Each student is a line of OUT/students.jsonl; what stands there is not trained again, and
processes with other seeds (--first) or --transforms may write to the same folder. Without --data nothing is trained.
With --page, explanation/views.md there gets the table of all lines, and explanation/label-maps.json the figures.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench._label_maps_page import Record, in_order, table, write_page
from bench._students import MEAN, SCALING, STD
from bench.views import LOSSES, STUDENT, TEACHER
from logitbank import Encoding, Inputs, Run, Split, Training, Views, cache_teacher, copy_store, load_split, open_store
from logitbank import train_student as train
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import with_split
from logitbank.pipeline.files.versions import library_versions


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What is the same in every line of a folder."""

    rows: int
    epochs: int
    weights: str
    device: str


def of_seed(
    data: Split, test: Split, folder: Path, setting: Setting, seed: int, wanted: Mapping[str, Sequence[str]]
) -> Iterator[Record]:
    """A line for each student of one draw of the pictures.

    Args:
        data: Pictures to draw from.
        test: Pictures to measure on.
        folder: Empty.
        setting: What is the same for every seed.
        seed: Whose.
        wanted: Of each transform the methods: ``labels``, ``map-G``, ``views-V``.
    """
    own = np.arange(seed * setting.rows, (seed + 1) * setting.rows) % len(data)
    x, x_test = data.samples[own], test.samples[:]
    np.savez(folder / "pictures.npz", x=x, y=data.labels[own], x_test=x_test, y_test=test.labels)
    spec = f"npz:{folder}/pictures.npz?classes={data.num_classes}"
    split, few = load_split(spec), load_split(with_split(spec, "test"))
    for number, (transform, methods) in enumerate(wanted.items()):
        stores = make_stores(folder / str(number), split, transform, methods, setting, seed)
        for method, path in stores.items():
            found = student(path, split, few, transform, method, setting, seed)
            yield {"transform": transform, "method": method, "seed": seed, **size_of(path, method), **found}


def make_stores(
    out: Path, split: Split, transform: str, methods: Sequence[str], setting: Setting, seed: int
) -> dict[str, Path]:
    """The store that each method trains from, in 8 bits; fewer views are the first of the most, as labels have them."""
    out.mkdir()
    names = {method: f"views-{setting.epochs}" if method == "labels" else method for method in methods}
    counts = {name: int(name.partition("-")[2]) for name in names.values()}
    most = max((count for name, count in counts.items() if name.startswith("views")), default=0)
    asked = {name: Views(label_map=count, seed=seed) for name, count in counts.items() if name.startswith("map")}
    if most:
        asked[f"views-{most}"] = Views(transform=transform, num_views=most, seed=seed)
    encoding = Encoding(kind="dense", num_classes=split.num_classes, bits=8)
    for name, views in asked.items():
        teachers = load_teachers(split, TEACHER, setting.weights, preprocessing=SCALING)
        answers = NetworkTeacher(split, teachers, views, device=torch.device(setting.device))
        cache_teacher(answers, out / f"{name}.zarr", encoding=encoding)
    for name in counts.keys() - asked.keys():
        copy_store(out / f"views-{most}.zarr", out / f"{name}.zarr", num_views=counts[name])
    return {method: out / f"{name}.zarr" for method, name in names.items()}


def size_of(store: Path, method: str) -> dict[str, float]:
    """Passes of the teacher over the pictures, and bytes of an example; of labels alone none."""
    if method == "labels":
        return {"passes": 0, "bytes": 0}
    opened = open_store(store)
    row = opened.teacher(None).bytes_per_row() * (opened.positions or 1)
    return {"passes": opened.num_views, "bytes": round(opened.num_views * row, 1)}


def student(
    store: Path, split: Split, test: Split, transform: str, method: str, setting: Setting, seed: int
) -> dict[str, float]:
    """Measures on the test pictures, as they are."""
    loss = "ce" if method == "labels" else "kd"
    run = Run(
        store=str(store),
        data=split.spec,
        student=STUDENT,
        loss=loss,
        settings=LOSSES[loss],
        training=Training(epochs=setting.epochs, batch_size=128, lr=0.05, seed=seed),
        transform=transform if method.startswith("map") else "",
        mean=MEAN,
        std=STD,
        device=setting.device,
        threads=1,
    )
    with tempfile.TemporaryDirectory() as out:
        result = train(run, Path(out), inputs=Inputs(store=open_store(store), split=split, test=test))
    return {key: round(float(result[key]), 5) for key in ("accuracy", "nll", "ece", "seconds")}


def read_lines(out: Path, facts: Mapping[str, Any]) -> list[Record]:
    """What is finished, of one setting.

    Raises:
        ValueError: Lines of another setting.
    """
    path = out / "students.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    for record in records:
        for key, value in facts.items():
            if record[key] != value:
                raise ValueError(f"{path} has students of {key} {record[key]}, not {value}; name another folder")
    return records


def wanted_of(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Of each transform its methods, the baseline first: a fresh view in every epoch."""
    views, grids = ([int(number) for number in text.split(",")] for text in (arguments.views, arguments.grids))
    counts = [arguments.epochs, *sorted({view for view in views if view < arguments.epochs}, reverse=True)]
    methods = [*(f"views-{count}" for count in counts), *(f"map-{grid}" for grid in grids), "labels"]
    return dict.fromkeys(arguments.transforms.split(","), methods)


def train_seeds(arguments: argparse.Namespace) -> None:
    """Writes the lines that are missing, seed by seed."""
    setting = Setting(rows=arguments.rows, epochs=arguments.epochs, weights=arguments.weights, device=arguments.device)
    data, test = load_split(arguments.data), load_split(with_split(arguments.data, "test"))
    facts = {"rows": setting.rows, "epochs": setting.epochs, "tests": len(test)}
    arguments.out.mkdir(parents=True, exist_ok=True)
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        done = {(record["transform"], record["method"], record["seed"]) for record in read_lines(arguments.out, facts)}
        missing = {
            transform: left
            for transform, methods in wanted_of(arguments).items()
            if (left := [method for method in methods if (transform, method, seed) not in done])
        }
        with tempfile.TemporaryDirectory() as folder:
            for record in of_seed(data, test, Path(folder), setting, seed, missing) if missing else ():
                line = json.dumps({**record, **facts, "torch": library_versions()["torch"], "device": setting.device})
                with (arguments.out / "students.jsonl").open("a") as file:
                    file.write(f"{line}\n")
                print(line, flush=True)


def main() -> int:
    """Prints a line for each student, and the table of all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--data", help="pictures, as cli commands take them")
    parser.add_argument("--weights", help=f"of the {TEACHER}")
    parser.add_argument("--rows", type=int, default=2000, help="pictures of a seed")
    parser.add_argument("--transforms", default="flip-crop,rrc?scale=0.25,rrc")
    parser.add_argument("--grids", default="1,4,8")
    parser.add_argument("--views", default="1,4,8")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    if not arguments.out or bool(arguments.data) != bool(arguments.weights) or not (arguments.data or arguments.page):
        print(json.dumps({"name": "label_maps", "skipped": "name a folder, --data and --weights"}))
        return 0
    torch.set_num_threads(1)
    if arguments.data:
        train_seeds(arguments)
    records = in_order(read_lines(arguments.out, {}))
    print(table(records))
    if arguments.page:
        write_page(arguments.page, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
