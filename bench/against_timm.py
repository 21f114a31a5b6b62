"""The same distillation twice: in plain torch and timm with the teacher run online, and through a store.

`python -m bench.against_timm DATA [--images N] [--epochs E] [--seeds S]` prints one JSON object a line: {name, value,
goal, ok}, and the figures behind them. ResNet-20 learns CIFAR-10 from the real ResNet-56, with batches of 64, SGD,
cosine and KD at temperature 4, on one CPU thread. DATA, by default LOGITBANK_DATA, is the folder of
docs/reference/benchmark-data.md.

Both start from the same weights and see the same rows in the same order; each draws its own crops and flips. Times are
the process's own, so that neighbours on the machine do not count, and leave out the first epoch, which warms up.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench._data import cifar_root, resnet_file
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import EpochRecord, Training
from logitbank.pipeline.models import Preprocessing, build_model
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.views import Views

BATCH, RATE, DECAY, HEAT, SOFT = 64, 0.05, 5e-4, 4.0, 0.9
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
T_OF_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # Student's t, two-sided, by number of seeds


@dataclass
class Trained:
    """What came of one student: test accuracy, and processor seconds of each epoch."""

    accuracy: float = 0.0
    seconds: list[float] = field(default_factory=list)

    @property
    def epoch(self) -> float:
        """Of a typical epoch after the first."""
        return statistics.median(self.seconds[1:])


def augmented(images_B: Tensor) -> Tensor:
    """Padded crops and flips, a batch at once, scaled: uint8 [B, H, W, C] -> float32 [B, C, H, W]."""
    num_images, side = images_B.shape[:2]
    padded = F.pad(images_B, (0, 0, 4, 4, 4, 4))
    places = torch.arange(side) + torch.randint(0, 9, (2, num_images, 1))
    cropped = padded[torch.arange(num_images)[:, None, None], places[0, :, :, None], places[1, :, None, :]]
    flipped = torch.where(torch.rand(num_images, 1, 1, 1) < 0.5, cropped.flip(2), cropped)
    return ((flipped.float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


def plain(split: Split, test: Split, teacher: nn.Module | None, *, epochs: int, seed: int) -> Trained:
    """The loop that one writes with torch and timm; without a teacher it learns the labels alone."""
    from timm.optim import create_optimizer_v2  # type: ignore[attr-defined]
    from timm.scheduler import CosineLRScheduler  # type: ignore[attr-defined]

    torch.manual_seed(seed)
    student = build_model("resnet20", split)  # timm has none for 32 pixels
    all_images, all_labels = torch.from_numpy(np.asarray(split.samples)), torch.from_numpy(split.labels)
    order, steps = torch.Generator().manual_seed(seed), -(-len(split) // BATCH)
    optimizer = create_optimizer_v2(student, "sgd", lr=RATE, momentum=0.9, weight_decay=DECAY, filter_bias_and_bn=False)
    schedule = CosineLRScheduler(optimizer, t_initial=epochs * steps, t_in_epochs=False)
    found, step = Trained(), 0
    for _ in range(epochs):
        begin = time.process_time()
        student.train()
        for rows in torch.split(torch.randperm(len(split), generator=order), BATCH):
            images, labels = augmented(all_images[rows]), all_labels[rows]
            logits = student(images)
            loss = F.cross_entropy(logits, labels)
            if teacher is not None:
                with torch.inference_mode():
                    answers = teacher(images)
                log_probs, targets = (F.log_softmax(each / HEAT, dim=1) for each in (logits, answers.clone()))
                soft = HEAT**2 * F.kl_div(log_probs, targets, log_target=True, reduction="batchmean")
                loss = SOFT * soft + (1 - SOFT) * loss
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(student.parameters(), 5.0)
            optimizer.step()
            step += 1
            schedule.step_update(step)
        found.seconds.append(time.process_time() - begin)
    found.accuracy = accuracy(student, test)
    return found


@torch.inference_mode()
def accuracy(student: nn.Module, test: Split) -> float:
    """Share of the test images that are named right."""
    student.eval()
    scaling = Preprocessing(mean=MEAN, std=STD)
    parts = torch.split(torch.from_numpy(test.samples), 500)
    guessed = torch.cat([student(scaling(part)).argmax(1) for part in parts])
    return float((guessed == torch.from_numpy(test.labels)).float().mean())


def stored(folder: Path, split: Split, *, epochs: int, seed: int) -> Trained:
    """The same through the store."""
    found, begin = Trained(), time.process_time()

    def record(epoch: EpochRecord) -> None:
        nonlocal begin
        found.seconds.append(time.process_time() - begin)
        begin = time.process_time()

    training = Training(epochs=epochs, batch_size=BATCH, lr=RATE, weight_decay=DECAY, seed=seed)
    run = Run(
        store=str(folder / "s.zarr"),
        data=split.spec,
        student="resnet20",
        training=training,
        loss=f"kd:{SOFT} + ce:{1 - SOFT:.1f}",
        settings={"kd.temperature": HEAT},
        mean=",".join(map(str, MEAN)),
        std=",".join(map(str, STD)),
        workers=0,
        threads=1,
        device="cpu",
    )
    result = train_student(run, folder / f"run{seed}", on_epoch=record)
    found.accuracy = result["accuracy"]
    return found


def read_images(data: Path, folder: Path, num_images: int) -> tuple[Split, Split]:
    """So many images of each split, evenly spread, as a file that a spec names."""
    root = cifar_root(data, folder)
    arrays: dict[str, Any] = {}
    for split, ending in (("train", ""), ("test", "_test")):
        whole = load_split(f"torchvision:CIFAR10?root={root}&split={split}")
        rows = np.linspace(0, len(whole) - 1, min(num_images, len(whole))).astype(np.int64)
        arrays |= {f"x{ending}": whole.samples[rows], f"y{ending}": whole.labels[rows]}
    np.savez(folder / "images.npz", **arrays)
    return load_split(f"npz:{folder}/images.npz"), load_split(f"npz:{folder}/images.npz?split=test")


def interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds."""
    half = T_OF_95[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return statistics.mean(values) - half, statistics.mean(values) + half


def agreement(online: list[float], store: list[float]) -> Iterator[dict[str, Any]]:
    """Whether each mean lies in the other's interval."""
    for name, mine, other in (("store's", store, online), ("online's", online, store)):
        low, high = interval(other)
        goal = f"in the other's, {low:.4f} to {high:.4f}"
        mean = statistics.mean(mine)
        yield {"name": f"mean accuracy, {name} students", "value": mean, "goal": goal, "ok": low <= mean <= high}


def compared(data: Path, *, num_images: int, epochs: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Each figure, with its goal where it has one."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        split, test = read_images(data, folder, num_images)
        weights = str(resnet_file(data, 56))
        teachers = load_teachers(split, "resnet56", weights, preprocessing=Preprocessing(mean=MEAN, std=STD))
        begin = time.process_time()
        views = Views(transform="flip-crop", num_views=epochs)
        encoding = Encoding(kind="dense", num_classes=10, bits=16)
        cache_teacher(NetworkTeacher(split, teachers, views), folder / "s.zarr", encoding=encoding)
        yield {"name": f"seconds of caching {epochs} views", "value": time.process_time() - begin}
        online, store, alone = list[Trained](), list[Trained](), list[Trained]()
        for seed in range(seeds):
            online.append(plain(split, test, teachers.teachers[0].model.eval(), epochs=epochs, seed=seed))
            store.append(stored(folder, split, epochs=epochs, seed=seed))
            alone.append(plain(split, test, None, epochs=2, seed=seed))
        seconds = {
            name: statistics.median(each.epoch for each in found)
            for name, found in (("online", online), ("store", store), ("labels", alone))
        }
        for name, value in seconds.items():
            yield {"name": f"seconds of an epoch, {name}", "value": value}
        for what, other in (("with the teacher online", "online"), ("without a teacher", "labels")):
            ratio = seconds["store"] / seconds[other]
            yield {"name": f"epoch, store / timm {what}", "value": ratio, "goal": "<= 1", "ok": ratio <= 1.0}
        for name, found in (("online", online), ("store", store)):
            accuracies = [each.accuracy for each in found]
            yield {"name": f"accuracy of each seed, {name}", "value": accuracies}
        yield from agreement([each.accuracy for each in online], [each.accuracy for each in store])


def main() -> None:
    """Print one JSON object per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", nargs="?", default=os.environ.get("LOGITBANK_DATA", ""))
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3, choices=sorted(T_OF_95))
    asked = parser.parse_args()
    if not asked.data:
        print(json.dumps({"name": "against_timm", "skipped": "name a folder with CIFAR-10, or set LOGITBANK_DATA"}))
        return
    torch.set_num_threads(1)
    prepare_torchvision()
    for figure in compared(Path(asked.data), num_images=asked.images, epochs=asked.epochs, seeds=asked.seeds):
        print(json.dumps({name: round(v, 4) if isinstance(v, float) else v for name, v in figure.items()}), flush=True)


if __name__ == "__main__":
    main()
