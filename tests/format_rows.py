"""Logits to rows of a store, in numpy: from docs/reference/format.md and stores/README.md alone.

Shapes: C classes, K kept classes, F folds, R rows.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from tests.format_reader import Array, Arrays, head_logits, logsumexp, rest_of, shift_of, step, tail_shape

Encoding = Mapping[str, Any]
STEPS = np.array([-step(code) for code in range(255)])


def encoding_of(kind: str, bits: int, num_classes: int, top_k: int = 0, tail_bits: int = 0) -> dict[str, Any]:
    return {"kind": kind, "bits": bits, "num_classes": num_classes, "top_k": top_k, "tail_bits": tail_bits}


def smallest(largest: int) -> type[np.unsignedinteger[Any]]:
    return next(kind for kind in (np.uint8, np.uint16, np.uint32) if largest <= np.iinfo(kind).max)


DIMS = {
    "topk": {"index": "kept", "log_prob": "kept", "log_prob_code": "kept", "tail_code": "tail_byte"},
    "dense": {"logit": "class", "log_prob": "class", "log_prob_code": "class", "embedding": "feature"},
}


def encode_row(z: Array, label: int, encoding: Encoding) -> dict[str, Array]:
    """A row of one kind, without what takes constants."""
    num_classes, total = encoding["num_classes"], logsumexp(z)
    log_prob = z - total
    row: dict[str, Any] = {
        "label_rank": np.array((z >= z[label]).sum() if label >= 0 else 0).astype(smallest(num_classes)),
        "label_log_prob": np.float16(log_prob[label] if label >= 0 else np.nan),
    }
    if encoding["kind"] != "dense":
        return row | _top(log_prob, total, encoding)
    if encoding["bits"] == 32:
        return row | {"logit": z.astype(np.float32)}
    row["logsumexp"] = np.float32(total)
    if encoding["bits"] == 16:
        return row | {"log_prob": log_prob.astype(np.float16)}
    lowest, highest = log_prob[np.isfinite(log_prob)].min(), log_prob.max()
    scale = np.float32(max((highest - lowest) / 254, 2**-10))
    floor = np.float32(highest - 255 * scale)
    code = np.clip(np.round((np.maximum(log_prob, lowest) - floor) / scale), 1, 254)
    code[log_prob == highest] = 255
    codes = np.where(np.isfinite(log_prob), code, 0).astype(np.uint8)
    return row | {"log_prob_code": codes, "log_prob_floor": floor, "log_prob_scale": scale}


def _top(log_prob: Array, total: float, encoding: Encoding) -> dict[str, Any]:
    order = np.argsort(-log_prob, kind="stable")
    index, others = order[: encoding["top_k"]], order[encoding["top_k"] :]
    head = log_prob[index]
    row: dict[str, Any] = {
        "index": index.astype(smallest(encoding["num_classes"] - 1)),
        "logsumexp": np.float32(total),
        "log_tail_mass": np.float16(min(logsumexp(log_prob[others]), -(2.0**-24))),
    }
    if encoding["bits"] == 16:
        return row | {"log_prob": head.astype(np.float16)}
    codes, reached = [0], 0.0
    for value in head[1:]:
        codes.append(255 if value == -math.inf else int(np.abs(STEPS - (head[0] - value - reached)).argmin()))
        reached += math.inf if codes[-1] == 255 else STEPS[codes[-1]]
    return row | {"log_prob_code": np.array(codes, np.uint8)}


def encode(logits: Array, labels: Array, encoding: Encoding, folds: Array, constants: Arrays) -> dict[str, Array]:
    """Rows [*, ...] of logits [*, C]; labels and folds [*]. With constants, also what they are for."""
    rows = []
    for place in np.ndindex(*labels.shape):
        z, label, fold = logits[place].astype(np.float64), int(labels[place]), int(folds[place])
        row = encode_row(z, label, encoding)
        if constants:
            row |= _tail(row, z, label, fold, encoding, constants)
        rows.append(row)
    return {
        name: np.stack([row[name] for row in rows]).reshape(*labels.shape, *rows[0][name].shape) for name in rows[0]
    }


def _tail(row: Arrays, z: Array, label: int, fold: int, encoding: Encoding, constants: Arrays) -> dict[str, Any]:
    head, num_classes, more = head_logits(row), encoding["num_classes"], {}
    if encoding["tail_bits"]:
        left = z - tail_shape(row, constants, fold, head)
        left[row["index"].astype(int)] = np.nan
        left = np.nan_to_num(left - np.nanmean(left))
        along = constants["tail_basis"][fold].astype(float) @ left / constants["tail_scale"][fold]
        levels = constants["tail_levels"][2:6]  # all directions have two bits
        numbers = np.abs(along[:, None] - levels).argmin(1)
        bits = np.stack([numbers & 1, numbers >> 1], 1).reshape(-1)
        more["tail_code"] = np.packbits(bits.astype(np.uint8), bitorder="little")
    tail, mass, _ = rest_of(row, label, head, num_classes)
    shape = tail_shape({**row, **more}, constants, fold, head)[tail]
    return {**more, "tail_shift": np.float32(shift_of(shape, float(head[-1]), float(row["logsumexp"]), mass))}


def fit_constants(logits: Array, folds: Array, num_folds: int, encoding: Encoding, rank: int = 0) -> dict[str, Array]:
    """Logits [R, C], folds [R]: a ridge regression a fold, in two factors if so ranked, and what it leaves over."""
    num_classes, top_k, maps = encoding["num_classes"], encoding["top_k"], []
    coded: list[tuple[Array, Array]] = []
    for fold in range(num_folds):
        z = logits[folds == fold].astype(np.float64)
        kept = np.argsort(-z, axis=1)[:, :top_k]
        heads = np.zeros_like(z)
        np.put_along_axis(heads, kept, np.take_along_axis(z, kept, 1), 1)
        x = np.concatenate([heads, np.ones((len(z), 1))], 1)
        found = np.linalg.solve(x.T @ x + np.eye(num_classes + 1), x.T @ z)
        maps.append(found)
        left = z - x @ found
        np.put_along_axis(left, kept, 0.0, 1)
        _, _, directions = np.linalg.svd(left, full_matrices=False)
        coded.append((directions, (left @ directions.T).std(0) + 1e-3))
    constants: dict[str, Array] = {
        "tail_matrix": np.stack([found[:-1] for found in maps]).astype(np.float16),
        "tail_bias": np.stack([found[-1] for found in maps]).astype(np.float16),
        "tail_gauge": np.array([0, 0, 1e4], np.float32),
    }
    if rank:
        left_FCC, sizes_FC, right_FCC = np.linalg.svd(constants["tail_matrix"].astype(float))
        constants["tail_matrix"] = (left_FCC * sizes_FC[:, None])[:, :, :rank].astype(np.float16)
        constants["tail_factor"] = right_FCC[:, :rank].astype(np.float16)
    if encoding["tail_bits"]:
        levels = np.concatenate([np.linspace(-1.5, 1.5, 2**width) for width in range(1, 9)])
        constants |= {
            "tail_basis": np.stack([directions for directions, _ in coded]).astype(np.float16),
            "tail_scale": np.stack([scale for _, scale in coded]).astype(np.float32),
            "tail_width": np.full((num_folds, num_classes), 2, np.uint8),
            "tail_levels": levels.astype(np.float32),
        }
    return constants
