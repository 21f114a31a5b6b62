"""What a row decodes to, in numpy: written from the sentences of stores/README.md alone."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def logsumexp(x: Array) -> float:
    best = float(x.max(initial=-math.inf))
    if not np.isfinite(best):
        return -math.inf
    return best + math.log(float(np.exp(x - best).sum()))


def step(code: int) -> float:
    if code in (0, 255):
        return -math.inf if code else 0.0
    return -max(round(0.2 * math.expm1(0.07 * code) * 1024), 1) / 1024


def tail_shape(row: Arrays, constants: Arrays, fold: int, head: Array) -> Array:
    """What a row's head, and its code, say of the tail, up to a constant."""
    fold = fold if len(constants["tail_bias"]) > 1 else 0
    a, b, m = constants["tail_gauge"]
    x = np.clip(head - a * head[-1] + b if a or b else head, -m, m)
    inner = x @ constants["tail_matrix"][fold].astype(np.float32)[row["index"].astype(int)]
    if "tail_factor" in constants:
        inner = inner @ constants["tail_factor"][fold].astype(np.float32)
    shape: Array = inner + constants["tail_bias"][fold]
    if "tail_code" in row:
        bits, start = np.unpackbits(row["tail_code"], bitorder="little"), 0
        for j, width in enumerate(constants["tail_width"][fold].astype(int)):
            if width:
                number = int(sum(int(bit) << i for i, bit in enumerate(bits[start : start + width])))
                level = constants["tail_levels"][2**width - 2 + number]
                shape = shape + level * constants["tail_scale"][fold][j] * constants["tail_basis"][fold][j].astype(
                    float
                )
                start += width
    return shape


def head_logits(row: Arrays) -> Array:
    """Of the classes that ``index`` names."""
    total = float(row["logsumexp"])
    if "log_prob" in row:
        return np.asarray(row["log_prob"].astype(np.float32) + total)
    r = np.cumsum([0.0, *(step(int(code)) for code in row["log_prob_code"][1:])])
    return np.asarray(r + np.log1p(-np.exp(float(row["log_tail_mass"]))) - logsumexp(r) + total)


def rest_of(row: Arrays, label: int, head: Array, num_classes: int) -> tuple[Array, float, float]:
    """The classes that neither the head nor the label is, their mass, and the label's logit outside the head."""
    total, index = float(row["logsumexp"]), row["index"].astype(int)
    tail, mass = np.setdiff1d(np.arange(num_classes), index), float(np.exp(float(row["log_tail_mass"])))
    if label < 0 or label in index:
        return tail, mass, -math.inf
    own = min(float(row["label_log_prob"]) + total, float(head[-1]))
    return tail[tail != label], mass - math.exp(own - total), own


def decode_row(row: Arrays, label: int, fold: int, constants: Arrays, num_classes: int) -> Array:
    if "logit" in row:
        return row["logit"]
    total = float(row["logsumexp"])
    if "log_prob_floor" in row:
        codes = row["log_prob_code"].astype(np.float32)
        return np.where(codes == 0, -np.inf, row["log_prob_floor"] + codes * row["log_prob_scale"] + total)
    if "index" not in row:
        return np.asarray(row["log_prob"].astype(np.float32) + total)
    head, out = head_logits(row), np.full(num_classes, -np.inf)
    tail, mass, own = rest_of(row, label, head, num_classes)
    if own > -math.inf:
        out[label] = own
    shape = tail_shape(row, constants, fold, head)[tail] if constants else np.zeros(len(tail))
    shift = float(row["tail_shift"]) if "tail_shift" in row else shift_of(shape, head[-1], total, mass)
    out[tail] = np.minimum(shape + shift, head[-1])
    out[row["index"].astype(int)] = head
    return out


def shift_of(shape: Array, highest: float, total: float, mass: float) -> float:
    """The shift that gives the tail its mass, by bisection."""
    low, high = -100.0, 100.0
    for _ in range(60):
        shift = (low + high) / 2
        if np.exp(logsumexp(np.minimum(shape + shift, highest)) - total) < mass:
            low = shift
        else:
            high = shift
    return low
