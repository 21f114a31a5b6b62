"""Bytes against fidelity on real logits, ours and the encodings of other tools.

    LOGITBANK_DATA=FOLDER python -m bench.rate_distortion [--views VIEWS.npy] [--out docs/measurements] [--text-only]

FOLDER/logits holds `nips17_logits.npy` [1000, 1000] and `cifar100_test_logits_resnetsmall32.npy` [10000,
100]. VIEWS.npy, float32 [V, 1000, 1000], holds the same teacher's answers to other views of the same 1,000
images; without it predictors are fitted on 800 rows only. With --out it writes rate-distortion.md and
.json there, and with --text-only as well it measures the language model's part alone
(`bench/_rate_distortion_text.py`) and keeps the others as they stand in the .json.

C = 1000: five folds over the images (seed 0); each image's own row is measured with a predictor fitted on
rows of the other images only. C = 100: 7,000 rows fit, 3,000 are measured (seed 0). Bytes are those of a
row's arrays after blosc-zstd level 1 (the store's codec) on the measured or, where there are views, on all
rows; examples' keys and labels and the predictor are left out (`bench.encoding` measures whole stores).
"""

import argparse
import json
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numcodecs import Blosc  # type: ignore[import-untyped]
from torch import Tensor

from logitbank.pipeline.encoding import Encoding, decode
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.encoding.fitting.predictor import TailFit, mean_kl
from logitbank.pipeline.encoding.tail_predictor import TailPredictor

TEMPERATURES = (1.0, 2.0, 4.0)
SHUFFLES = {"index": Blosc.BITSHUFFLE, "tail_code": Blosc.NOSHUFFLE}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Rows for fitting and rows for measuring, of one teacher; `labels` belong to the measured."""

    fit: Tensor
    held_out: Tensor
    measured: Tensor
    labels: Tensor
    fits: dict[int, TailFit] = field(default_factory=dict)


def cifar100(folder: Path) -> list[Sample]:
    """One split of the C = 100 teacher's rows."""
    logits = torch.from_numpy(np.load(folder / "logits" / "cifar100_test_logits_resnetsmall32.npy"))
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    labels = torch.full((3000,), -1)
    held_out = torch.arange(7000) % 8 == 7
    return [Sample(fit=logits[order[:7000]], held_out=held_out, measured=logits[order[7000:]], labels=labels)]


def nips17(folder: Path, views: Path | None) -> list[Sample]:
    """Five folds over the images of the C = 1000 teacher."""
    logits = torch.from_numpy(np.load(folder / "logits" / "nips17_logits.npy"))
    more = None if views is None else np.load(views, mmap_mode="r")
    order = torch.randperm(len(logits), generator=torch.Generator().manual_seed(0))
    samples = []
    for fold in range(5):
        others = torch.cat([order[other::5] for other in range(5) if other != fold])
        rows = [logits[others]]
        if more is not None:
            rows += [torch.from_numpy(more[view][others.numpy()]) for view in range(len(more))]
        fit = torch.cat(rows)
        held_out = torch.arange(len(fit)) % len(others) >= 7 * len(others) // 8
        measured = logits[order[fold::5]]
        labels = torch.full((len(measured),), -1)
        samples.append(Sample(fit=fit, held_out=held_out, measured=measured, labels=labels))
    return samples


def compressed_bytes(arrays: dict[str, np.ndarray]) -> float:
    """Bytes of a row after the store's codec, all arrays together."""
    total = 0
    for name, array in arrays.items():
        if name not in ("label_log_prob", "label_rank"):  # the samples are unlabelled
            total += codec_bytes(name, array)
    return total / len(next(iter(arrays.values())))


def codec_bytes(name: str, array: np.ndarray) -> int:
    """Bytes of an array after the store's codec."""
    shuffle = SHUFFLES.get(name, Blosc.SHUFFLE)
    return len(Blosc("zstd", clevel=1, shuffle=shuffle).encode(np.ascontiguousarray(array)))


