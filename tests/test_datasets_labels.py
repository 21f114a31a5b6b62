"""Labels and samples as people keep them: read where the meaning is clear, else one line that says what to do."""

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.datasets.limits import check_declared
from logitbank.pipeline.datasets.split import check_same_classes
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.train_student.evaluate import cut_validation
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.students import train

RNG = np.random.default_rng(0)
Y = RNG.integers(0, 3, 60)
X = (RNG.integers(0, 150, (60, 8, 8)) + 40 * Y[:, None, None]).astype(np.uint8)


def saved(folder: Path, x: np.ndarray = X, y: np.ndarray = Y, **more: Any) -> str:
    np.savez(folder / "a.npz", allow_pickle=True, x=x, y=y, **more)
    return f"npz:{folder}/a.npz"


@pytest.mark.parametrize(
    "y",
    [
        Y.astype(np.uint8),
        Y.astype(np.float32),
        Y.astype(np.uint64),
        Y[:, None],
        np.eye(3)[Y],
        np.eye(3, dtype=bool)[Y],
        np.array(["ant", "bee", "cow"])[Y],
        np.array([b"ant", b"bee", b"cow"])[Y],
        np.array(["0", "1.0", "2"])[Y],
    ],
    ids=lambda y: f"{y.dtype}-{y.ndim}",
)
def test_labels_whose_meaning_is_clear(tmp_path: Path, y: np.ndarray) -> None:
    split = load_split(saved(tmp_path, y=y))
    assert split.labels.tolist() == Y.tolist()
    assert split.num_classes == 3
    assert split.fingerprint == load_split(saved(tmp_path)).fingerprint
    if y.dtype.kind in "SU" and y[0] != "0" and b"ant" in np.char.encode(y.astype(str)):
        assert split.class_names == ("ant", "bee", "cow")


def test_labels_that_are_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = np.where(Y == 2, -1, Y).tolist()
    for absent in (np.where(Y == 2, -1, Y), np.where(Y == 2, -100, Y), np.where(Y == 2, np.nan, Y)):
        split = load_split(saved(tmp_path, y=absent))
        assert split.labels.tolist() == expected
        assert split.num_classes == 2
    assert f"{(Y == 2).sum()} of -100 are read as unlabelled" in caplog.text
    none = load_split(saved(tmp_path, y=np.full(60, -1)))
    assert none.num_classes == 2
    assert "no row has a label, so 2 classes are taken; pass classes=NUMBER" in caplog.text
    assert load_split(saved(tmp_path, y=np.full(60, -1)) + "?classes=1000").num_classes == 1000


def test_labels_that_count_from_one(tmp_path: Path) -> None:
    spec = saved(tmp_path, y=Y + 1, x_test=X[:9], y_test=np.maximum(Y[:9] + 1, 1))
    with pytest.raises(ValueError, match=r"labels run from 1 to 3 and none is 0; pass first_label=1 .* or classes=4"):
        load_split(spec)
    shifted = load_split(f"{spec}?first_label=1")
    assert (shifted.labels.tolist(), shifted.num_classes) == (Y.tolist(), 3)
    assert load_split(f"{spec}?classes=4").num_classes == 4
    with pytest.raises(ValueError, match=r"are 0, so they count from 0; leave first_label out"):
        load_split(saved(tmp_path) + "?first_label=1")


