"""Malice and mistakes: what is no store, or means harm, ends in one clear line; nothing executed or written."""

import json
import os
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr

from logitbank.stores import Cell, create_store, open_store, verify_store
from logitbank.stores.format.documents import sealed
from tests.test_stores import C, K, N, V, description, finished, rows, writer
from tests.test_stores_faults import everything, one_line


def test_what_is_no_store(tmp_path: Path) -> None:
    one_line(lambda: open_store(tmp_path / "nothing"), "found nothing")
    one_line(lambda: open_store(tmp_path), "no zarr.json")
    file = tmp_path / "file"
    file.write_text("x")
    one_line(lambda: open_store(file), "found a file")
    one_line(lambda: create_store(file, **description()), "found a file")
    group = tmp_path / "g.zarr"
    zarr.create_group(str(group), attributes={"x": 1})
    one_line(lambda: open_store(group), "must be a teacher-logit-store")
    one_line(lambda: create_store(group, **description()), "must be a teacher-logit-store")
    zarr.create_array(str(tmp_path / "a.zarr"), shape=(3,), dtype="i4")
    one_line(lambda: open_store(tmp_path / "a.zarr"), "must be a teacher-logit-store")
    one_line(lambda: writer(tmp_path / "nothing"), "found nothing")
    assert verify_store(tmp_path / "nothing")


def edit(path: Path, change: Callable[[dict[str, Any]], object], folder: str = "") -> None:
    """Change one document of a store and make every digest agree with it, as one who means harm would."""
    top = "" if not folder.startswith("teachers/") else "/".join(folder.split("/")[:2])
    file = path / folder / "zarr.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    own = json.loads((path / top / "zarr.json").read_text())
    below = {name: path / top / name / "zarr.json" for name in own["attributes"]["documents"]}
    nothing: dict[str, Any] = {"attributes": {}}
    documents = {name: json.loads(file.read_text()) if file.exists() else nothing for name, file in below.items()}
    (path / top / "zarr.json").write_text(json.dumps(sealed({"": own, **documents})[""]))


