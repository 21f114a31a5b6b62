"""Speeds, bytes and memory of the encodings at the vocabularies of language models.

`python -m bench.vocabulary` prints one JSON object a line: {name, value, goal, ok}; `--classes 50257 --encoding topk`
measures one. Each pair has a process of its own, since a peak of memory does not come down again.

There is no head of so many classes here, so logits are made: hidden states of width 768 (1,024 for 151,936 classes)
around 512 centres, layer-normalised, times a random head, plus a bias that falls as Zipf's law. They have the rank of
a language model's, and nothing of its language: **KL figures compare encodings of these rows with each other, and say
nothing of real ones**, which `bench.rate_distortion` measures at C = 1,024. Speeds are rows a second of one core's
processor time. Memory is the peak beyond what stood before: the head itself, and what the libraries take.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from bench.losses import KEEP_MEMORY
from bench.rate_distortion import compressed_bytes
from logitbank.pipeline.cache_teacher.fidelity import PredictorFit, measure_fidelity
from logitbank.pipeline.cache_teacher.teachers.answering import held_rows
from logitbank.pipeline.encoding import Encoding, decode, finite, sparse
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.settings import tail_bits_of
from logitbank.pipeline.encoding.sparse import SparseLogits
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.train_student.losses.divergences import kl_divergence
from logitbank.pipeline.train_student.losses.sparse import sparse_kl_divergence

WIDTHS = {50_257: 768, 151_936: 1024}
TOP_K, CENTRES, FITTED, MEASURED, TIMED = 50, 512, 4096, 256, 256
ENCODINGS = ("topk", "64 bytes", "256 bytes")


class Head:
    """A made head; the hidden state of a row is a function of its number.

    Args:
        num_classes: C.
        width: d.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight_dC = torch.randn(width, num_classes, generator=generator) * (2.2 / width**0.5)
        self.bias_C = -torch.log(torch.randperm(num_classes, generator=generator) + 10.0)
        self.centres = torch.randn(CENTRES, width, generator=generator)

    def logits(self, first: int, count: int) -> Tensor:
        """Rows from ``first`` on, float32 [count, C]."""
        generator = torch.Generator().manual_seed(1 + first)
        centre = torch.randint(CENTRES, (count,), generator=generator)
        state = self.centres[centre] + 0.7 * torch.randn(count, self.centres.shape[1], generator=generator)
        state = torch.nn.functional.layer_norm(state, state.shape[1:])
        return torch.addmm(self.bias_C, state, self.weight_dC)


def report(name: str, value: float, goal: float | None = None, *, most: bool = False) -> None:
    """One line; ``most``: the goal is an upper bound."""
    ok = goal is None or (value <= goal if most else value >= goal)
    print(json.dumps({"name": f"vocabulary/{name}", "value": round(value, 4), "goal": goal, "ok": ok}), flush=True)


def rate(run: Callable[[], object], rows: int, rounds: int = 3) -> float:
    """Rows a second of processor time, the best of some rounds."""
    run()
    times = []
    for _ in range(rounds):
        begin = time.process_time()
        run()
        times.append(time.process_time() - begin)
    return rows / min(times)


def in_groups(run: Callable[[slice], object], rows: int, step: int) -> Callable[[], None]:
    """The call over groups of rows, as a pass makes it."""

    def every() -> None:
        for start in range(0, rows, step):
            run(slice(start, min(start + step, rows)))

    return every