def test_gaps_and_rows_of_new_classes_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load_split(saved(tmp_path, y=Y * 500)).num_classes == 1001
    assert "998 of 1001 classes have no rows; classes=NUMBER says how many there are" in caplog.text
    caplog.clear()
    assert load_split(saved(tmp_path, y=Y * 400) + "?classes=1001").num_classes == 1001
    assert not caplog.text
    load_split(saved(tmp_path, x_test=X[:9], y_test=np.arange(9)))
    assert "6 test rows are of classes that no training row has" in caplog.text


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (RNG.normal(size=60), "is a measurement, not a class; distillation here is classification"),
        (RNG.permutation(3000)[:60] + 5, "60 different labels in 60 rows are no classes"),
        (np.array([f"person {i}" for i in range(60)]), "60 different labels in 60 rows are no classes"),
        (np.array([f"{i}.5" for i in range(60)]), "label '0.5' is a measurement"),
        (np.full((60, 3), 1 / 3), "not one-hot; expected class ids"),
        (np.zeros((60, 2, 2), int), "expected integers or texts"),
        (np.zeros(60, "datetime64[s]"), "expected integers or texts"),
        (np.full(60, 2**63, np.uint64), "expected class ids"),
        (np.array([0, 2_000_000] * 30), "expected class ids below 1000000"),
        (np.array([None, 1] * 30), "array 'y' holds Python objects"),
        (np.array([b"\xff"] * 60), "no UTF-8 text"),
        (np.array([-1, 1] * 30), "-1 stands for no label; write the two classes as 0 and 1"),
        (np.array([-2, 1] * 30), "expected ids from 0, or -1 for unlabelled"),
    ],
)
def test_labels_that_are_no_classes(tmp_path: Path, y: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load_split(saved(tmp_path, y=y))
    assert "\n" not in str(caught.value)
    assert "a.npz" in str(caught.value)


def test_channels_first_are_turned(tmp_path: Path) -> None:
    for channels in (1, 3, 4):
        last = np.repeat(X[..., None], channels, -1)
        last[..., 0] //= 2
        first = load_split(saved(tmp_path, x=np.moveaxis(last, -1, 1)))
        assert first.fingerprint == load_split(saved(tmp_path, x=last)).fingerprint
        assert first.input_shape == (8, 8, channels)
    spectral = RNG.integers(0, 9, (60, 9, 9, 5), np.uint8)
    assert load_split(saved(tmp_path, x=spectral)).input_shape == (9, 9, 5)
    assert load_split(saved(tmp_path, x=np.moveaxis(spectral, -1, 1))).input_shape == (9, 9, 5)
    with pytest.raises(ValueError, match=r"x is uint8 \[60, 8, 8, 8\]: which axis holds the channels cannot be told"):
        load_split(saved(tmp_path, x=np.zeros((60, 8, 8, 8), np.uint8)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (X / 255, "bring images to 0 ... 255 and store them as uint8"),
        (np.zeros((60, 4), complex), "expected uint8 images"),
        (np.full((60, 4), 1e300), "60 rows hold NaN or infinite values"),
        (np.zeros((60, 0)), "expected images as uint8"),
    ],
)
def test_samples_that_are_no_examples(tmp_path: Path, x: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_split(saved(tmp_path, x=x))


def test_arrays_that_are_not_read_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    load_split(saved(tmp_path, x_val=X, y_val=Y))
    assert "arrays that are not read: x_val, y_val" in caplog.text


def test_what_a_file_unpacks_to_is_looked_at_first(tmp_path: Path) -> None:
    """Neither a header nor a zip's directory is believed: no array of that size is made."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1_400_000, 28, 28)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("x.npy", "w", force_zip64=True) as file:
            file.write(header.getvalue())
            for _ in range(1400):
                file.write(bytes(784_000))
        with archive.open("y.npy", "w") as file:
            np.lib.format.write_array(file, Y)
    with pytest.raises(
        ValueError, match=r"array 'x': [0-9.]+ MB that say they unpack to 1.1 GB, over 100 times as much"
    ):
        load_split(f"npz:{tmp_path}/a.npz")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", header.getvalue())
        archive.writestr("y.npy", header.getvalue())
    with pytest.raises(ValueError, match=r"array 'x' is damaged: \[1400000, 28, 28\] of uint8 are not"):
        load_split(f"npz:{tmp_path}/a.npz")
    with pytest.raises(ValueError, match=r"big: needs 1000000.0 GB of memory"):
        check_declared("big", 10**15, 10**15, "")


def test_damaged_arrays_are_one_line(tmp_path: Path) -> None:
    """Two hundred files with bytes changed or cut off: read, or refused in one line that names the file."""
    rng = random.Random(0)
    path = tmp_path / "a.npz"
    for save in (np.savez, np.savez_compressed):
        save(path, x=X, y=Y)
        whole = path.read_bytes()
        for _ in range(100):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            cut = rng.randrange(len(data)) if rng.random() < 0.2 else len(data)
            path.write_bytes(data[:cut])
            try:
                load_split(f"npz:{path}")
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either is right
                assert "a.npz" in str(error)  # noqa: PT017
    np.save(tmp_path / "b.npy", X)
    with pytest.raises(ValueError, match=r"b.npy.*not a readable .npz file"):
        load_split(f"npz:{tmp_path}/b.npy")


def test_damaged_logits_are_one_line(tmp_path: Path, digits: Split) -> None:
    rng = random.Random(0)
    path = tmp_path / "logits.npy"
    np.save(path, np.zeros((20, 3), np.float32))
    whole = path.read_bytes()
    np.save(path, np.array([None, {}]), allow_pickle=True)
    with pytest.raises(ValueError, match=r"logits.npy: not a readable .npy file of logits .*Python objects"):
        ArrayTeacher(path, digits, Views())
    np.savez(tmp_path / "logits.npz", x=X)
    with pytest.raises(ValueError, match=r"logits.npz: not a readable .npy file"):
        ArrayTeacher(tmp_path / "logits.npz", digits, Views())
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(128)] = rng.randrange(256)
        path.write_bytes(data)
        with pytest.raises(ValueError, match="logits.npy"):
            ArrayTeacher(path, digits, Views())


def test_ones_own_data_heeds_its_options(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def rows(num='4'):\n"
        "    return np.zeros((int(num), 2)), np.arange(int(num)) % 2\n"
        "def named(classes):\n"
        "    return np.zeros((4, 2)), np.arange(4) % int(classes)\n"
        "def broken(split):\n"
        "    return {}['x']\n"
    )
    own = f"{tmp_path}/own.py"
    assert load_split(f"{own}:rows?classes=7").num_classes == 7
    assert load_split(f"{own}:named?classes=3").num_classes == 3
    with pytest.raises(ValueError, match=r"unknown option 'nun', did you mean 'num'"):
        load_split(f"{own}:rows?nun=5")
    with pytest.raises(ValueError, match=r"takes no argument split, so it has no test split"):
        load_split(f"{own}:rows?split=test")
    with pytest.raises(ValueError, match=r"the factory failed \(KeyError: 'x'\)"):
        load_split(f"{own}:broken")


def test_both_stages_have_the_same_classes(tmp_path: Path, digits: Split) -> None:
    names = tmp_path / "names.txt"
    names.write_text("\n".join("9876543210"))
    turned, wide = load_split(f"digits?classes={names}"), load_split("digits?classes=12")
    assert turned.labels.tolist() == (9 - digits.labels).tolist()
    assert turned.class_names == tuple("9876543210")
    assert (wide.num_classes, wide.labels.tolist()) == (12, digits.labels.tolist())
    assert (wide.keys == digits.keys).all()
    with pytest.raises(ValueError, match=r"has 12 classes, digits\?split=train has 10; .* add classes=12 to digits"):
        check_same_classes(digits, wide)
    with pytest.raises(ValueError, match=r"class 0 is '9' in digits.* and '0' in digits.*; pass classes=FILE"):
        check_same_classes(digits, turned)
    spec = saved(tmp_path, x_test=X[:9], y_test=Y[:9])
    store = tmp_path / "s.zarr"
    split = load_split(spec)
    answers = NetworkTeacher(split, load_teachers(split, "linear", "random-init"), Views())
    cache_teacher(answers, store, encoding=Encoding(kind="dense", num_classes=3, bits=8))
    wide_test = load_split(saved(tmp_path, x_test=np.zeros((9, 9, 9), np.uint8), y_test=Y[:9]) + "?split=test")
    with pytest.raises(ValueError, match=r"cannot read the examples of .*split=test, 9 x 9 x 1"):
        train(open_store(store), split, wide_test, tmp_path / "run", student="mlp:2")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"store was written for 3 classes, .* has 5; add classes=3 to the data"):
        check_data(open_store(store), load_split(f"{spec}?classes=5"))


def test_validation_rows_of_small_classes(tmp_path: Path) -> None:
    """Photographs of 430 classes, most with one or two rows: the share holds of all rows, no class loses its last."""
    counts = np.random.default_rng(1).integers(1, 4, 430)
    y = np.random.default_rng(2).permutation(np.repeat(np.arange(430), counts))
    split = load_split(saved(tmp_path, x=np.arange(len(y), dtype=np.float32)[:, None], y=y) + "?classes=430")
    for share in (0.01, 0.1, 0.3):
        rows, validation = cut_validation(split, share)
        assert len(validation) == round(share * counts[counts > 1].sum())
        assert sorted([*rows, *validation]) == list(range(len(y)))
        assert len(np.unique(y[rows])) == 430
        drawn = np.bincount(y[validation], minlength=430)
        assert (drawn <= np.ceil(share * counts)).all()
        assert 0.8 < y[validation].mean() / 215 < 1.2  # not the first classes alone
    rows, validation = cut_validation(split, 0.99)
    assert len(np.unique(y[rows])) == 430
    singles = load_split(saved(tmp_path, x=np.zeros((9, 1)), y=np.arange(9)) + "?classes=9")
    with pytest.raises(ValueError, match=r"--val-share 0.5 of .* leaves no labelled validation rows"):
        cut_validation(singles, 0.5)
