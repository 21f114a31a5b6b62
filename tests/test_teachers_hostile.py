"""Exports from strangers: whatever is in them, one line, no code run, nothing outside, memory for what is there."""

import io
import json
import pickle
import tarfile
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
from logitbank.pipeline.exchange import export_store, open_export, parquet
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
    """A folder with one store as x.npz, x.tar and, where pyarrow is, x.parquet."""
    folder = tmp_path_factory.mktemp("exports")
    store = make_store(folder, data, Encoding(kind="topk", num_classes=C, top_k=3, bits=16))
    for ending in (".npz", ".tar", ".parquet"):
        if ending == ".parquet":
            pytest.importorskip("pyarrow")
        export_store(store, folder / f"x{ending}")
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


def tar_with(edit: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes] | None]) -> Any:
    """A tar whose third sample's first member was edited; None leaves it out."""

    def plant(exports: Path, out: Path) -> None:
        with tarfile.open(exports / "x.tar") as old, tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as new:
            for place, info in enumerate(old.getmembers()):
                file = old.extractfile(info)
                assert file is not None
                content = file.read()
                edited = edit(info, content) if place == 7 else (info, content)
                if edited is not None:
                    edited[0].size = len(edited[1])
                    new.addfile(edited[0], io.BytesIO(edited[1]))

    return plant


