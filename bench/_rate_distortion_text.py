"""The third part of `bench.rate_distortion`: the logits of a small real language model on text that it has not seen.

FOLDER/text holds the model (C = 1,024, width 192) and its tokens. The first 256 sequences of 128 tokens of its test
text fit predictors, the next 64 are measured. Besides KL there are two figures of the target at T = 1, as a student's
gradient sees it (student less target): ``row``, the mean total variation between a row's target and the teacher, and
``mean``, that between the means over all measured rows, where noise averages out and bias stays.
"""

import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.rate_distortion import (
    TEMPERATURES,
    Sample,
    compressed_bytes,
    int4,
    ours,
    polynomial,
    spread,
    uniform_top_k,
)
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.fitting.predictor import mean_kl

CLASSES, LENGTH, FIT, MEASURED = 1024, 128, 256, 64
Run = Callable[[Sample], tuple[Tensor, float]]


def text_sample(folder: Path) -> Sample:
    """Logits of the model, float32 [rows, C]; whole sequences are on one side."""
    spec = importlib.util.spec_from_file_location("text", folder / "text" / "text.py")
    assert spec is not None
    assert spec.loader is not None
    text = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(text)
    tokens = torch.from_numpy(text.tokens()[1][: (FIT + MEASURED) * LENGTH].astype(np.int64)).view(-1, LENGTH)
    with torch.inference_mode():
        logits = torch.cat([text.model()(some).flatten(0, 1) for some in torch.split(tokens, 32)]).clone()
    fit, measured = logits[: FIT * LENGTH], logits[FIT * LENGTH :]
    held_out = torch.arange(len(fit)) >= 7 * len(fit) // 8
    return Sample(fit=fit, held_out=held_out, measured=measured, labels=torch.full((len(measured),), -1))


def renormalised_top_k(top_k: int) -> Run:
    """What axolotl and MaxText train on: the K best in fp16, made to add to 1; other classes are impossible."""

    def run(sample: Sample) -> tuple[Tensor, float]:
        best, index = torch.topk(torch.log_softmax(sample.measured, 1), top_k, dim=1)
        head = best.half().float()
        stored = {"log_prob": best.half().numpy(), "index": index.numpy().astype(np.uint16)}
        nothing = torch.full_like(sample.measured, -math.inf)
        return nothing.scatter_(1, index, head - head.logsumexp(1, keepdim=True)), compressed_bytes(stored)

    return run


def ghost_top_k(top_k: int) -> Run:
    """What Megatron keeps: fp16 log-probabilities, 16 bits of an id and a 17th; one class stands for all others.

    The mass of that class is spread evenly here, as no student is there to shape it.
    """

    def run(sample: Sample) -> tuple[Tensor, float]:
        best, index = torch.topk(torch.log_softmax(sample.measured, 1), top_k, dim=1)
        ids = index.numpy()
        high = np.packbits(ids >> 16, axis=1)
        stored = {"log_prob": best.half().numpy(), "index": ids.astype(np.uint16), "high": high}
        return spread(CLASSES, best.half().float(), index), compressed_bytes(stored)

    return run


def sampled(rounds: int) -> Run:
    """Random-sampling KD (ACL 2025): ids drawn from the teacher at T = 1, with their counts; unbiased there."""

    def run(sample: Sample) -> tuple[Tensor, float]:
        generator = torch.Generator().manual_seed(0)
        prob = torch.softmax(sample.measured, 1)
        drawn = torch.multinomial(prob, rounds, replacement=True, generator=generator)
        count = torch.zeros_like(prob).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float32))
        row, index = count.nonzero(as_tuple=True)
        size = compressed_bytes({"index": index.numpy().astype(np.uint16)}) + compressed_bytes(
            {"count": count[row, index].numpy().astype(np.uint8)}
        )  # of an entry
        return (count / rounds).log(), size * len(row) / len(prob) + 1

    return run


def text_table() -> dict[str, Run]:
    """Everything that is measured, by name."""

    def topk(top_k: int, bits: float = 0) -> Encoding:
        kind = "topk+tail" if bits else "topk"
        return Encoding(kind=kind, num_classes=CLASSES, top_k=top_k, tail_bits=bits)

    rows: dict[str, Run] = {}
    for top_k in (10, 50, 128):
        rows[f"top-{top_k} fp16, uniform tail (peers)"] = uniform_top_k(top_k)
    for top_k in (10, 50):
        rows[f"top-{top_k} fp16, renormalised (axolotl, MaxText)"] = renormalised_top_k(top_k)
    rows["top-128 fp16, one class for the rest (Megatron)"] = ghost_top_k(128)
    rows["polynomial, top-50, 8 exact, degree 3 (DistillKit)"] = polynomial(50, 8, 3)
    rows["polynomial, top-128, 16 exact, degree 5 (DistillKit)"] = polynomial(128, 16, 5)
    for rounds in (12, 50, 200):
        rows[f"{rounds} samples (random-sampling KD)"] = sampled(rounds)
    rows["topk 10, uniform tail"] = ours(topk(10), predicted=False)
    for top_k in (10, 20, 50):
        rows[f"topk {top_k}"] = ours(topk(top_k))
    for bits in (0.125, 0.25, 0.5, 1, 2):
        rows[f"topk+tail 10, {math.ceil(CLASSES * bits / 8)} bytes"] = ours(topk(10, bits))
    rows["dense int4, affine (peers)"] = int4
    for bits in (8, 16):
        rows[f"dense {bits}"] = ours(Encoding(kind="dense", num_classes=CLASSES, bits=bits))
    return rows


def measure_text(folder: Path) -> list[dict[str, Any]]:
    """One line for each encoding: name, bytes, KL T^2 at each temperature (None: infinite), row and mean variation."""
    sample, lines = text_sample(folder), []
    teacher = torch.softmax(sample.measured, 1)
    for name, run in text_table().items():
        decoded, size = run(sample)
        line: dict[str, Any] = {"name": name, "bytes": size}
        for temperature in TEMPERATURES:
            kl = mean_kl(sample.measured, decoded, temperature)
            line[f"{temperature:g}"] = kl if math.isfinite(kl) else None
        apart = torch.softmax(decoded, 1) - teacher
        line["row"] = float(apart.abs().sum(1).mean() / 2)
        line["mean"] = float(apart.double().mean(0).abs().sum() / 2)
        lines.append(line)
        print(f"{name}: {line}", file=sys.stderr, flush=True)
    return sorted(lines, key=lambda line: float(line["bytes"]))
