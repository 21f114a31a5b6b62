"""Laws over the table of sources: every record is a row, and every option has a domain: outside it is refused in one
line, inside it changes what is read."""

import inspect
import io
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from logitbank.pipeline.datasets import SOURCES, Split, load_split, with_split
from logitbank.pipeline.datasets.spec import parse, spell

NUM_TRAIN, NUM_TEST, NUM_CLASSES = 24, 6, 3
Y = np.arange(NUM_TRAIN + NUM_TEST) % NUM_CLASSES
TRAIN, TEST = slice(0, NUM_TRAIN), slice(NUM_TRAIN, None)
X = (np.random.default_rng(0).integers(0, 100, (len(Y), 28, 28)) + 60 * Y[:, None, None]).astype(np.uint8)
NAMES = [f"class{number}" for number in range(NUM_CLASSES)]


def make_npz(folder: Path) -> str:
    np.savez(folder / "d.npz", x=X[TRAIN], y=Y[TRAIN], x_test=X[TEST], y_test=Y[TEST])
    np.savez(folder / "one.npz", x=X[TRAIN], y=Y[TRAIN] + 1)
    np.savez(folder / "two.npz", x=X[TRAIN], y=np.eye(2, dtype=np.int64)[Y[TRAIN] % 2])
    return f"npz:{folder}/d.npz"


def rows_of(part: slice) -> list[tuple[str, ...]]:
    rows = [(f"{image.mean():.3f}", f"v{y}", f"g{y}", NAMES[y]) for image, y in zip(X[part], Y[part], strict=True)]
    return [("size", "kind", "place", "y"), *rows]


def make_csv(folder: Path) -> str:
    for name, part in (("d", TRAIN), ("t", TEST)):
        (folder / f"{name}.csv").write_text("\n".join(map(",".join, rows_of(part))) + "\n")
    (folder / "dots.csv").write_text("\n".join(map(",".join, rows_of(TEST))) + ".\n")
    (folder / "semi.csv").write_text((folder / "d.csv").read_text().replace(",", ";").replace(".", ","))
    (folder / "latin.csv").write_bytes("größe,y\n1,a\n2,b\n".encode("latin-1"))
    (folder / "noted.csv").write_text("# about\n" + (folder / "d.csv").read_text())
    return f"csv:{folder}/d.csv?test={folder}/t.csv"


def make_parquet(folder: Path) -> str:
    for name, part in (("d", TRAIN), ("t", TEST)):
        names, *rows = rows_of(part)
        columns = {name: [row[place] for row in rows] for place, name in enumerate(names)}
        columns["size"] = [float(value) for value in columns["size"]]  # type: ignore[misc]
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{name}.parquet")
        encoded = [{"bytes": png(image), "path": None} for image in X[part]]
        kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
        pictures = {"image": pyarrow.array(encoded, kind), "dark": pyarrow.array(encoded[::-1], kind), "label": Y[part]}
        pictures["from_one"] = Y[part] + 1
        pyarrow.parquet.write_table(pyarrow.table(pictures), folder / f"p{name}.parquet", row_group_size=7)
    return f"parquet:{folder}/d.parquet?test={folder}/t.parquet"


def png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()


