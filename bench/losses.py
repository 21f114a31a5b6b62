"""Cost of each loss, forward and backward, against F.kl_div on the same dense tensors.

`python -m bench.losses [--device cuda] [--compile] [NAME ...]` prints one JSON object per line:
{name, value, goal, ok}, value = median time of the loss / median time of the baseline, measured in turns within
one run. The baseline is log_softmax of both tensors, F.kl_div and its backward, at T = 1 with no scaling. On the
CPU it is the process's own time on one thread, and the process first starts itself again with glibc told to keep
freed memory: other programs, page faults and waiting threads would be most of what one sees.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from logitbank.pipeline.train_student.losses import LOSSES

SHAPES = ((256, 1000), (256, 21841))
GOAL = 2.5


KEEP_MEMORY = {"MALLOC_TRIM_THRESHOLD_": "4000000000", "MALLOC_MMAP_THRESHOLD_": "33554432", "OMP_NUM_THREADS": "1"}


def baseline(student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> Tensor:
    """What PyTorch offers: KL of two log-softmaxes."""
    log_p_BC, log_q_BC = F.log_softmax(teacher_BC, dim=1), F.log_softmax(student_BC, dim=1)
    return F.kl_div(log_q_BC, log_p_BC, reduction="none", log_target=True).sum(1)


def seconds(loss: Callable[..., Tensor], student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor) -> float:
    """One forward and backward."""
    student_BC.grad = None
    if student_BC.is_cuda:
        torch.cuda.synchronize()
    clock = time.perf_counter if student_BC.is_cuda else time.process_time
    begin = clock()
    loss(student_BC, teacher_BC, labels_B).mean().backward()  # type: ignore[no-untyped-call]
    if student_BC.is_cuda:
        torch.cuda.synchronize()
    return clock() - begin


def ratio(loss: Callable[..., Tensor], rows: tuple[Tensor, Tensor, Tensor], rounds: int) -> tuple[float, float]:
    """Median time of the loss over that of the baseline, and the baseline's in milliseconds."""
    for _ in range(3):
        seconds(baseline, *rows)
        seconds(loss, *rows)
    times = [(seconds(baseline, *rows), seconds(loss, *rows)) for _ in range(rounds)]
    base, own = (statistics.median(column) for column in zip(*times, strict=True))
    return own / base, base * 1e3


def main() -> None:
    """Print one line per loss and shape."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(LOSSES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    for num_rows, num_classes in SHAPES:
        generator = torch.Generator().manual_seed(0)
        student_BC, teacher_BC = (torch.randn(num_rows, num_classes, generator=generator) * 3 for _ in range(2))
        labels_B = torch.randint(num_classes, (num_rows,), generator=generator).to(arguments.device)
        rows = (student_BC.to(arguments.device).requires_grad_(), teacher_BC.to(arguments.device), labels_B)
        for name in arguments.names:

            def loss(*tensors: Tensor, name: str = name) -> Tensor:
                return LOSSES[name].fn(*tensors, **LOSSES[name].options)

            run = torch.compile(loss, fullgraph=True) if arguments.compile else loss
            rounds = arguments.rounds * (8 if num_classes < 5000 else 1)
            value, base = ratio(run, rows, rounds)
            line = {
                "name": f"losses/{name}@{num_rows}x{num_classes}",
                "value": round(value, 3),
                "goal": GOAL,
                "ok": value <= GOAL,
                "baseline_ms": round(base, 3),
            }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    if any(os.environ.get(key) != value for key, value in KEEP_MEMORY.items()):
        os.execve(sys.executable, [sys.executable, "-m", "bench.losses", *sys.argv[1:]], os.environ | KEEP_MEMORY)
    main()
