"""Which losses bear a teacher that is wrong on some rows? Answers of real ResNets to CIFAR-10, corrupted on purpose.

    python -m bench.unreliable_teachers OUT --data 'torchvision:CIFAR10?root=DIR&split=test' --weights 'resnet{}.th'
        [--seeds 5] [--first 0] [--pairs pixels,features] [--page docs]

The published teachers know 99.8 % of the training rows, so students are distilled on half of the test images, where
7 to 8 % of the answers are wrong, and tested on the other half; a seed draws the halves, the corruption, the student's
start and the order of its rows. Every answer comes out of a store, is corrupted, and is cached again from an array.
Each student is a line of OUT/students.jsonl; what stands there is not trained again. Several processes, each with seeds
of its own, may share OUT once `--seeds 0` has written the teachers' answers. With --page,
explanation/unreliable-teachers.md there gets its tables, its plot and the figures as JSON.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from bench._students import MEAN, SCALING, STD
from bench._unreliable import CORRUPTIONS, METHODS, PAIRS, Pair, only, tiny
from bench._unreliable_page import gather, write_page
from logitbank import (
    Encoding,
    Inputs,
    Run,
    Split,
    Views,
    cache_teacher,
    load_split,
    load_student,
    open_answers,
    open_store,
    train_student,
)
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.fit.predict import predict
from logitbank.pipeline.folds import FoldPlan

# Says that no row was answered by a teacher that saw it: these never saw a test image.
UNSEEN = FoldPlan(num_folds=2, strategy="kfold")

Record = dict[str, Any]


def ask_teacher(out: Path, split: Split, pair: Pair, weights: str) -> None:
    """``resnet-DEPTH.zarr``, the answers to all images, and where the student reads it ``.npy``, the features [N, 128]:
    what the second stage makes of an image, in 2 x 2 cells."""
    teachers = load_teachers(split, f"resnet{pair.depth}", weights.format(pair.depth), preprocessing=SCALING)
    answers, path = NetworkTeacher(split, teachers, Views()), out / f"resnet-{pair.depth}"
    encoding = Encoding(kind="dense", num_classes=split.num_classes, bits=32)
    cache_teacher(answers, path.with_suffix(".zarr"), encoding=encoding)
    if pair.features and not path.with_suffix(".npy").exists():
        net: Any = teachers.teachers[0].model
        middle = nn.Sequential(
            net.conv1, net.bn1, nn.ReLU(), net.layer1, net.layer2, nn.AdaptiveAvgPool2d(2), nn.Flatten()
        )
        features_ND = predict(middle, split, preprocessing=SCALING).numpy()
        np.save(path.with_suffix(".part.npy"), features_ND)
        path.with_suffix(".part.npy").rename(path.with_suffix(".npy"))


def students(out: Path, split: Split, pairs: Mapping[str, Pair], seeds: range, done: set[Any]) -> Iterator[Record]:
    """Every student that is not done, seed by seed."""
    for seed in seeds:
        for name, pair in pairs.items():
            wanted = [
                (corruption, method)
                for corruption in pair.corruptions
                for method in pair.methods
                if (method != "ce" or corruption == pair.corruptions[0])
                and (name, seed, corruption, method) not in done
            ]
            with tempfile.TemporaryDirectory() as temporary:
                if wanted:
                    for record in of_seed(out, Path(temporary), split, pair, seed, wanted):
                        yield {"pair": name, "seed": seed} | record


def of_seed(
    out: Path,
    folder: Path,
    split: Split,
    pair: Pair,
    seed: int,
    wanted: Sequence[tuple[str, str]],
) -> Iterator[Record]:
    """The students of one pair and one draw of the halves."""
    answers = open_answers(open_store(out / f"resnet-{pair.depth}.zarr"))
    logits_NC = answers.logits(torch.arange(len(split)), 0).numpy()
    answers.close()
    samples = np.load(out / f"resnet-{pair.depth}.npy") if pair.features else split.samples[np.arange(len(split))]
    first, second = np.array_split(np.random.default_rng([seed, 0]).permutation(len(split)), 2)
    y = split.labels
    np.savez(folder / "d.npz", x=samples[first], y=y[first], x_test=samples[second], y_test=y[second])
    spec = f"npz:{folder}/d.npz?classes={split.num_classes}"
    own, test = load_split(spec), load_split(f"{spec}&split=test")
    for corruption in dict.fromkeys(corruption for corruption, _ in wanted):
        heard_NC = CORRUPTIONS[corruption].of(logits_NC[first], seed)
        np.save(folder / "logits.npy", heard_NC)
        store = folder / f"{list(CORRUPTIONS).index(corruption)}.zarr"
        teacher = ArrayTeacher(folder / "logits.npy", own, Views(), plan=UNSEEN)
        cache_teacher(teacher, store, encoding=Encoding(kind="dense", num_classes=split.num_classes, bits=32))
        inputs = Inputs(store=open_store(store), split=own, test=test)
        for method in [method for one, method in wanted if one == corruption]:
            found = train(folder / "run", pair, inputs, method, seed, heard_NC, logits_NC[second])
            yield {"corruption": corruption, "method": method} | found


def train(
    out: Path,
    pair: Pair,
    inputs: Inputs,
    method: str,
    seed: int,
    heard_NC: npt.NDArray[np.float32],
    teacher_NC: npt.NDArray[np.float32],
) -> Record:
    """A student, and what it says where its teacher was wrong: on rows it was taught, and on new ones.

    Args:
        out: Its folder, which is removed.
        pair, inputs, method, seed: What is trained.
        heard_NC: The stored answers to the training rows.
        teacher_NC: The teacher's own answers to the test rows.
    """
    loss, settings = METHODS[method]
    run = Run(
        store=str(inputs.store.path),
        data=inputs.split.spec,
        student=pair.student,
        loss=loss,
        settings=settings,
        training=replace(pair.training, seed=seed),
        device="cpu",
        threads=1,
        mean="" if pair.features else MEAN,
        std="" if pair.features else STD,
    )
    result = train_student(run, out, inputs=inputs)
    student, (split, test) = load_student(out, student=pair.student, device="cpu"), (inputs.split, inputs.test)
    shutil.rmtree(out)
    assert test is not None
    said_N, told_N = student.ask(split).argmax(1).numpy(), heard_NC.argmax(1)
    wrong_N, new_N = told_N != split.labels, teacher_NC.argmax(1) != test.labels
    return {
        **{key: round(float(result[key]), 5) for key in ("accuracy", "nll", "ece")},
        "teacher": round(1 - float(wrong_N.mean()), 5),
        "label": round(float((said_N == split.labels)[wrong_N].mean()), 5),
        "repeats": round(float((said_N == told_N)[wrong_N].mean()), 5),
        "new_label": round(float((student.ask(test).argmax(1).numpy() == test.labels)[new_N].mean()), 5),
        "seconds": round(result["seconds"], 2),
    }


def described(pairs: Mapping[str, Pair]) -> Record:
    """What was run, fit for JSON."""
    facts = {
        name: {
            "about": pair.about,
            "corruptions": list(pair.corruptions),
            "methods": list(pair.methods),
            "training": pair.training.attributes(),
        }
        for name, pair in pairs.items()
    }
    methods = {name: {"loss": loss, "settings": dict(settings)} for name, (loss, settings) in METHODS.items()}
    return {"pairs": facts, "methods": methods, "versions": library_versions()}


def key(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("pair", "seed", "corruption", "method"))


def main() -> int:
    """Prints a line for each student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--data", help="test images of CIFAR-10, as cli commands take them")
    parser.add_argument("--weights", help="of the teachers; {} is 20 or 56")
    parser.add_argument("--pairs", default=",".join(PAIRS))
    parser.add_argument("--corruptions", help="some of those of the pairs, separated by commas; default: all")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--tiny", action="store_true", help="two epochs, two losses: does it run?")
    parser.add_argument("--page", type=Path)
    arguments = parser.parse_args()
    if not (arguments.out and arguments.data and arguments.weights):
        print(json.dumps({"name": "unreliable_teachers", "skipped": "name a folder, --data and --weights"}))
        return 0
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    kept, split = arguments.out / "students.jsonl", load_split(arguments.data)
    pairs = {name: tiny(PAIRS[name]) if arguments.tiny else PAIRS[name] for name in arguments.pairs.split(",")}
    if arguments.corruptions:
        pairs = {name: only(pair, arguments.corruptions.split(",")) for name, pair in pairs.items()}
    records = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    for pair in pairs.values():
        ask_teacher(arguments.out, split, pair, arguments.weights)
    with kept.open("a") as file:
        seeds = range(arguments.first, arguments.first + arguments.seeds)
        for record in students(arguments.out, split, pairs, seeds, {key(one) for one in records}):
            records.append(record)
            print(json.dumps(record), file=file, flush=True)
            print(json.dumps(record), flush=True)
    if arguments.page:
        write_page(arguments.page, gather(records, described(pairs)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