def ours(encoding: Encoding, *, predicted: bool = True) -> Callable[[Sample], tuple[Tensor, float]]:
    """Decoded logits and bytes of one of our encodings."""

    def run(sample: Sample) -> tuple[Tensor, float]:
        predictor: TailPredictor | None = None
        if predicted and encoding.has_tail:
            if encoding.top_k not in sample.fits:
                sample.fits[encoding.top_k] = TailFit(encoding.num_classes, encoding.top_k)
                sample.fits[encoding.top_k].update(sample.fit, sample.held_out)
            predictor = sample.fits[encoding.top_k].fit(encoding.tail_bytes)
        stored = encode(sample.measured, sample.labels, encoding, predictor=predictor)
        arrays = {name: torch.from_numpy(array) for name, array in stored.items()}
        rows = torch.cat([sample.measured, sample.fit[:20_000]])
        every = encode(rows, torch.full((len(rows),), -1), encoding, predictor=predictor)
        return decode(arrays, sample.labels, encoding, predictor=predictor), compressed_bytes(every)

    return run


def uniform_top_k(top_k: int) -> Callable[[Sample], tuple[Tensor, float]]:
    """What TinyViT and FKD keep: fp16 probabilities' logs and ids of the K best, the rest spread evenly."""

    def run(sample: Sample) -> tuple[Tensor, float]:
        log_prob = torch.log_softmax(sample.measured, 1)
        best, index = torch.topk(log_prob, top_k, dim=1)
        stored = {"log_prob": best.half().numpy(), "index": index.numpy().astype(np.uint16)}
        return spread(log_prob.shape[1], best.half().float(), index), compressed_bytes(stored)

    return run


def spread(num_classes: int, head: Tensor, index: Tensor) -> Tensor:
    """Dense log-probabilities with the mass that the head leaves spread evenly."""
    left = (1 - head.exp().sum(1, keepdim=True)).clamp(min=1e-7) / (num_classes - head.shape[1])
    return left.log().expand(-1, num_classes).clone().scatter_(1, index, head)


def polynomial(top_k: int, exact: int, degree: int) -> Callable[[Sample], tuple[Tensor, float]]:
    """The K best: `exact` fp16 values, then a least-squares polynomial (and root) of the rank.

    Written from the description of DistillKit's compressed format; class ids are packed to ceil(log2 C) bits.
    """

    def run(sample: Sample) -> tuple[Tensor, float]:
        log_prob = torch.log_softmax(sample.measured, 1)
        best, index = torch.topk(log_prob, top_k, dim=1)
        rank = torch.linspace(0, 1, top_k - exact)
        design = torch.stack([rank**power for power in range(degree + 1)] + [rank.sqrt()], 1)
        weights = torch.linalg.lstsq(design, best[:, exact:].T).solution.T.half()
        head = torch.cat([best[:, :exact].half().float(), weights.float() @ design.T], 1)
        excess = head.logsumexp(1, keepdim=True).clamp(min=0)  # the fit may exceed mass 1
        size = top_k * math.ceil(math.log2(log_prob.shape[1])) / 8 + 2 * exact + 2 * weights.shape[1]
        return spread(log_prob.shape[1], head - excess, index), size

    return run


def int4(sample: Sample) -> tuple[Tensor, float]:
    """Every class in 4 bits, affine in each row."""
    log_prob = torch.log_softmax(sample.measured, 1)
    low = log_prob.amin(1, keepdim=True)
    step = (log_prob.amax(1, keepdim=True) - low) / 15
    code = ((log_prob - low) / step).round()
    pairs = code[:, ::2] * 16 + code[:, 1::2]
    return low + code * step, compressed_bytes({"code": pairs.numpy().astype(np.uint8)}) + 8


