"""Pictures in tar shards, .parquet files and the hub's tables: the rows of the folder that they were made of."""

import io
import os
import resource
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from logitbank.pipeline.datasets import Split, load_split

NAMES = ("ant", "bee", "cat")
N = 12
OPENED: list[str] = []


def _listen(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and str(arguments[0]).endswith((".tar", ".parquet", ".pictures")):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_listen)


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same pictures, of several sizes, in a folder, in three shards and in two tables."""
    folder = tmp_path_factory.mktemp("packed")
    rows = []
    for number in range(N):
        name = NAMES[number * len(NAMES) // N]
        path = folder / "folder" / name / f"{number:02d}.{'jpg' if number % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 255, (20 + number, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path)
        rows.append((path, number * len(NAMES) // N))
    for shard in range(3):
        with tarfile.open(folder / f"s-{shard}.tar", "w", format=tarfile.PAX_FORMAT) as archive:
            archive.addfile(tarfile.TarInfo("a folder/"))
            for path, label in rows[4 * shard : 4 * shard + 4]:
                stem = f"{'long' * 40}/ä.{path.stem}" if shard else path.stem
                add(archive, f"{stem.replace('.', '_')}.json", b"{}")
                add(archive, f"{stem.replace('.', '_')}{path.suffix}", path.read_bytes())
                add(archive, f"{stem.replace('.', '_')}.cls", b"%d" % label)
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    for file in range(2):
        part = rows[6 * file : 6 * file + 6]
        column = pyarrow.array([{"bytes": path.read_bytes(), "path": path.name} for path, _ in part], kind)
        table = pyarrow.table({"image": column, "label": [label for _, label in part], "note": ["x"] * 6})
        about = '{"info": {"features": {"label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}}}'
        table = table.replace_schema_metadata({"huggingface": about})
        pyarrow.parquet.write_table(table, folder / f"t-{file}.parquet", row_group_size=4)
    time.sleep(2.1)
    return folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOGITBANK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "files"


SPECS = {"tar": "webdataset:{}/s-*.tar", "parquet": "parquet:{}/t-*.parquet"}


def pixels(split: Split, row: int) -> np.ndarray:
    assert split.originals is not None
    return np.asarray(split.originals.source.original(row))


@pytest.mark.parametrize("kind", SPECS)
def test_the_rows_are_those_of_the_folder(kind: str, made: Path) -> None:
    folder, packed = load_split(f"imagefolder:{made}/folder"), load_split(SPECS[kind].format(made))
    assert (packed.keys == folder.keys).all()
    assert packed.key_space == folder.key_space
    assert packed.fingerprint == folder.fingerprint
    assert all(np.array_equal(pixels(packed, row), pixels(folder, row)) for row in (7, 0, 11, 3))
    some = load_split(f"{packed.spec}&limit=5")
    assert (some.keys == packed.keys[[0, 2, 4, 7, 9]]).all()
    assert np.array_equal(pixels(some, 3), pixels(folder, 7))
    small = load_split(f"{packed.spec}&size=8")
    assert small.samples.shape == (N, 8, 8, 3)
    assert (small.keys == load_split(f"imagefolder:{made}/folder?size=8").keys).all()
    if kind == "parquet":
        assert packed.class_names == NAMES


@pytest.mark.parametrize("kind", SPECS)
def test_a_second_command_reads_an_index(kind: str, made: Path) -> None:
    first = load_split(SPECS[kind].format(made))
    assert len(first.keys) == N
    OPENED.clear()
    again = load_split(SPECS[kind].format(made))
    assert (again.keys == first.keys).all()
    assert not [path for path in OPENED if path.endswith(".tar")]
    assert sum(path.endswith(".pictures") for path in OPENED) <= 1  # held, so that it stays; no row is read
    assert np.array_equal(pixels(again, 5), pixels(first, 5))
    assert len({path for path in OPENED if path.endswith((".tar", ".pictures"))}) == 1


@pytest.mark.parametrize("kind", SPECS)
def test_changed_files_and_lost_indices_are_read_anew(kind: str, made: Path, tmp_path: Path, cache: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    spec = f"{SPECS[kind].format(copy)}?classes=3"
    first = load_split(spec)
    assert len(first.keys) == N
    for file in cache.iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    again = load_split(spec)
    assert (again.keys == first.keys).all()
    assert np.array_equal(pixels(again, 11), pixels(first, 11))
    ending = "tar" if kind == "tar" else "parquet"
    files = sorted(copy.glob(f"*.{ending}"))
    before = files[0].stat()
    shutil.copy(files[-1], files[0])
    os.utime(files[0], ns=(before.st_atime_ns, before.st_mtime_ns))
    changed = load_split(spec)
    assert (changed.keys[: N // len(files)] == first.keys[-(N // len(files)) :]).all()


def tar(*members: tuple[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, data in members:
            add(archive, name, data)
    return file.getvalue()


def png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (5, 4)).save(file, "PNG")
    return file.getvalue()


def declares(kind: bytes, size: int) -> bytes:
    """A tar file whose first header says that more bytes follow than there are."""
    member = tarfile.TarInfo("00.png")
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


GOOD = (("0.png", png()), ("0.cls", b"0"), ("1.png", png()), ("1.cls", b"1"))
ODD: dict[str, tuple[Callable[[], bytes], str]] = {
    "huge-member": (lambda: declares(tarfile.REGTYPE, 2**40), "cut off"),
    "huge-pax": (lambda: declares(tarfile.XHDTYPE, 2**40), "no sound tar file"),
    "huge-name": (lambda: declares(tarfile.GNUTYPE_LONGNAME, 2**33), "no sound tar file"),
    "cut": (lambda: tar(*GOOD)[:600], r"is cut off|no sound tar"),
    "empty": (lambda: b"", "no sound tar file"),
    "nonsense": (lambda: b"nonsense" * 1000, "no sound tar file"),
    "no-members": (lambda: tar(), "no pictures in"),
    "two": (lambda: tar(("0.png", png()), ("0.jpg", png())), "holds two pictures"),
    "no-picture": (lambda: tar(*GOOD, ("2.cls", b"1")), "has a label and no picture"),
    "long-label": (lambda: tar(("0.png", png()), ("0.cls", b"1" * 5000)), "has 5000 bytes"),
    "binary-label": (lambda: tar(("0.png", png()), ("0.cls", b"\xff\xfe")), "is no text"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_shards_are_refused_in_a_line(name: str, tmp_path: Path) -> None:
    make, message = ODD[name]
    (tmp_path / "d.tar").write_bytes(make())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=message) as caught:
        load_split(f"webdataset:{tmp_path}/d.tar")
    assert "\n" not in str(caught.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_shards_that_are_no_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no file '.*no-\*.tar'; expected tar shards"):
        load_split(f"webdataset:{tmp_path}/no-*.tar")
    with tarfile.open(tmp_path / "d.tar.gz", "w:gz") as archive:
        add(archive, "0.png", png())
    with pytest.raises(ValueError, match="uncompressed"):
        load_split(f"webdataset:{tmp_path}/d.tar.gz")
    (tmp_path / "d.tar").write_bytes(tar(*GOOD, ("2.png", b"no picture"), ("3.png", png())))
    split = load_split(f"webdataset:{tmp_path}/d.tar")
    assert split.labels.tolist() == [0, 1, -1, -1]
    with pytest.raises(ValueError, match=r"d.tar: the picture at byte \d+ cannot be decoded"):
        pixels(split, 2)
    with pytest.raises(ValueError, match="pass test=PATTERN"):
        load_split(f"webdataset:{tmp_path}/d.tar?split=test")


def tables() -> Iterator[tuple[str, dict[str, Any], str]]:
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    sound = {"bytes": png(), "path": None}
    yield "?label=y", {"image": pyarrow.array([sound], kind), "label": [0]}, "no column 'y'; it has image, label"
    yield "", {"image": pyarrow.array([sound, None], kind), "label": [0, 1]}, "row 1 of .* holds no picture"
    yield "?image=label", {"image": pyarrow.array([sound], kind), "label": [0]}, "row 0 of .* holds no picture"
    yield "?drop=label", {"image": pyarrow.array([sound], kind), "label": [0]}, "drop does nothing here"
    yield "?split=test", {"image": pyarrow.array([sound], kind), "label": [0]}, "pass test=PATTERN"
    yield "?size=3", {"a": [1], "label": [0]}, "size does nothing here, because it holds no pictures"


@pytest.mark.parametrize("case", range(6))
def test_odd_tables_are_refused_in_a_line(case: int, tmp_path: Path, cache: Path) -> None:
    options, columns, message = list(tables())[case]
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "d.parquet")
    with pytest.raises(ValueError, match=message) as caught:
        load_split(f"parquet:{tmp_path}/d.parquet{options}")
    assert "\n" not in str(caught.value)
    assert not cache.exists() or not list(cache.iterdir())


@pytest.mark.filterwarnings("ignore")
def test_the_hubs_own_library_keeps_the_bytes(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    (tmp_path / "data").mkdir()
    for file in range(2):
        shutil.copy(made / f"t-{file}.parquet", tmp_path / "data" / f"train-{file}.parquet")
    folder, hub = load_split(f"imagefolder:{made}/folder"), load_split(f"hf:{tmp_path}/data")
    assert (hub.keys == folder.keys).all()
    assert np.array_equal(pixels(hub, 7), pixels(folder, 7))
    with pytest.raises(ValueError, match="holds no picture"):
        load_split(f"hf:{tmp_path}/data?image=label")


def shard(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            add(archive, name, data)


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (9, 8, 3), np.uint8)).save(file, "PNG")
    return file.getvalue()


def test_splits_without_labels_leave_the_others_ids_alone(tmp_path: Path) -> None:
    labelled = [("0.png", picture(0)), ("0.cls", b"0"), ("1.png", picture(1)), ("1.cls", b"2"), ("2.png", picture(2))]
    shard(tmp_path / "train.tar", *labelled)
    shard(tmp_path / "test.tar", ("3.png", picture(3)), ("4.png", picture(4)))
    spec = f"webdataset:{tmp_path}/train.tar?test={tmp_path}/test.tar"
    for each in (spec, f"webdataset:{tmp_path}/train.tar"):
        train = load_split(each)
        assert (train.labels.tolist(), train.num_classes, train.class_names) == ([0, 2, -1], 3, ())
    assert load_split(f"{spec}&split=test").labels.tolist() == [-1, -1]
    swapped = f"webdataset:{tmp_path}/test.tar?test={tmp_path}/train.tar&first_label=0&classes=3"
    assert load_split(swapped).labels.tolist() == [-1, -1]
    np.savez(tmp_path / "a.npz", x=np.eye(4), y=[0, 2, -1, 2], x_test=np.eye(4)[:2], y_test=["", ""])
    assert load_split(f"npz:{tmp_path}/a.npz").labels.tolist() == [0, 2, -1, 2]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
@pytest.mark.parametrize("name", ["b.png", "b.cls"])
def test_links_of_a_shard_are_no_lost_rows(kind: bytes, name: str, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        add(archive, "a.png", picture(0))
        add(archive, "a.cls", b"0")
        link = tarfile.TarInfo(name)
        link.type, link.linkname = kind, f"a.{name[2:]}"
        archive.addfile(link)
        add(archive, "c.png", picture(1))
        add(archive, "c.cls", b"1")
    with pytest.raises(ValueError, match=f"{name} is a link .*--dereference"):
        load_split(f"webdataset:{tmp_path}/s.tar")


def test_each_command_says_what_of_a_shard_is_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = [("a.png", picture(0)), ("a.cls", b"0"), ("b.1.png", picture(1)), ("b.1.cls", b"1")]
    shard(tmp_path / "s.tar", *members, ("._c.png", b""), ("c.png", picture(2)), ("c.cls", b"1"), ("d.png", picture(3)))
    time.sleep(2.1)
    for _ in range(2):
        caplog.clear()
        assert load_split(f"webdataset:{tmp_path}/s.tar").labels.tolist() == [0, 1, -1]
        assert "1 samples hold no picture, and are no rows: /b" in caplog.text
        assert "2 members are not read: b.1.png, b.1.cls" in caplog.text
        assert "1 of 3 samples have no member .cls" in caplog.text
    shard(tmp_path / "t.tar", ("a.png", picture(0)), ("a.cls", b"0"), ("a.cls", b"1"))
    with pytest.raises(ValueError, match="holds two labels"):
        load_split(f"webdataset:{tmp_path}/t.tar")


def table(path: Path, labels: Any, names: str = "") -> None:
    column = pyarrow.array([picture(number) for number in range(len(labels))], pyarrow.binary())
    made = pyarrow.table({"image": column, "label": labels})
    about = {"huggingface": f'{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}'} if names else {}
    pyarrow.parquet.write_table(made.replace_schema_metadata(about), path)


def test_tables_that_name_their_classes_otherwise_are_not_joined(tmp_path: Path) -> None:
    table(tmp_path / "t-0.parquet", [0, 1], '["cat", "dog"]')
    table(tmp_path / "t-1.parquet", [0, 1], '["dog", "cat"]')
    for spec in ("t-*.parquet", f"t-0.parquet?test={tmp_path}/t-1.parquet"):
        with pytest.raises(ValueError, match="t-1.parquet names its classes dog, cat, but .*t-0.parquet cat, dog"):
            load_split(f"parquet:{tmp_path}/{spec}{'&' if '?' in spec else '?'}image=image")
    table(tmp_path / "u-0.parquet", ["cat", "dog"])
    table(tmp_path / "u-1.parquet", [0, 1])
    with pytest.raises(ValueError, match="text in some files and numbers in others"):
        load_split(f"parquet:{tmp_path}/u-*.parquet?image=image")
    table(tmp_path / "u-1.parquet", pyarrow.array([None, None], pyarrow.int64()))
    unlabelled = f"parquet:{tmp_path}/u-0.parquet?image=image&split=test&test={tmp_path}/u-1.parquet"
    assert load_split(unlabelled).labels.tolist() == [-1, -1]


def damaged(kind: str) -> bytes:
    """A picture that is none, is cut off, or has damage inside that only a decoder sees."""
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(whole, "PNG")
    data = whole.getvalue()
    middle = len(data) // 2
    return {"none": b"<html>", "cut": data[:middle], "inside": data[:middle] + b"\0" * 64 + data[middle + 64 :]}[kind]


@pytest.mark.parametrize("source", SPECS)
@pytest.mark.parametrize("kind", ["none", "cut", "inside"])
def test_a_junk_member_is_found_before_a_pass_and_can_be_masked(
    source: str, kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [picture(0), damaged(kind), picture(2)]
    shard(
        tmp_path / "s-0.tar",
        *(member for n, data in enumerate(pictures) for member in ((f"{n}.png", data), (f"{n}.cls", b"%d" % (n % 2)))),
    )
    kind_of = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    column = pyarrow.array([{"bytes": data, "path": ""} for data in pictures], kind_of)
    pyarrow.parquet.write_table(pyarrow.table({"image": column, "label": [0, 1, 0]}), tmp_path / "t-0.parquet")
    spec = SPECS[source].format(tmp_path)
    where = "row 1 of" if source == "parquet" else "s-0.tar: the picture at byte"
    split = load_split(spec)
    if kind == "inside":  # nothing but decoding finds it: the pass stops there, and names it
        assert len(split.keys) == 3
        with pytest.raises(ValueError, match=f"{where}.*cannot be decoded.*mend or remove it, or pass on_error=skip"):
            pixels(split, 1)
    else:
        with pytest.raises(ValueError, match=f"1 pictures cannot be decoded.*{where}.*or pass on_error=skip"):
            _ = split.keys
        assert len(load_split(f"{spec}?limit=1").keys) == 1
    time.sleep(2.1)
    for _ in range(2):  # the second time from notes
        caplog.clear()
        OPENED.clear()
        masked = load_split(f"{spec}?on_error=skip")
        assert masked.readable is not None
        assert masked.readable.tolist() == [True, False, True]
        assert "their rows are masked" in caplog.text
        assert (pixels(masked, 1) == 0).all()
    assert len(masked.keys) == 3
