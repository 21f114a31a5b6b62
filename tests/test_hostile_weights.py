"""Weights of strangers: 100 odd checkpoints, no traceback, no code run, no memory that the file does not fill."""

import argparse
import io
import os
import pickle
import random
import resource
import struct
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

from logitbank.pipeline.models.torch_files import MAX_PROGRAM
from logitbank.pipeline.models.weights import load_weights, read_metadata, read_training_keys

MOST_MEMORY = 300 * 2**20  # bytes that all of it may add to this process's peak


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))


def saved(content: object, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def repacked(blob: bytes, compression: int, more: dict[str, bytes] | None = None) -> bytes:
    """A checkpoint's archive, packed anew."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(blob)) as source, zipfile.ZipFile(out, "w", compression) as target:
        for entry in source.infolist():
            target.writestr(entry.filename, (more or {}).get(entry.filename.rpartition("/")[2], source.read(entry)))
    return out.getvalue()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("pwned"),)


class Buffer:
    """Ten gigabytes in a few bytes; allowed by torch.load(weights_only=True)."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10 * 2**30,)


class Shell:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pwned",)


class Calculator:
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("open('pwned', 'w')",)


# 4 MB of text of which 300,000 encoded copies are asked for; and a tuple of two tuples of two tuples ...
COPIES = (
    b"\x80\x02}q\x00X"
    + struct.pack("<I", 2**22)
    + b"x" * 2**22
    + b"q\x01X\x06\x00\x00\x00latin1q\x020"
    + b"c_codecs\nencode\nq\x03"
    + b"h\x03h\x01h\x02\x86R0" * 300_000
    + b"."
)
KNOT = b"\x80\x02}(K\x01K\x02\x86" + b"q\x01h\x01\x86" * 1000 + b"K\x01u."


def resized(state: dict[str, Any], size: list[int], stride: list[int]) -> bytes:
    """A checkpoint whose first tensor says that it has another shape."""
    blob = saved(state)
    with zipfile.ZipFile(io.BytesIO(blob)) as archive:
        program = archive.read("archive/data.pkl")
    start, memo = program.index(b"K\x03K\x04\x86q"), len(b"K\x03K\x04\x86q?")
    assert program[start + memo :].startswith(b"K\x04K\x01\x86q")
    numbers = [b"\x8a\x09" + number.to_bytes(9, "little", signed=True) for number in (*size, *stride)]
    now = b"".join((*numbers[:2], program[start + 4 : start + memo], *numbers[2:]))
    program = program[:start] + now + program[start + memo + 4 :]
    return repacked(blob, zipfile.ZIP_STORED, {"data.pkl": program})


def stored(changes: dict[str, Any]) -> dict[str, Any]:
    return {**network().state_dict(), **changes}


W = "0.weight"
ODD: dict[str, Callable[[], bytes]] = {
    "compressed.pt": lambda: bomb(),
    "bzip.pt": lambda: repacked(saved(network().state_dict()), zipfile.ZIP_BZIP2),
    "buffer.pt": lambda: saved({"w": Buffer()}),
    "buffer.pth": lambda: saved({"w": Buffer()}, _use_new_zipfile_serialization=False),
    "evil.pt": lambda: saved({"w": Evil()}),
    "evil.pth": lambda: pickle.dumps(Evil()),
    "new-pickle.pth": lambda: pickle.dumps({"w": 1}, protocol=5),
    "module.pt": lambda: saved(network()),
    "beside.pt": lambda: saved({"state_dict": stored({}), "args": Shell()}),
    "beside.pth": lambda: saved({"state_dict": stored({}), "a": Shell()}, _use_new_zipfile_serialization=False),
    "eval.pt": lambda: saved({"state_dict": stored({}), "args": Calculator()}),
    "copies.pt": lambda: repacked(saved({}), zipfile.ZIP_STORED, {"data.pkl": COPIES}),
    "knot.pt": lambda: repacked(saved({}), zipfile.ZIP_STORED, {"data.pkl": KNOT}),
    "overflow.pt": lambda: resized(stored({W: torch.ones(3, 4)}), [2**61, 2**61], [0, 0]),
    "past-end.pt": lambda: resized(stored({W: torch.ones(3, 4)}), [3, 4], [4, 2]),
    "negative.pt": lambda: resized(stored({W: torch.ones(3, 4)}), [3, 4], [-4, 1]),
    "cut.pth": lambda: saved(stored({}), _use_new_zipfile_serialization=False)[:-4],
    "sparse.pt": lambda: saved(stored({W: torch.eye(4).to_sparse()})),
    "meta.pt": lambda: saved(stored({W: torch.empty(10**10, device="meta")})),
    "complex.pt": lambda: saved(stored({W: torch.ones(3, 4, dtype=torch.complex64)})),
    "float8.pt": lambda: saved(stored({W: torch.ones(3, 4).to(torch.float8_e4m3fn)})),
    "integers.pt": lambda: saved(stored({W: torch.ones(3, 4, dtype=torch.int8)})),
    "flags.pt": lambda: saved(stored({"1.num_batches_tracked": torch.tensor(1.5)})),
    "view.pt": lambda: saved(stored({W: torch.zeros(3, 10**6)[:, :5]})),
    "expanded.pt": lambda: saved(stored({W: torch.zeros(1).expand(10**10)})),
    "numbers-as-names.pt": lambda: saved({1: torch.ones(2)}),
    "odd-names.pt": lambda: saved(stored({"\x1b[31m" + "x" * 10**5: torch.ones(2), "\n\ud800": torch.ones(1)})),
    "list.pt": lambda: saved([torch.ones(2)]),
    "number.pt": lambda: saved(5),
    "nothing.pt": lambda: saved({}),
    "missing.pt": lambda: saved({W: torch.ones(3, 4)}),
    "more.pt": lambda: saved(stored({f"layer{n}": torch.ones(1) for n in range(1000)})),
    "shape.pt": lambda: saved(stored({W: torch.ones(4, 3)})),
    "deep.pt": lambda: repacked(saved({}), zipfile.ZIP_STORED, {"data.pkl": b"\x80\x02" + b"(" * 10**5 + b"."}),
    "long.pt": lambda: repacked(saved({}), zipfile.ZIP_STORED, {"data.pkl": b"\x80\x02" + b"]" * (MAX_PROGRAM + 1)}),
    "no-program.pt": lambda: repacked(saved({}), zipfile.ZIP_STORED).replace(b"data.pkl", b"data.pkx"),
    "empty.pt": lambda: b"",
    "text.pt": lambda: b"version https://git-lfs.github.com/spec/v1\n",
    "empty.safetensors": lambda: b"",
    "huge-header.safetensors": lambda: struct.pack("<Q", 2**60) + b"{}",
    "header-past-end.safetensors": lambda: struct.pack("<Q", 1000) + b"{}",
    "deep.safetensors": lambda: struct.pack("<Q", 10**5) + b"[" * 10**5,
    "list.safetensors": lambda: struct.pack("<Q", 8) + b"[1,2,3] ",
    "float8.safetensors": lambda: save(stored({W: torch.ones(3, 4).to(torch.float8_e4m3fn)})),
    "integers.safetensors": lambda: save(stored({W: torch.ones(3, 4, dtype=torch.int32)})),
    "declared.safetensors": lambda: header('{"w":{"dtype":"F32","shape":[99999999999],"data_offsets":[0,4]}}', 4),
    "negative.safetensors": lambda: header('{"w":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}', 4),
    "overflow.safetensors": lambda: header(
        '{"w":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}}', 0
    ),
    "unknown-type.safetensors": lambda: header('{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}', 1),
    "odd-metadata.safetensors": lambda: header('{"__metadata__":{"logitbank":5}}', 0),
    "weights.onnx": lambda: b"",
}


def bomb() -> bytes:
    """Some hundred kB that unfold into 400 MB of zeros."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(saved({"w": torch.ones(1)}))) as source,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as target,
    ):
        for entry in source.infolist():
            if not entry.filename.endswith("data/0"):
                target.writestr(entry.filename, source.read(entry))
        with target.open("archive/data/0", "w") as zeros:
            for _ in range(400):
                zeros.write(bytes(2**20))
    return out.getvalue()


def header(text: str, num_bytes: int) -> bytes:
    padded = text.encode() + b" " * (-len(text) % 8)
    return struct.pack("<Q", len(padded)) + padded + bytes(num_bytes)


def damaged(number: int) -> tuple[str, bytes]:
    """A sound checkpoint with bytes changed, cut or put in."""
    rng = random.Random(number)
    kind = rng.choice(["pt", "pth", "safetensors"])
    state = network().state_dict()
    blob = bytearray(
        save(state) if kind == "safetensors" else saved(state, _use_new_zipfile_serialization=kind == "pt")
    )
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(min(len(blob), 2000) if rng.random() < 0.7 else len(blob))
        blob[place] = rng.randrange(256)
    if rng.random() < 0.3:
        del blob[rng.randrange(len(blob)) :]
    return f"damaged{number}.{kind}", bytes(blob)


def refusal(path: Path) -> str:
    """The message; empty when the weights are loaded."""
    try:
        load_weights(network(), path, architecture="mlp")
        read_metadata(path)
        read_training_keys(path)
    except ValueError as error:
        return str(error)
    return ""


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check(path: Path) -> None:
    said = refusal(path)
    assert said, path.name
    assert str(path) in said, said
    assert len(said) < 1500, said
    for advice in ("weights_only", "trust", "add_safe_globals", "arbitrary code"):
        assert advice not in said, said


@pytest.mark.parametrize("name", ODD)
def test_odd_checkpoints_are_refused_in_a_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(ODD[name]())
    before = peak_memory()
    check(tmp_path / name)
    assert peak_memory() - before < MOST_MEMORY
    assert not Path("pwned").exists()


def test_damaged_checkpoints_make_no_traceback(tmp_path: Path) -> None:
    before, refused = peak_memory(), 0
    for number in range(100):
        name, blob = damaged(number)
        (tmp_path / name).write_bytes(blob)
        said = refusal(tmp_path / name)
        refused += bool(said)
        assert not said or name in said, said
    assert refused > 60  # safetensors and old .pth files have no checksum: changed numbers are numbers
    assert peak_memory() - before < MOST_MEMORY


def test_sound_checkpoints_of_every_kind_are_loaded(tmp_path: Path) -> None:
    state = network().state_dict()
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.999)}]}
    kinds = {
        "plain.pt": saved(state),
        "old.pth": saved(state, _use_new_zipfile_serialization=False),
        "parallel.pt": saved({f"module.{name}": value for name, value in state.items()}),
        "whole.pt": saved({"state_dict": state, "epoch": 3, "optimizer": optimizer, "best": 0.5, "arch": "x"}),
        "half.pt": saved({name: v.half() if v.is_floating_point() else v for name, v in state.items()}),
        "options.pt": saved(
            {"state_dict": state, "args": argparse.Namespace(a=1, path=Path("x")), "lr": np.float64(1)}
        ),
        "modern.pt": saved({"state_dict": state, "args": argparse.Namespace(a=1)}, pickle_protocol=4),
        "set.pt": saved({"state_dict": state, "seen": {1, 2}, "count": Counter("aab"), "size": torch.Size([1])}),
        "strided.pt": saved({**state, W: state[W].t().contiguous().t()}),
        "parameters.pt": saved({**state, **dict(network().named_parameters())}),
        "plain.safetensors": save(state),
    }
    for name, blob in kinds.items():
        (tmp_path / name).write_bytes(blob)
        assert refusal(tmp_path / name) == ""