def table(num_classes: int, *, quick: bool) -> dict[str, Callable[[Sample], tuple[Tensor, float]]]:
    """Everything that is measured, by name; `quick` keeps what the goals need."""

    def topk(top_k: int, bits: float = 0) -> Encoding:
        kind = "topk+tail" if bits else "topk"
        return Encoding(kind=kind, num_classes=num_classes, top_k=top_k, tail_bits=bits)

    rows: dict[str, Callable[[Sample], tuple[Tensor, float]]] = {
        "top-10 fp16, uniform tail (peers)": uniform_top_k(10),
        "topk 10": ours(topk(10)),
        "topk+tail 10, 1 bit": ours(topk(10, 1)),
        "topk+tail 10, 2 bits": ours(topk(10, 2)),
    }
    if quick:
        return rows
    few = num_classes < 1000
    for top_k in (5, 20, 50) if few else (5, 20, 50, 100):
        rows[f"top-{top_k} fp16, uniform tail (peers)"] = uniform_top_k(top_k)
    for top_k in (5, 20) if few else (5, 20, 50):
        rows[f"topk {top_k}"] = ours(topk(top_k))
    rows["topk 10, uniform tail"] = ours(topk(10), predicted=False)
    for bits in (0.125, 0.25, 0.5, 3, 4):
        rows[f"topk+tail 10, {bits:g} bits"] = ours(topk(10, bits))
    for bits in (0.5, 1, 1.25):
        rows[f"topk+tail 20, {bits:g} bits"] = ours(topk(20, bits))
    rows["polynomial, top-50, 8 exact, degree 3 (peers)"] = polynomial(50, 8, 3)
    if not few:
        rows["polynomial, top-128, 16 exact, degree 5 (peers)"] = polynomial(128, 16, 5)
    rows["dense int4, affine (peers)"] = int4
    for bits in (8, 16):
        rows[f"dense {bits}"] = ours(Encoding(kind="dense", num_classes=num_classes, bits=bits))
    return rows


def measure(samples: list[Sample], *, quick: bool) -> list[dict[str, Any]]:
    """One line for each encoding: name, bytes, KL T^2 at each temperature, means over measured rows."""
    lines = []
    for name, run in table(samples[0].measured.shape[1], quick=quick).items():
        found = [run(sample) for sample in samples]
        line: dict[str, Any] = {"name": name, "bytes": float(np.mean([size for _, size in found]))}
        for temperature in TEMPERATURES:
            each = [mean_kl(s.measured, d, temperature) for s, (d, _) in zip(samples, found, strict=True)]
            line[f"{temperature:g}"] = float(np.mean(each))
        lines.append(line)
        print(f"{name}: {line}", file=sys.stderr, flush=True)
    return sorted(lines, key=lambda line: float(line["bytes"]))


def goals(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals for C = 1000 as JSON-able results."""
    by_name = {line["name"]: line for line in lines}
    peers, mine = by_name["top-10 fp16, uniform tail (peers)"], by_name["topk 10"]
    ratio = mine["1"] / peers["1"]
    results = [{"name": "topk_10_kl_over_uniform_t1", "value": ratio, "goal": 0.6, "ok": ratio <= 0.6}]
    tail = by_name["topk+tail 10, 2 bits"]
    for temperature in ("1", "2", "4"):
        name = f"topk_tail_10_2_bits_kl_t{temperature}"
        results.append({"name": name, "value": tail[temperature], "goal": 0.06, "ok": tail[temperature] <= 0.06})
    size = tail["bytes"]
    return [*results, {"name": "topk_tail_10_2_bits_bytes", "value": size, "goal": 300, "ok": size <= 300}]


def main() -> int:
    """Prints the goals; writes the page with --out."""
    parser = argparse.ArgumentParser(description="Bytes against fidelity on real logits.")
    parser.add_argument("--views", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--text-only", action="store_true", help="with --out: keep the other parts as they are there")
    arguments = parser.parse_args()
    folder = os.environ.get("LOGITBANK_DATA")
    if not folder:
        print(json.dumps({"name": "rate_distortion", "skipped": "set LOGITBANK_DATA to a folder with real logits"}))
        return 0
    if arguments.text_only:
        _write_text(Path(folder), arguments.out)
        return 0
    quick = arguments.out is None
    wide = measure(nips17(Path(folder), arguments.views), quick=quick)
    from bench._stored_row import stored_row

    for result in [*goals(wide), *stored_row(Path(folder))]:
        print(json.dumps(result))
    if arguments.out is not None:
        from bench._rate_distortion_page import write_page
        from bench._rate_distortion_text import measure_text

        num_views = 0 if arguments.views is None else len(np.load(arguments.views, mmap_mode="r"))
        narrow = measure(cifar100(Path(folder)), quick=False)
        figures = {"classes_1000": wide, "classes_100": narrow, "views": num_views, "text": measure_text(Path(folder))}
        write_page(arguments.out, figures)
    return 0


def _write_text(folder: Path, out: Path) -> None:
    """The page with its third part measured anew."""
    from bench._rate_distortion_page import write_page
    from bench._rate_distortion_text import measure_text

    figures = json.loads((out / "rate-distortion.json").read_text())
    write_page(out, {**figures, "text": measure_text(folder)})


if __name__ == "__main__":
    sys.exit(main())