def test_a_future_version_is_refused(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    edit(path, lambda document: document["attributes"].update(version=3, new={"a": 1}))
    one_line(lambda: open_store(path), "format version 3, this program reads versions 1 and 2")
    assert "version 3" in verify_store(path)[0].message


INDEX = "teachers/t/index"
HOSTILE: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "endless examples": ("", lambda d: d["attributes"]["dataset"].update(num_examples=2**40)),
    "more examples than there are": ("", lambda d: d["attributes"]["dataset"].update(num_examples=N + 1)),
    "examples as a text": ("", lambda d: d["attributes"]["dataset"].update(num_examples="9\n" * 99)),
    "examples as a bool": ("", lambda d: d["attributes"]["dataset"].update(num_examples=True)),
    "endless views": ("", lambda d: d["attributes"]["views"].update(num_views=2**20)),
    "too many views": ("", lambda d: d["attributes"]["views"].update(num_views=2**62)),
    "no views": ("", lambda d: d["attributes"].pop("views")),
    "fewer classes than kept": ("", lambda d: d["attributes"]["dataset"].update(num_classes=0)),
    "a document outside": ("", lambda d: d["attributes"]["documents"].update({"../../x": "0"})),
    "an absolute document": ("", lambda d: d["attributes"]["documents"].update({"/etc": "0"})),
    "endless keys": ("examples/key", lambda d: d.update(shape=[2**50])),
    "keys as objects": ("examples/key", lambda d: d.update(data_type="object")),
    "keys as text": (
        "examples/key",
        lambda d: d.update(data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 4}}),
    ),
    "a fill value": ("examples/label", lambda d: d.update(fill_value=7)),
    "a pickling codec": (
        INDEX,
        lambda d: d.update(codecs=[{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}]),
    ),
    "a codec by dotted path": (INDEX, lambda d: d["codecs"].insert(0, {"name": "os.system"})),
    "no checksum": (INDEX, lambda d: d["codecs"].pop()),
    "another compressor": (INDEX, lambda d: d["codecs"][1]["configuration"].update(cname="snappy")),
    "codecs as a text": (INDEX, lambda d: d.update(codecs="blosc")),
    "an endless shape": (INDEX, lambda d: d.update(shape=[V, 2**60, K])),
    "endless chunks": (INDEX, lambda d: d["chunk_grid"]["configuration"].update(chunk_shape=[1, 2**40, K])),
    "a storage transformer": (INDEX, lambda d: d.update(storage_transformers=[{"name": "x"}])),
    "an unknown field": (INDEX, lambda d: d.update(must_understand_me={"name": "x"})),
    "another key encoding": (INDEX, lambda d: d.update(chunk_key_encoding={"name": "v2"})),
    "a float index": (INDEX, lambda d: d.update(data_type="float64")),
    "another k": ("teachers/t", lambda d: d["attributes"]["encoding"].update(top_k=K + 1)),
    "endless rows of a block": ("teachers/t", lambda d: d["attributes"].update(block_rows=2**40)),
    "one row a block": ("teachers/t", lambda d: d["attributes"].update(block_rows=1)),
    "an unknown array": ("teachers/t", lambda d: d["attributes"]["arrays"].update(evil={"dtype": "uint8"})),
    "arrays as a list": ("teachers/t", lambda d: d["attributes"].update(arrays=["index"])),
    "an endless row": (
        "teachers/t",
        lambda d: d["attributes"]["arrays"]["index"].update(row_shape=[2**62]),
    ),
    "an object array": ("teachers/t", lambda d: d["attributes"]["arrays"]["index"].update(dtype="object")),
    "complete, with no commits": ("teachers/t", lambda d: d["attributes"].pop("cells_sha256")),
    "a huge constant": ("teachers/t/tail_bias", lambda d: d.update(shape=[2**50])),
    "a constant of many chunks": (
        "teachers/t/tail_bias",
        lambda d: (d.update(shape=[2**50]), d["chunk_grid"]["configuration"].update(chunk_shape=[1])),
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata_is_refused(case: str, tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    folder, change = HOSTILE[case]
    edit(path, change, folder)
    one_line(lambda: everything(path))
    assert verify_store(path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.zarr"]


def test_hostile_json(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    for text in (
        "[" * 100_000,
        "[]",
        "1e999",
        '{"attributes": 3}',
        '{"attributes": {"x": ' + "9" * 5000 + "}}",
        "\xff",
    ):
        (path / "zarr.json").write_text(text, encoding="latin-1")
        one_line(lambda: open_store(path))


@pytest.mark.parametrize("name", ["../x", "/x", "a/b", ".hidden", "", "x" * 200, "a\nb", "..", "x.partial", 3])
def test_path_tricks_in_names(name: Any, tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    one_line(lambda: writer(path, name=name))
    one_line(lambda: open_store(path).teacher(name))
    one_line(lambda: writer(path, name="u", constants={name: np.zeros(1)}))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["s.zarr"]
    assert open_store(path, allow_incomplete=True).teachers == ("t",)


@pytest.mark.parametrize(
    "target",
    ["zarr.json", "teachers/t", "teachers/t/index/c/0/0/0", "teachers/t/committed/c/0", "examples/key/c/0"],
)
def test_links_out_of_the_store_are_refused(target: str, tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    (path / target).rename(tmp_path / "outside")
    (path / target).symlink_to(tmp_path / "outside")
    one_line(lambda: everything(path), "inside the store")
    assert verify_store(path)
    if target.startswith("teachers/t"):
        before = {file: file.read_bytes() for file in (tmp_path / "outside").rglob("*") if file.is_file()}
        sound = writer(finished(tmp_path / "sound.zarr"))
        answers = rows(sound, Cell(0, 0), seed=1)
        one_line(lambda: writer(path).write(Cell(0, 0), answers))
        assert before == {file: file.read_bytes() for file in (tmp_path / "outside").rglob("*") if file.is_file()}


def test_a_special_file_is_not_read(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    chunk = path / "teachers/t/index/c/0/0/0"
    chunk.unlink()
    os.mkfifo(chunk)
    one_line(lambda: open_store(path).teacher().slab(0), "plain file")


def test_a_piece_that_claims_to_be_huge_is_not_decoded(tmp_path: Path) -> None:
    path = finished(tmp_path / "s.zarr")
    chunk = path / "teachers/t/index/c/0/0/0"
    data = bytearray(chunk.read_bytes())
    data[4:8] = (2**31 - 1).to_bytes(4, "little")
    data[-4:] = int(google_crc32c.value(bytes(data[:-4]))).to_bytes(4, "little")
    chunk.write_bytes(data)
    one_line(lambda: open_store(path).teacher().slab(0), "decode to 2560 bytes")


def test_a_slab_larger_than_memory_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = finished(tmp_path / "s.zarr")
    monkeypatch.setattr("logitbank.stores.read.memory.available_memory", lambda: 1000)
    one_line(lambda: open_store(path).teacher().slab(0), "block by block")


def test_memory_stays_bounded_by_what_is_on_disk(tmp_path: Path) -> None:
    """A store that declares a terabyte costs no more memory than an honest one."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for case in ("endless examples", "endless views", "endless keys", "a constant of many chunks"):
        path = finished(tmp_path / f"{case}.zarr")
        folder, change = HOSTILE[case]
        edit(path, change, folder)
        one_line(lambda path=path: everything(path))  # type: ignore[misc]
        assert verify_store(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_too_many_classes_for_labels(tmp_path: Path) -> None:
    one_line(
        lambda: create_store(
            tmp_path / "s.zarr", **description(dataset=description()["dataset"] | {"num_classes": C - 50})
        ),
        "labels must be",
    )