def kind(name: bytes, target: str = "") -> Any:
    def edit(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        info.type, info.linkname = name, target
        return info, b""

    return tar_with(edit)


def named(name: str) -> Any:
    def edit(info: tarfile.TarInfo, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
        info.name = name
        return info, content

    return tar_with(edit)


def saying(content: bytes) -> Any:
    return tar_with(lambda info, old: (info, content))


def huge_member(exports: Path, out: Path) -> None:
    content = bytearray((exports / "x.tar").read_bytes())
    info = tarfile.TarInfo("0" * 16 + ".json")
    info.size = 2**60
    first = tarfile.TarInfo.frombuf(bytes(content[:512]), "utf-8", "strict").size
    start = 512 + -(-first // 512) * 512
    content[start : start + 512] = info.tobuf(tarfile.GNU_FORMAT)
    out.write_bytes(content)


def large_header(exports: Path, out: Path) -> None:
    """A pax header of 100 MB, which Python's own tarfile would read at once."""
    with tarfile.open(out, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x" * 100_000_000}):
        pass


TAR: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "cut off": (cut, "cut off|a shard is missing|lacks members"),
    "a symbolic link": (kind(tarfile.SYMTYPE, "/etc/passwd"), "is no plain file"),
    "a hard link": (kind(tarfile.LNKTYPE, "__store__"), "is no plain file"),
    "a folder": (kind(tarfile.DIRTYPE), "is no plain file"),
    "a device": (kind(tarfile.CHRTYPE), "is no plain file"),
    "a sparse file": (kind(tarfile.GNUTYPE_SPARSE), "is no plain file"),
    "a path out": (named("../../evil.json"), "which is no part"),
    "an absolute path": (named("/tmp/evil.json"), "which is no part"),
    "another sample's member": (named("0" * 16 + ".json"), "lacks members"),
    "a missing member": (tar_with(lambda info, content: None), "lacks members"),
    "a huge member": (huge_member, "cut off in"),
    "a large header": (large_header, "no plain file|not an export"),
    "no document": (lambda exports, out: tarfile.open(out, "w").close(), "not an export"),
    "no JSON": (saying(b"{"), "the json of sample 2 is damaged"),
    "deep JSON": (saying(b"[" * 4000), "the json of sample 2 is damaged"),
    "another key": (saying(b'{"key": "0000000000000000", "label": 1}'), "is damaged"),
    "a large JSON": (saying(b" " * 1_000_000), "which is no part"),
}


@pytest.mark.parametrize("how", TAR)
def test_tar(how: str, exports: Path, data: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, message = TAR[how]
    plant(exports, tmp_path / "y.tar")
    refused(tmp_path / "y.tar", data, message, monkeypatch)


@pytest.mark.parametrize(
    "content",
    [
        npy_header(np.dtype("float32"), (2, 2**40)),
        npy_header(np.dtype("float32"), (2, 4)) + bytes(32),
        npy(np.array([Trap()]), allow_pickle=True),
        b"\x93NUMPY\x01\x00\xff\xff",
        b"",
    ],
)
def test_vectors_in_a_tar(
    content: bytes, exports: Path, data: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "y.tar"
    with tarfile.open(exports / "x.tar") as old, tarfile.open(target, "w", format=tarfile.USTAR_FORMAT) as new:
        first = next(name for name in old.getnames() if name.endswith(".log_prob.npy"))
        for info in old.getmembers():
            member = old.extractfile(info)
            assert member is not None
            part = content if info.name == first else member.read()
            info.size = len(part)
            new.addfile(info, io.BytesIO(part))
    refused(target, data, "log_prob of sample 0 is damaged", monkeypatch)


def parquet_with(change: Callable[[Any], Any]) -> Callable[[Path, Path], None]:
    def plant(exports: Path, out: Path) -> None:
        import pyarrow.parquet as parquet

        parquet.write_table(change(parquet.read_table(exports / "x.parquet")), out)

    return plant


def saying_parquet(**changes: Any) -> Any:
    def plant(exports: Path, out: Path) -> None:
        said = json.dumps(document(exports, **changes))
        parquet_with(lambda table: table.replace_schema_metadata({"store": said}))(exports, out)

    return plant


def without_values(table: Any) -> Any:
    import pyarrow

    place = table.column_names.index("log_prob")
    values = pyarrow.array([None] * len(table), type=table.schema.field(place).type)
    return table.set_column(place, "log_prob", values)


PARQUET: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "cut off": (cut, "not a readable .parquet"),
    "no document": (parquet_with(lambda table: table.replace_schema_metadata(None)), "not an export"),
    "rows moved": (parquet_with(lambda table: table.take(np.roll(np.arange(2 * N), 1))), "the rows were moved"),
    "rows missing": (parquet_with(lambda table: table.slice(0, N)), "has 120 rows; expected 2 views"),
    "a column missing": (parquet_with(lambda table: table.drop(["label"])), "expected column label"),
    "another type": (
        parquet_with(lambda table: table.set_column(2, "label", table["label"].cast("int64"))),
        "expected column label int32, found int64",
    ),
    "values missing": (parquet_with(without_values), "damaged"),
    "many examples": (saying_parquet(dataset__num_examples=2**39), "has 240 rows"),
    "no rows": (parquet_with(lambda table: table.slice(0, 0)), "has 0 rows"),
}


@pytest.mark.parametrize("how", PARQUET)
def test_parquet(how: str, exports: Path, data: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant, message = PARQUET[how]
    plant(exports, tmp_path / "y.parquet")
    open_export(exports / "x.parquet")  # what is imported takes memory, too
    refused(tmp_path / "y.parquet", data, message, monkeypatch)


def test_row_groups_that_unfold_to_more_than_memory(exports: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MAX_ROW_GROUP_BYTES", 5000)
    with pytest.raises(ValueError, match="row group 0 unfolds to"):
        open_export(exports / "x.parquet")


def test_shards_of_two_exports_are_not_mixed(exports: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    (folder / "000000.tar").write_bytes((exports / "x.tar").read_bytes())
    content = (exports / "x.tar").read_bytes().replace(b'"teacher": "teacher"', b'"teacher": "another"', 1)
    (folder / "000001.tar").write_bytes(content)
    with pytest.raises(ValueError, match="of another export than 000000.tar"):
        open_export(folder)


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_a_flipped_bit_changes_no_number(ending: str, exports: Path, tmp_path: Path) -> None:
    """It is found, or it is where nothing is read."""
    sound, rows = open_export(exports / f"x{ending}"), np.arange(N)
    content = (exports / f"x{ending}").read_bytes()
    num_refused = 0
    for place in np.random.default_rng(0).integers(0, len(content), 60):
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(place) % 8
        (tmp_path / f"y{ending}").write_bytes(damaged)
        try:
            found = open_export(tmp_path / f"y{ending}")
            answers = found.rows(1, rows)
        except ValueError as error:
            num_refused += len(str(error).splitlines()) == 1
            continue
        assert (found.keys == sound.keys).all()
        assert (found.labels == sound.labels).all()
        for name, expected in sound.rows(1, rows).items():
            np.testing.assert_array_equal(answers[name], expected)
    assert num_refused > 15  # much of a small file is what is not read