def make_webdataset(folder: Path) -> str:
    for name, part in (("train", TRAIN), ("test", TEST)):
        for shard, rows in enumerate(np.array_split(np.arange(len(Y))[part], 2)):
            with tarfile.open(folder / f"{name}-{shard}.tar", "w") as archive:
                for row in rows.tolist():
                    ends = {
                        "png": png(X[row]),
                        "cls": b"%d" % Y[row],
                        "coarse": b"%d\n" % (Y[row] // 2),
                        "one": b"%d" % (Y[row] + 1),
                    }
                    for ending, data in ends.items():
                        member = tarfile.TarInfo(f"{row:06d}.{ending}")
                        member.size = len(data)
                        archive.addfile(member, io.BytesIO(data))
    return f"webdataset:{folder}/train-*.tar?size=12&test={folder}/test-*.tar"


def make_image_folder(folder: Path) -> str:
    for split, part in (("train", TRAIN), ("test", TEST)):
        for number, (image, y) in enumerate(zip(X[part], Y[part], strict=True)):
            (folder / "pics" / split / NAMES[y]).mkdir(parents=True, exist_ok=True)
            exif = Image.Exif()
            exif[274] = 3 if number == 0 else 1  # orientation
            Image.fromarray(image).save(folder / "pics" / split / NAMES[y] / f"{number}.png", exif=exif)
    return f"imagefolder:{folder}/pics?size=12"


def make_torchvision(folder: Path) -> str:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, part in (("train", TRAIN), ("t10k", TEST)):
        count = len(Y[part])
        sizes = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(sizes + X[part].tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(
            np.array([0x801, count], ">i4").tobytes() + Y[part].astype(np.uint8).tobytes()
        )
    for number, (image, y) in enumerate(zip(X[TRAIN], Y[TRAIN], strict=True)):
        (folder / "eurosat" / "2750" / NAMES[y]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / "eurosat" / "2750" / NAMES[y] / f"{number}.png")
    return f"torchvision:MNIST?root={folder}"


class Pictures:
    """What the hub's library hands out; the library itself is an extra, and the hub is not asked in tests."""

    def __init__(self, split: str, config: str | None, revision: str | None) -> None:
        self.part = {"train": TRAIN, "test": TEST}[split]
        self.turned = bool(config) or bool(revision)
        self.column_names = ("image", "dark", "label", "coarse", "from_one")
        self.features = dict.fromkeys(self.column_names, SimpleNamespace())
        self.features["label"] = SimpleNamespace(names=NAMES)

    cache_files = ()

    def __len__(self) -> int:
        return len(Y[self.part])

    def select_columns(self, columns: list[str]) -> "Pictures":
        return self

    def cast_column(self, column: str, kind: object) -> "Pictures":
        return self

    def __getitem__(self, wanted: str | int) -> object:
        y, x = Y[self.part], X[self.part][:: -1 if self.turned else 1]
        if isinstance(wanted, int):
            return {"image": {"bytes": png(x[wanted])}, "dark": {"bytes": png(x[wanted] // 2)}, "label": int(y[wanted])}
        if wanted in ("image", "dark"):
            return [self[row][wanted] for row in range(len(self))]  # type: ignore[index]
        return list(map(int, {"label": y, "coarse": y // 2, "from_one": y + 1}[wanted]))


def make_hf(folder: Path) -> str:
    return "hf:someone/pictures?size=12"


IDS = np.random.default_rng(1).integers(0, 9, NUM_TRAIN * 8 + 4).astype(np.uint16)


def make_tokens(folder: Path) -> str:
    IDS.tofile(folder / "d.bin")
    (IDS[::-1] // 2).tofile(folder / "t.bin")
    np.save(folder / "d.npy", IDS.astype(np.int64))
    IDS.astype(np.uint8).tofile(folder / "e.bin")
    IDS[: NUM_TEST * 8].tofile(folder / "u.bin")
    return f"tokens:{folder}/d.bin?length=8&test={folder}/t.bin"


MAKE: dict[str, Callable[[Path], str]] = {
    "digits": lambda _: "digits",
    "torchvision": make_torchvision,
    "npz": make_npz,
    "csv": make_csv,
    "parquet": make_parquet,
    "webdataset": make_webdataset,
    "imagefolder": make_image_folder,
    "hf": make_hf,
    "tokens": make_tokens,
}


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = ModuleType("datasets")
    stand_in.Image = lambda decode: None  # type: ignore[attr-defined]
    stand_in.load_dataset = lambda name, config, split, revision: Pictures(split, config, revision)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)


# option -> (spec with it, the same without it (default: the source's own), values outside the domain); D is the folder
Case = tuple[str, str, tuple[str, ...]]
SPLIT: Case = ("split=test", "", ("", "val", "TRAIN"))
TABLE: dict[str, Case] = {
    "split": SPLIT,
    "label": ("label=kind", "", ("no",)),
    "test_share": ("TABLE?test_share=0.5", "TABLE", ("-1", "1", "nan", "inf", "half")),
    "drop": ("drop=kind", "", ("no", "y", "size,")),
    "group": ("group=place", "", ("no", "y")),
    "label_strip": ("label_strip=2", "", ()),
    "classes": ("classes=D/wide.txt", "", ("1", "2", "5", "no.txt", "-3", "1e3", "D/twice.txt", "D/other.txt")),
}
OPTIONS: dict[str, dict[str, Case]] = {
    "digits": {"split": SPLIT, "classes": ("classes=11", "", ("9", "1", "no.txt", "9999999", "D/wide.txt"))},
    "torchvision": {
        "split": SPLIT,
        "root": ("root=D", "", ("D/nowhere",)),
        "download": ("download=0", "", ("yes", "2")),
        "size": ("torchvision:EuroSAT?root=D&size=9", "torchvision:EuroSAT?root=D", ("0", "12", "big")),
        "test_share": (
            "torchvision:EuroSAT?root=D&size=9&test_share=0.5",
            "torchvision:EuroSAT?root=D&size=9",
            ("-1", "1", "nan", "0.2"),
        ),
        "classes": ("classes=12", "", ("9", "no.txt", "D/wide.txt")),
    },
    "npz": {
        "split": SPLIT,
        "classes": ("classes=4", "", ("2", "0", "no.txt", "three")),
        "first_label": ("npz:D/one.npz?first_label=1", "npz:D/one.npz?classes=4", ("1", "2", "no")),
        "positions": ("npz:D/two.npz?positions=2", "npz:D/two.npz", ("0", "1", "2", "-1", "many", "9999999999")),
    },
    "csv": TABLE
    | {
        "test": ("csv:D/d.csv?test=D/t.csv", "csv:D/d.csv", ("no.csv", "D/latin.csv")),
        "header": ("csv:D/d.csv?header=0&classes=D/all.txt", "csv:D/d.csv?classes=D/all.txt", ("2", "true", "")),
        "skip": ("csv:D/d.csv?header=0&skip=1", "csv:D/d.csv?header=0", ("-1", "x", "1.5", "999")),
        "sep": ("csv:D/semi.csv?sep=;&drop=size", "csv:D/d.csv?drop=kind", (";", "", ",,", "semicolon")),
        "comment": ("csv:D/noted.csv?comment=%23&drop=size", "csv:D/d.csv?drop=kind", ("s",)),
        "decimal": ("csv:D/semi.csv?sep=;&decimal=,", "csv:D/semi.csv?sep=;&drop=size", ("", ";", "comma")),
        "encoding": ("csv:D/latin.csv?encoding=latin-1&test_share=0", "", ("utf-99", "rot13", "utf-16")),
    },
    "parquet": TABLE
    | {
        "test": ("parquet:D/d.parquet?test=D/t.parquet", "parquet:D/d.parquet", ("no.parquet",)),
        "image": ("parquet:D/pd.parquet?image=dark&size=9", "parquet:D/pd.parquet?size=9", ("no",)),
        "size": ("parquet:D/pd.parquet?size=9", "parquet:D/pd.parquet", ("0", "9", "big")),
        "on_error": ("parquet:D/pd.parquet?on_error=skip", "parquet:D/pd.parquet", ("ignore", "")),
        "first_label": (
            "parquet:D/pd.parquet?size=9&label=from_one&first_label=1",
            "parquet:D/pd.parquet?size=9&label=from_one&classes=4",
            ("1", "2"),
        ),
    },
    "webdataset": {
        "split": SPLIT,
        "label": ("label=coarse", "", ("", "no/where", "CLS")),
        "test": ("webdataset:D/train-*.tar?split=test&size=9&test=D/test-1.tar", "split=test&size=9", ("no.tar",)),
        "size": ("size=9", "", ("0", "-1", "5000", "9.5", "big")),
        "classes": ("classes=4", "", ("2", "no.txt")),
        "first_label": ("label=one&first_label=1", "label=one&classes=4", ("1", "2")),
        "on_error": ("on_error=skip", "", ("ignore", "")),
    },
    "imagefolder": {
        "split": SPLIT,
        "size": ("size=9", "", ("0", "-1", "5000", "9.5", "big")),
        "upright": ("imagefolder:D/pics?upright=1", "imagefolder:D/pics", ("1", "2", "yes", "")),
        "on_error": ("on_error=skip", "", ("ignore", "")),
        "classes": ("classes=D/wide.txt", "", ("2", "7", "no.txt", "D/twice.txt", "D/other.txt")),
    },
    "hf": {
        "split": SPLIT,
        "image": ("image=dark", "", ("no", "label")),
        "label": ("label=coarse", "", ("no", "image")),
        "size": ("size=9", "", ("0", "-1", "5000", "9.5", "big")),
        "config": ("config=other", "", ()),
        "revision": ("revision=abc", "", ()),
        "classes": ("classes=4", "", ("2", "no.txt", "D/other.txt")),
        "first_label": ("label=from_one&first_label=1", "label=from_one&classes=4", ("1", "2")),
        "on_error": ("on_error=skip", "", ("ignore", "")),
    },
}
OPTIONS["tokens"] = {
    "split": SPLIT,
    "length": ("length=4", "", ("0", "-1", "1.5", "500", "many", "99999999")),
    "dtype": ("tokens:D/e.bin?length=8&dtype=uint8", "tokens:D/e.bin?length=8", ("int16", "float32", "int64")),
    "classes": ("classes=10", "", ("8", "0", "-1", "1e3", "wide.txt", "2000000")),
    "test": ("split=test&test=D/u.bin", "split=test", ("no.bin", "D/wide.txt")),
}
SAME = {
    ("torchvision", "root"),
    ("torchvision", "download"),
    ("imagefolder", "on_error"),
    ("webdataset", "on_error"),
    ("hf", "on_error"),
    ("parquet", "on_error"),
}  # where data lies, or is sound
OWN_ROWS = {"digits", "tokens"}  # whose rows are not those of X and Y
FREE = {"label_strip", "config", "revision"}  # any text is inside


def made(kind: str, folder: Path) -> str:
    (folder / "wide.txt").write_text("\n".join(["other", *reversed(NAMES), *(f"v{y}" for y in range(NUM_CLASSES))]))
    (folder / "all.txt").write_text("\n".join([*NAMES, "y"]))
    (folder / "twice.txt").write_text("\n".join([*NAMES, NAMES[0]]))
    (folder / "other.txt").write_text("a\nb\nc\nd\n")
    return MAKE[kind](folder)


def with_option(spec: str, option: str, folder: Path, table: str) -> str:
    """``spec`` with an option more or another one; a whole spec stands for itself."""
    option = option.replace("TABLE", table).replace("D/", f"{folder}/").replace("=D", f"={folder}")
    if not option or ":" in option.partition("=")[0]:
        return option or spec
    kind, name, options = parse(spec)
    return spell(kind, name, {**options, **parse(f"x?{option}")[2]})


def read(split: Split) -> tuple[object, ...]:
    groups = None if split.groups is None else split.groups.tolist()
    return (split.samples[:].tobytes(), split.labels.tolist(), split.num_classes, split.class_names, groups)


def test_every_option_of_every_source_stands_here() -> None:
    for kind, source in SOURCES.items():
        options = [name for name in inspect.signature(source.load).parameters if name not in ("name", "path")]
        assert kind in MAKE, f"a line in MAKE for {kind}: how a test makes a little of its data"
        assert sorted(options) == sorted(OPTIONS.get(kind, ())), f"its options, in OPTIONS: {kind}"
        assert all(OPTIONS[kind][option][2] for option in options if option not in FREE), kind


@pytest.mark.parametrize("kind", SOURCES)
def test_every_option_has_a_domain(kind: str, tmp_path: Path) -> None:
    spec = made(kind, tmp_path)
    table = f"{kind}:{tmp_path}/d.{kind}"
    for option, (inside, without, outside) in OPTIONS[kind].items():
        changed = load_split(with_option(spec, inside, tmp_path, table))
        before = load_split(with_option(spec, without, tmp_path, table))
        assert (read(changed) == read(before)) == ((kind, option) in SAME), option
        assert read(load_split(changed.spec)) == read(changed), option
        for value in outside:
            wrong = with_option(spec, f"{option}={value}", tmp_path, table)
            if option == "test_share" and kind != "torchvision":
                wrong = f"{table}?test_share={value}"
            with pytest.raises(ValueError) as caught:
                pytest.fail(f"{load_split(wrong).spec} was read")
            assert "\n" not in str(caught.value), (option, value)
    for wrong in (f"{option}=1&{option}=1", option):
        with pytest.raises(ValueError, match=r"is given twice|has no value"):
            load_split(f"{spec}{'&' if '?' in spec else '?'}{wrong}")


@pytest.mark.parametrize("kind", sorted(SOURCES.keys() - OWN_ROWS))
def test_every_record_is_a_row(kind: str, tmp_path: Path) -> None:
    """In its place, with its label, and none besides; images also with their pixels."""
    spec = made(kind, tmp_path)
    train, test = load_split(spec), load_split(with_split(spec, "test"))
    for split, part in ((train, TRAIN), (test, TEST)):
        assert len(split) == len(Y[part])
        assert np.bincount(split.labels).tolist() == np.bincount(Y[part]).tolist()
        if kind != "imagefolder":  # sorted by path
            assert split.labels.tolist() == Y[part].tolist()
        if kind in ("npz", "torchvision"):
            assert (split.samples[..., 0] == X[part]).all()
    assert len(np.unique(np.concatenate([train.keys, test.keys]))) == len(Y)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("digits?limit=0", "limit is '0'; expected a number of examples"),
        ("digits?limit=²", "limit is '²'"),
        ("digits?shuffle=-1", "shuffle is '-1'; expected a seed"),
        ("digits?limit=" + "9" * 5000, "limit is"),
        ("digits?split", "option 'split' has no value"),
        ("digits?split=test&split=train", "'split' is given twice"),
    ],
)
def test_what_all_sources_take_has_a_domain(spec: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_split(spec)


def test_a_spec_is_read_back() -> None:
    options = {"label": "a&b", "drop": "50%,x+y", "sep": ";", "test": "a=b.csv"}
    assert parse(spell("csv", "f.csv", options)) == ("csv", "f.csv", options)
