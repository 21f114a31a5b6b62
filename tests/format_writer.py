"""A writer of stores that knows docs/reference/format.md and stores/README.md, and nothing else.

It imports neither this package nor zarr: what the page does not say, it cannot do. Rows are encoded by
``format_rows.py``, views shown by ``format_views.py``, from the same two pages.

Shapes: V views, N examples, L positions (or none), B blocks of R rows, P probes.
"""

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.format_reader import Array, Arrays
from tests.format_views import SHOWN, view_seed

Document = dict[str, Any]


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ 0x82F63B78 * (byte & 1)
        table.append(byte)
    return table


_CRC = _table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def raw(values: Array) -> bytes:
    """Little-endian, in C order."""
    return np.ascontiguousarray(values.astype(values.dtype.newbyteorder("<"))).tobytes()


def with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", crc32c(data))


def chunk_file(values: Array) -> bytes:
    """A blosc frame that stores its bytes as they are, and its crc32c."""
    data = raw(values)
    head = bytes([2, 1, 0x92, values.itemsize]) + struct.pack("<III", len(data), len(data), len(data) + 16)
    return with_crc(head + data)


def document_sum(document: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(document, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def group(attributes: Mapping[str, Any]) -> Document:
    return {"attributes": dict(attributes), "node_type": "group", "zarr_format": 3}


def array(
    shape: Sequence[int], chunk: Sequence[int], dtype: np.dtype[Any], dims: Sequence[str], **more: Any
) -> Document:
    codecs: list[Document] = [{"name": "bytes"}]
    if dtype.itemsize > 1:
        codecs[0]["configuration"] = {"endian": "little"}
    if more.pop("compressed", True):
        shuffle = "shuffle" if dtype.itemsize > 1 or dtype.kind == "b" else "noshuffle"
        settings = {"typesize": dtype.itemsize, "cname": "zstd", "clevel": 1, "shuffle": shuffle, "blocksize": 0}
        codecs.append({"name": "blosc", "configuration": settings})
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(chunk)}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": False if dtype.kind == "b" else 0,
        "codecs": [*codecs, {"name": "crc32c"}],
        "attributes": more,
        "dimension_names": list(dims),
        "storage_transformers": [],
    }


def written_once(values: Array, dims: Sequence[str] = ()) -> Document:
    dims = dims or [f"axis_{axis}" for axis in range(values.ndim)]
    return array(values.shape, values.shape, values.dtype, dims, sha256=hashlib.sha256(raw(values)).hexdigest())


def sealed(attributes: Mapping[str, Any], below: Mapping[str, Document]) -> Document:
    top = group({**attributes, "documents": {path: document_sum(document) for path, document in below.items()}})
    top["attributes"]["digest"] = document_sum(top)
    return top


def put(path: Path, data: bytes | Document) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())


def key(sample: Array) -> int:
    """Of an image, or of a row of a table."""
    person = hashlib.blake2b(f"{sample.dtype.str}{sample.shape}".encode(), digest_size=16).digest()
    return int.from_bytes(hashlib.blake2b(raw(sample), digest_size=8, person=person).digest(), "little")


def token_key(ids: Array) -> int:
    return int.from_bytes(hashlib.blake2b(raw(ids.astype(np.uint32)), digest_size=8).digest(), "little")


def write_examples(
    store: Path,
    samples: Array,
    labels: Array,
    num_classes: int,
    *,
    num_views: int = 1,
    transform: str = "none",
    seed: int = 0,
    folds: Array | None = None,
    tokens: bool = False,
) -> None:
    """The root of a store, without teachers; labels [N] or [N, L]."""
    keys = np.array([(token_key if tokens else key)(sample) for sample in samples], np.uint64)
    rows = np.unique(np.linspace(0, len(samples) - 1, 5).astype(np.uint32))
    arrays: dict[str, Array] = {"examples/key": keys, "examples/label": labels.astype(np.int32), "probes/row": rows}
    arrays |= {} if folds is None else {"examples/fold": folds.astype(np.uint16)}
    arrays["probes/digest"] = np.array(
        [
            [_shown_hash(samples[row], view_seed(seed, int(keys[row]), view), transform) for row in rows]
            for view in range(num_views)
        ],
        np.uint64,
    )
    dims = {"examples": ("example", "position")}
    below = {name: written_once(values, dims.get(name[:8], ())[: values.ndim]) for name, values in arrays.items()}
    below |= {name: group({}) for name in ("examples", "probes", "teachers")}
    positions = {} if labels.ndim == 1 else {"num_positions": labels.shape[1]}
    print_ = hashlib.sha256(raw(keys) + raw(labels.astype(np.int64))).hexdigest()
    size = {"num_examples": len(samples), "num_classes": num_classes, **positions}
    attributes = {
        "format": "teacher-logit-store",
        "version": 2,
        "created": "2026-11-26T12:00:00+00:00",
        "dataset": {"name": "from elsewhere", "split": "train", "fingerprint": print_, **size},
        "views": {"num_views": num_views, "transform": transform, "seed": seed},
    }
    put(store / "zarr.json", sealed(attributes, below))
    for path, document in below.items():
        put(store / path / "zarr.json", document)
    for path, values in arrays.items():
        put(store.joinpath(path, "c", *"0" * values.ndim), chunk_file(values))


