"""Exports from strangers: whatever is in them, one line, no code run, nothing outside, memory for what is there."""

import io
import json
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.exchange import export_store, open_export
from logitbank.pipeline.exchange.npz import npy_header
from tests.exchange import FLIPS, C, N, make_data, make_store

MOST = 20e6  # bytes; what is declared below is a million times as much
Plant = Callable[[Path], None]


class Trap:
    """Writes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path("sprung").write_text, ("!",))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_data(tmp_path_factory.mktemp("data") / "d.npz")


@pytest.fixture(scope="module")
def exports(data: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one store as x.npz."""
    folder = tmp_path_factory.mktemp("exports")
    store = make_store(folder, data, Encoding(kind="topk", num_classes=C, top_k=3, bits=16))
    export_store(store, folder / "x.npz")
    return folder


def refused(path: Path, data: Split, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening, or else the first answer, is refused."""
    monkeypatch.chdir(path.parent)
    before = sorted(path.parent.iterdir())
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=message) as caught:
            build_teacher(data, f"export:{path}", "", FLIPS)(np.arange(N), 0)
        assert tracemalloc.get_traced_memory()[1] < MOST
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert sorted(path.parent.iterdir()) == before


def rewritten(source: Path, out: Path, **members: bytes) -> None:
    """A .npz with other members; b"" leaves one out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(out, "w") as new:
        for name in {*old.namelist(), *(f"{name}.npy" for name in members)}:
            content = members.get(name.removesuffix(".npy"))
            if content != b"":
                new.writestr(name, old.read(name) if content is None else content)


def npy(array: Any, *, allow_pickle: bool = False) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=allow_pickle)
    return file.getvalue()


def document(exports: Path, **changes: Any) -> dict[str, Any]:
    with np.load(exports / "x.npz") as file:
        said: dict[str, Any] = json.loads(str(file["store"]))
    for path, value in changes.items():
        *parents, name = path.split("__")
        section = said
        for parent in parents:
            section = section[parent]
        section[name] = value
    return said


def npz_with(**members: bytes) -> Callable[[Path, Path], None]:
    return lambda exports, out: rewritten(exports / "x.npz", out, **members)


def npz_saying(**changes: Any) -> Callable[[Path, Path], None]:
    return lambda exports, out: rewritten(
        exports / "x.npz", out, store=npy(np.array(json.dumps(document(exports, **changes))))
    )


def cut(exports: Path, out: Path) -> None:
    content = (exports / f"x{out.suffix}").read_bytes()
    out.write_bytes(content[: len(content) * 2 // 3])


def compressed(exports: Path, out: Path) -> None:
    with np.load(exports / "x.npz") as file:
        np.savez_compressed(out, **{name: file[name] for name in file.files})


HUGE = (2, 2**40, 3)
NPZ: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "cut off": (cut, "not a readable .npz"),
    "compressed": (compressed, "is compressed"),
    "a huge array": (npz_with(log_prob=npy_header(np.dtype("float32"), HUGE) + bytes(100)), "log_prob is not a plain"),
    "a huge header": (npz_with(log_prob=b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65_535), "log_prob is not a plain"),
    "an overflowing array": (npz_with(key=npy_header(np.dtype("uint64"), (2**62, 2**62))), "key is not a plain"),
    "pickled objects": (npz_with(key=npy(np.array([Trap()] * N), allow_pickle=True)), "nothing is unpickled"),
    "a pickle": (npz_with(key=pickle.dumps(Trap())), "key is not a plain"),
    "no keys": (npz_with(key=b""), "expected key"),
    "no document": (npz_with(store=b""), "not an export"),
    "a document of numbers": (npz_with(store=npy(np.arange(3))), "expected the document as text"),
    "no JSON": (npz_with(store=npy(np.array("{"))), "is no JSON"),
    "deep JSON": (npz_with(store=npy(np.array("[" * 100_000))), "is no JSON"),
    "another format": (npz_saying(format="cookbook"), "not an export"),
    "a later version": (npz_saying(version=2), "version 2"),
    "NaN in the document": (npz_saying(summary=float("nan")), "is no JSON"),
    "many examples": (npz_saying(dataset__num_examples=2**39), "expected key uint64"),
    "too many examples": (npz_saying(dataset__num_examples=2**62), "num_examples is"),
    "no views": (npz_saying(views__num_views=0), "num_views is 0"),
    "a view more": (npz_saying(views__num_views=3), "found"),
    "a list for views": (npz_saying(views=[1]), "num_views is None"),
    "nobody": (npz_saying(identity={}), "who the teacher is"),
    "unknown arrays": (npz_saying(arrays={"os.system": {}}), "arrays are os.system"),
    "another dtype": (npz_saying(arrays__log_prob={"dtype": "O", "row_shape": [3]}), "log_prob is declared"),
    "more kept than classes": (npz_saying(arrays__index={"dtype": "uint8", "row_shape": [11]}), "index is declared"),
    "a negative size": (npz_saying(arrays__index={"dtype": "uint8", "row_shape": [-3]}), "index is declared"),
    "classes beyond": (npz_with(index=npy(np.full((2, N, 3), 200, np.uint8))), "class 200 of 10"),
    "classes twice": (npz_with(index=npy(np.zeros((2, N, 3), np.uint8))), "names a class twice"),
    "logits for log-probabilities": (npz_with(log_prob=npy(np.ones((2, N, 3), np.float32))), "add to"),
    "NaN": (npz_with(log_prob=npy(np.full((2, N, 3), np.nan, np.float32))), "add to nan"),
    "infinite logits": (npz_with(logsumexp=npy(np.full((2, N), np.inf, np.float32))), "add to"),
}


@pytest.mark.parametrize("how", NPZ)
def test_npz(how: str, exports: Path, data: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, message = NPZ[how]
    plant(exports, tmp_path / "y.npz")
    refused(tmp_path / "y.npz", data, message, monkeypatch)


def test_a_flipped_bit_changes_no_number(exports: Path, tmp_path: Path) -> None:
    """It is found, or it is where nothing is read."""
    sound, rows = open_export(exports / "x.npz"), np.arange(N)
    content = (exports / "x.npz").read_bytes()
    num_refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(place) % 8
        (tmp_path / "y.npz").write_bytes(damaged)
        try:
            found = open_export(tmp_path / "y.npz")
            answers = found.rows(1, rows)
        except ValueError as error:
            num_refused += len(str(error).splitlines()) == 1
            continue
        assert (found.keys == sound.keys).all()
        assert (found.labels == sound.labels).all()
        for name, expected in sound.rows(1, rows).items():
            np.testing.assert_array_equal(answers[name], expected)
    assert num_refused > 15  # much of a small file is what is not read