def peak_mb() -> float:
    """Of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident_mb() -> float:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def chosen(num_classes: int, name: str) -> Encoding:
    """An encoding by its name here."""
    if name == "topk":
        return Encoding(kind="topk", num_classes=num_classes, top_k=TOP_K)
    tail_bytes = int(name.partition(" ")[0])
    return Encoding(
        kind="topk+tail", num_classes=num_classes, top_k=TOP_K, tail_bits=tail_bits_of(tail_bytes, num_classes)
    )


def fit(head: Head, encoding: Encoding) -> TailPredictor | None:
    """The predictor, from groups of rows as a pass fits it."""
    step, fitting = held_rows(encoding.num_classes), PredictorFit(encoding)
    for start in range(0, FITTED, step):
        fitting.update(head.logits(start, min(step, FITTED - start)), more=start > 0)
    return fitting.fit()


def measure(num_classes: int, name: str) -> None:
    """All figures of an encoding."""
    head, encoding = Head(num_classes, WIDTHS[num_classes]), chosen(num_classes, name)
    label, step = f"C = {num_classes:,}, {name}", held_rows(num_classes)
    head.logits(0, step)
    before, begin = resident_mb(), time.process_time()
    predictor = fit(head, encoding)
    report(f"{label}/fit_seconds", time.process_time() - begin)
    report(f"{label}/fit_peak_mb", peak_mb() - before, 1500, most=True)
    constants = {} if predictor is None else predictor.constants()
    report(f"{label}/constants_mb", sum(array.nbytes for array in constants.values()) / 2**20)
    logits = head.logits(FITTED, TIMED)
    labels = logits.argmax(1)
    labels[::3] = torch.arange(len(labels))[::3] % num_classes

    def encoded(rows: slice, *, shifted: bool = True) -> dict[str, np.ndarray]:
        return encode(logits[rows], labels[rows], encoding, predictor=predictor, shifted=shifted)

    parts = [encoded(slice(start, start + step)) for start in range(0, TIMED, step)]
    stored = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    arrays = {key: torch.from_numpy(array) for key, array in stored.items()}
    goals = (3000, 20_000) if num_classes == 50_257 else (None, None)
    report(f"{label}/encode_rows_per_s", rate(in_groups(encoded, TIMED, step), TIMED), goals[0])
    bare = in_groups(lambda rows: encoded(rows, shifted=False), TIMED, step)
    report(f"{label}/encode_without_shift_rows_per_s", rate(bare, TIMED), goals[0])

    def decoded(rows: slice) -> Tensor:
        some = {key: array[rows] for key, array in arrays.items()}
        return finite(decode(some, labels[rows], encoding, predictor=predictor))

    report(f"{label}/decode_dense_rows_per_s", rate(in_groups(decoded, TIMED, step), TIMED))
    fill = in_groups(lambda rows: torch.empty(len(labels[rows]), num_classes).fill_(0.5), TIMED, step)
    report(f"{label}/fill_dense_rows_per_s", rate(fill, TIMED))
    report(f"{label}/all_peak_mb", peak_mb() - before, 1500, most=True)
    forms(label, arrays, labels, encoding, predictor, goals[1])
    report(f"{label}/row_bytes", compressed_bytes(stored))
    report(f"{label}/id_bytes", compressed_bytes({"index": stored["index"]}) / TOP_K)
    for tail in ("uniform", "predicted"):
        few = slice(0, MEASURED)
        found = measure_fidelity(logits[few], labels[few], encoding, predictor, tail=tail)
        for temperature in ("1", "2", "4"):
            report(f"{label}/made_up_kl_{tail}_t{temperature}", found[temperature])


def forms(
    label: str,
    arrays: dict[str, Tensor],
    labels: Tensor,
    encoding: Encoding,
    predictor: TailPredictor | None,
    goal: float | None,
) -> None:
    """Rows a second until a loss has its teacher, sparse, and a step's KL and gradient from there and from logits."""
    student_BC = torch.randn(len(labels), encoding.num_classes, generator=torch.Generator().manual_seed(5))
    student_BC.requires_grad_()
    for tail in ("uniform", "predicted"):

        def form(tail: str = tail) -> SparseLogits:
            found = sparse(arrays, labels, encoding, predictor=predictor, tail=tail)
            assert found is not None
            return found

        def dense(tail: str = tail) -> Tensor:
            return finite(decode(arrays, labels, encoding, predictor=predictor, tail=tail))

        def step(losses: Callable[[], Tensor]) -> Callable[[], object]:
            return lambda: torch.autograd.grad(losses().sum(), student_BC)

        ours = step(lambda form=form: sparse_kl_divergence(student_BC, form()))  # type: ignore[misc]
        theirs = step(lambda dense=dense: kl_divergence(student_BC, dense(), labels))  # type: ignore[misc]
        report(f"{label}/decode_sparse_{tail}_rows_per_s", rate(form, len(labels)), goal)
        report(f"{label}/kl_step_sparse_{tail}_rows_per_s", rate(ours, len(labels)))
        report(f"{label}/kl_step_dense_{tail}_rows_per_s", rate(theirs, len(labels)))


def main() -> int:
    """One process for each vocabulary and encoding."""
    parser = argparse.ArgumentParser(description="Encodings at the vocabularies of language models.")
    parser.add_argument("--classes", type=int, choices=sorted(WIDTHS))
    parser.add_argument("--encoding", choices=ENCODINGS)
    arguments = parser.parse_args()
    if arguments.classes and arguments.encoding:
        torch.set_num_threads(1)
        measure(arguments.classes, arguments.encoding)
        return 0
    for num_classes in [arguments.classes] if arguments.classes else sorted(WIDTHS):
        for name in [arguments.encoding] if arguments.encoding else ENCODINGS:
            call = [sys.executable, "-m", "bench.vocabulary", "--classes", str(num_classes), "--encoding", name]
            if code := subprocess.run(call, env=KEEP_MEMORY).returncode:
                return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