def _shown_hash(sample: Array, s: int, transform: str) -> int:
    shown = raw(SHOWN[transform](sample, s))
    return int.from_bytes(hashlib.blake2b(shown, digest_size=8).digest(), "little")


def examples_sum(store: Path) -> str:
    root = json.loads((store / "zarr.json").read_text())["attributes"]
    paths = [path for path in root["documents"] if "/" in path]
    sums = {path: json.loads((store / path / "zarr.json").read_text())["attributes"]["sha256"] for path in paths}
    return document_sum({"dataset": root["dataset"], "views": root["views"], "arrays": sums})


def write_teacher(
    store: Path,
    rows: Arrays,
    encoding: Mapping[str, Any],
    *,
    dims: Mapping[str, str],
    constants: Arrays | None = None,
    num_folds: int = 0,
    block_rows: int = 32,
    name: str = "foreign",
) -> None:
    """A teacher's rows [V, N, *row_shape]; `dims`: the last dimension of arrays that have one of their own."""
    labels = json.loads((store / "examples/label/zarr.json").read_text())["shape"]
    some = next(iter(rows.values()))
    num_views, blocks = len(some), -(-some.shape[1] // block_rows)
    names = sorted(rows)
    below = {
        each: array(
            (num_views, blocks * block_rows, *rows[each].shape[2:]),
            (1, block_rows, *rows[each].shape[2:]),
            rows[each].dtype,
            ("view", "example", *(["position"] if len(labels) > 1 else []), *([dims[each]] if each in dims else [])),
        )
        for each in names
    }
    word = np.dtype(np.uint32)
    grid = (num_views, blocks)
    below["checksum"] = array(
        (*grid, len(names)), (1, 1, len(names)), word, ("view", "block", "array"), compressed=False
    )
    below["committed"] = array(grid, (1, 1), word, ("view", "block"), compressed=False)
    below |= {each: written_once(values) for each, values in (constants or {}).items()}
    teacher = store / "teachers" / name
    for path, document in below.items():
        put(teacher / path / "zarr.json", document)
    for path, values in (constants or {}).items():
        put(teacher.joinpath(path, "c", *"0" * values.ndim), chunk_file(values))
    committed = np.zeros(grid, np.uint32)
    for view, block in np.ndindex(*grid):
        committed[view, block] = _write_cell(
            teacher, {each: rows[each][view] for each in names}, view, block, block_rows
        )
    attributes = {
        "identity": {"architecture": "unknown", **({"embedding": "penultimate"} if "embedding" in rows else {})},
        "encoding": dict(encoding),
        "arrays": {each: {"dtype": rows[each].dtype.name, "row_shape": list(rows[each].shape[2:])} for each in names},
        "block_rows": block_rows,
        "folds": {"num_folds": num_folds} if num_folds else None,
        "examples_sha256": examples_sum(store),
        "complete": True,
        "cells_sha256": hashlib.sha256(raw(committed)).hexdigest(),
        "fidelity": {},
        "summary": {},
    }
    put(teacher / "zarr.json", sealed(attributes, below))


def _write_cell(teacher: Path, rows: Arrays, view: int, block: int, block_rows: int) -> int:
    sums = b""
    for name, values in rows.items():
        own = values[block * block_rows : (block + 1) * block_rows]
        whole = np.zeros((block_rows, *own.shape[1:]), own.dtype)
        whole[: len(own)] = own
        put(teacher.joinpath(name, "c", str(view), str(block), *"0" * (own.ndim - 1)), chunk_file(whole))
        sums += struct.pack("<I", crc32c(raw(own)))
    put(teacher / "checksum/c" / str(view) / str(block) / "0", with_crc(sums))
    commit = crc32c(sums) or 1
    put(teacher / "committed/c" / str(view) / str(block), with_crc(struct.pack("<I", commit)))
    return commit
