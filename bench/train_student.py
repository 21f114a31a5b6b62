"""What a store costs a student: an epoch against hard labels, and against the teacher run online.

`python -m bench.train_student [--rounds N]` prints one JSON object per line: {name, value, goal, ok}. ResNet-20 on
50,000 images of 32 x 32, batch 128, on one CPU thread. A figure of an epoch is made of the time of some real steps
of ``fit``, variants in turns, times 391, and of the time to load the view's slab. Times are the process's own, so
that neighbours on the machine do not count. With LOGITBANK_DATA the teacher has its real weights, else random ones.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench._data import resnet_file
from bench._students import SCALING
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.weights import load_into, load_state
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.losses import ExactAnswer, Step, parse_objective
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store

ROWS, BATCH, STEPS = 50_000, 128, 2
MAIN_LOSSES = ("kd", "redistill", "rld", "dkd", "dist")
VIEWS = Views(transform="flip-crop", num_views=2)

FIRST_STEP = """
import sys, time, torch, torch._dynamo  # the first optimiser imports it
from pathlib import Path
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.run import train_student
from logitbank.pipeline.train_student.spec import Run
from logitbank.pipeline.fit import Training
torch.set_num_threads(1)
started = time.process_time()
run = Run(store=sys.argv[1], data=sys.argv[2], student="resnet20", workers=0,
          training=Training(epochs=1, batch_size=128))
stepped = []
call = DistillationLoss.__call__
def timed(self, logits_BC, rows_B, **where):
    if stepped:
        print(stepped[0] - started, flush=True)
        import os
        os._exit(0)
    loss_B = call(self, logits_BC, rows_B, **where)
    loss_B.register_hook(lambda gradient: stepped.append(time.process_time()))
    return loss_B
DistillationLoss.__call__ = timed
train_student(run, Path(sys.argv[3]))
"""


class OnlineTeacher(BatchLoss):
    """KD with the teacher run on the pixels of the batch."""

    def __init__(self, split: Split, weights: Path | None, views: Views = VIEWS, epochs: int = 1) -> None:
        self.teacher = build_model("resnet56", split).eval()
        if weights is not None:
            load_into(self.teacher, load_state(weights), architecture="resnet56", source=str(weights))
        self.split, self.views, self.epochs, self.labels = split, views, epochs, torch.from_numpy(split.labels)
        self.objective = parse_objective("kd")

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, *, view: int, step: int, steps_per_epoch: int) -> Tensor:
        samples = torch.from_numpy(self.views.samples(self.split, rows_B.numpy(), view))
        with torch.inference_mode():
            teacher_BC = self.teacher(SCALING(samples))
        now = Step(step=step, steps_per_epoch=steps_per_epoch, num_epochs=self.epochs)
        return self.objective(logits_BC, ExactAnswer(teacher_BC.clone()), self.labels[rows_B], now)


def make(folder: Path) -> tuple[Split, Store]:
    """Images, and a top-3 store of two views of them."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (ROWS, 32, 32, 3), dtype=np.uint8)
    y = rng.integers(0, 10, ROWS)
    np.savez(folder / "images.npz", x=x, y=y, x_test=x[: ROWS // 5], y_test=y[: ROWS // 5])
    split = load_split(f"npz:{folder}/images.npz")
    np.save(folder / "logits.npy", rng.normal(0, 4, (2, ROWS, 10)).astype(np.float32))
    answers = ArrayTeacher(folder / "logits.npy", split, VIEWS)
    cache_teacher(answers, folder / "s.zarr", encoding=Encoding(kind="topk", num_classes=10, top_k=3))
    return split, open_store(folder / "s.zarr")


def step_seconds(split: Split, losses: dict[str, BatchLoss], rounds: int) -> dict[str, float]:
    """Least time of a step with each loss, taken in turns: neighbours on the machine can only add to it."""
    model = build_model("resnet20", split)
    rows = np.arange(STEPS * BATCH)
    training = Training(epochs=1, batch_size=BATCH, lr=0.01)
    times: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(rounds + 1):
        for name, loss in losses.items():
            begin = time.process_time()
            fit(model, split, loss, training, views=VIEWS, preprocessing=SCALING, rows=rows)
            if turn:  # the first warms up, and loads the slab
                times[name].append((time.process_time() - begin) / STEPS)
    return {name: min(values) for name, values in times.items()}


def seconds(call: Callable[[], object]) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def first_answer(store: Store, view: int) -> float:
    """Seconds of reading a view that nobody holds."""
    with closing(StoredAnswers(store)) as answers:
        return seconds(lambda: answers.logits(torch.arange(1), view))


def results(rounds: int) -> Iterator[tuple[str, float, float]]:
    """Name, value and goal (at most) of each figure."""
    data = os.environ.get("LOGITBANK_DATA", "")
    weights = resnet_file(Path(data), 56) if data else None
    with tempfile.TemporaryDirectory() as folder:
        split, store = make(Path(folder))
        command = [sys.executable, "-c", FIRST_STEP, str(store.path), split.spec, f"{folder}/run"]
        first = [float(subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout) for _ in range(3)]
        yield "seconds to the first step, 50,000 rows, beyond import", min(first), 3.0
        answers = StoredAnswers(store)
        load = statistics.median(first_answer(store, view) for view in (0, 1, 0))
        losses: dict[str, BatchLoss] = {
            name: DistillationLoss(parse_objective(name), answers, split, epochs=1) for name in ("ce", *MAIN_LOSSES)
        }
        losses["online"] = OnlineTeacher(split, weights)
        step = step_seconds(split, losses, rounds)
        num_steps = ROWS / BATCH
        for name in MAIN_LOSSES:
            epoch = load + num_steps * step[name]
            yield f"epoch, {name} from a top-k store / hard labels", epoch / (num_steps * step["ce"]), 1.05
        epoch = load + num_steps * step["kd"]
        yield "epoch, kd from a top-k store / ResNet-56 teacher online", epoch / (num_steps * step["online"]), 0.6
        yield "slab of 50,000 rows, loaded, checked and prepared / epoch", load / epoch, 0.02


def main() -> None:
    """Print one JSON object per figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    torch.set_num_threads(1)
    for name, value, goal in results(parser.parse_args().rounds):
        line = {"name": name, "value": round(value, 4), "goal": f"<= {goal:g}", "ok": value <= goal}
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
