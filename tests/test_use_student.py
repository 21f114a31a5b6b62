"""A finished student, loaded and asked about new data: what it answered in training, whoever asks."""

import csv
import json
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas
import pyarrow.parquet as parquet
import pytest
import torch
from PIL import Image

from logitbank import load_student
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.use_student.predict import write_predictions
from logitbank.pipeline.views import Views
from logitbank.stores import open_store
from tests.students import train


def trained(split: Split, test: Split, out: Path, student: str) -> Path:
    """A student of random answers, two epochs old."""
    logits = np.random.default_rng(0).normal(size=(len(split), split.num_classes)).astype(np.float32)
    np.save(out.with_suffix(".npy"), logits)
    answers = ArrayTeacher(out.with_suffix(".npy"), split, Views())
    store = out.with_suffix(".zarr")
    cache_teacher(answers, store, encoding=Encoding(kind="dense", num_classes=split.num_classes, bits=32))
    train(open_store(store), split, test, out, student=student, epochs=2)
    return out


def read(file: Path) -> tuple[list[dict[str, str]], npt.NDArray[np.float64]]:
    """Rows of a .csv file, and their probabilities."""
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    return rows, np.array([[float(row[name]) for name in row if name.startswith("prob_")] for row in rows])


def nll(prob: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> float:
    return float(-np.log(prob[np.arange(len(labels)), labels]).mean())


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a table's files, and ``run``, a student of it."""
    folder, rng = tmp_path_factory.mktemp("table"), np.random.default_rng(1)
    for name, count in (("train", 300), ("test", 90)):
        size, colour = rng.normal(5, 3, count).round(3), rng.choice(["red", "blue", ""], count)
        kind = np.where(size + (colour == "red") * 3 > 6, "large", "small")
        frame = pandas.DataFrame({"size": size, "colour": colour, "kind": kind})
        frame.to_csv(folder / f"{name}.csv", index=False)
    spec = f"csv:{folder}/train.csv?test={folder}/test.csv"
    trained(load_split(spec), load_split(f"{spec}&split=test"), folder / "run", "mlp:8")
    return folder


def test_rows_without_labels_get_the_answers_of_training(table: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv(table / "test.csv", keep_default_na=False)
    frame[["colour", "size"]].to_csv(tmp_path / "new.csv", index=False)  # another order, no label
    student = load_student(table / "run")
    assert write_predictions(student, f"csv:{tmp_path}/new.csv", tmp_path / "p.csv") == (90, True)
    assert write_predictions(student, f"csv:{tmp_path}/new.csv", tmp_path / "p.csv") == (90, False)
    rows, prob = read(tmp_path / "p.csv")
    test = load_split(f"csv:{table}/train.csv?test={table}/test.csv&split=test")
    result = json.loads((table / "run" / "result.json").read_text())
    assert nll(prob, test.labels) == pytest.approx(result["nll"], rel=1e-6)
    assert np.mean([row["predicted"] == kind for row, kind in zip(rows, frame["kind"], strict=True)]) == (
        pytest.approx(result["accuracy"])
    )
    assert list(rows[0]) == ["row", "key", "predicted", "prob_large", "prob_small"]
    assert [int(row["key"]) for row in rows] == test.keys.tolist()
    assert [int(row["row"]) for row in rows] == list(range(90))


def test_parquet_and_data_frames_say_the_same(table: Path, tmp_path: Path) -> None:
    frame = pandas.read_csv(table / "test.csv", keep_default_na=False)
    frame.to_parquet(tmp_path / "new.parquet")
    student = load_student(str(table / "run"))
    write_predictions(student, f"csv:{table}/test.csv", tmp_path / "p.csv")
    write_predictions(student, f"parquet:{tmp_path}/new.parquet", tmp_path / "p.parquet")
    _, expected = read(tmp_path / "p.csv")
    written = parquet.read_table(tmp_path / "p.parquet")
    assert written.column_names == ["row", "key", "predicted", "prob_large", "prob_small"]
    found = np.stack([written[name].to_numpy() for name in ("prob_large", "prob_small")], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(student.predict(frame), expected, atol=1e-6)
    np.testing.assert_allclose(student.predict({name: list(frame[name]) for name in frame}), expected, atol=1e-6)
    np.testing.assert_allclose(torch.softmax(student.logits(frame), 1).numpy(), expected, atol=1e-6)
    assert student.class_names == ("large", "small")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour\nred\n", "lacks a column that the model reads: size"),
        ("size,colour\n1,red\nbig,red\n", r"column 'size' is 'big' in row 1"),
        ("size,colour\n1,red\n2\n", "line 3 has another number of fields"),
        ("size,colour\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_rows_that_cannot_be_read_are_refused_and_nothing_is_left(
    table: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "new.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        write_predictions(load_student(table / "run"), f"csv:{tmp_path}/new.csv", tmp_path / "p.csv")
    assert [path.name for path in tmp_path.iterdir()] == ["new.csv"]


def test_values_that_training_had_not_are_told(table: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    student, rows = load_student(table / "run"), 5000  # of two parts
    (tmp_path / "new.csv").write_text("size,colour\n" + ",RED\n" * (rows - 1) + ",red\n")
    write_predictions(student, f"csv:{tmp_path}/new.csv", tmp_path / "p.csv")
    assert [record.getMessage().split(": ", 2)[2] for record in caplog.records] == [
        "column 'colour' holds categories that no training row had in 4999 of 5000 rows, such as 'RED'; they are read"
        " as missing",
        "no row has a value of size, which the model reads",
    ]
    caplog.clear()
    write_predictions(student, f"csv:{table}/test.csv", tmp_path / "q.csv")  # of which some have no colour
    student.predict({"size": [1.0, None], "colour": ["red", None]})
    assert not caplog.records
    student.predict({"size": [1.0], "colour": ["green"]})
    assert "such as 'green'" in caplog.text
    with pytest.raises(ValueError, match=r"'size' is one value; give a list"):
        student.predict({"size": 1.0, "colour": "red"})  # type: ignore[dict-item]


def test_what_the_student_does_not_read_is_named(table: Path, tmp_path: Path, digits: Split) -> None:
    student = load_student(table / "run")
    for spec, message in (
        ("digits", "model reads columns by name: give csv:FILE"),
        (f"csv:{table}/test.csv?label=kind", "option 'label'"),
        (f"imagefolder:{tmp_path}", "model reads arrays of 4: give npz:FILE|arrays of 3: give npz:FILE"),
    ):
        with pytest.raises(ValueError, match=message):
            write_predictions(student, spec, tmp_path / "p.csv")
    with pytest.raises(ValueError, match=r"\.csv or \.parquet file is written"):
        write_predictions(student, f"csv:{table}/test.csv", tmp_path / "p.txt")
    with pytest.raises(ValueError, match="student reads columns by name"):
        student.predict(["a.jpg"])
    with pytest.raises(ValueError, match="model reads columns by name"):
        student.predict(np.zeros((1, 3)))


def test_memory_does_not_grow_with_rows(table: Path, tmp_path: Path) -> None:
    student, peaks = load_student(table / "run"), []
    for count in (8_192, 20_480):
        lines = "".join(f"{number / 1000},red\n" for number in range(count))
        (tmp_path / "new.csv").write_text(f"size,colour\n{lines}")
        tracemalloc.start()
        write_predictions(student, f"csv:{tmp_path}/new.csv", tmp_path / f"{count}.csv")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert len((tmp_path / f"{count}.csv").read_text().splitlines()) == count + 1
    assert peaks[1] < 1.2 * peaks[0]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of several sizes in a folder of classes, and ``run``, a student of them."""
    folder, rng = tmp_path_factory.mktemp("photographs"), np.random.default_rng(2)
    for split, count in (("train", 6), ("test", 3)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 256, (40 + 9 * number, 70, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    spec = f"imagefolder:{folder}"
    trained(load_split(spec), load_split(f"{spec}?split=test"), folder / "run", "timm:test_resnet.r160_in1k")
    return folder


def test_a_flat_folder_of_pictures_is_read_as_the_network_reads_them(photographs: Path, tmp_path: Path) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for file in (photographs / "test").rglob("*.png"):
        shutil.copy(file, flat / f"{file.parent.name}{file.name}")
    student = load_student(photographs / "run")
    assert write_predictions(student, f"imagefolder:{flat}", tmp_path / "p.csv") == (6, True)
    rows, prob = read(tmp_path / "p.csv")
    assert [row["file"] for row in rows] == sorted(file.name for file in flat.iterdir())
    labels = np.array([row["file"].startswith("dog") for row in rows], np.int64)
    result = json.loads((photographs / "run" / "result.json").read_text())
    assert nll(prob, labels) == pytest.approx(result["nll"], rel=1e-5)
    assert {row["predicted"] for row in rows} <= {"cat", "dog"}
    files = [flat / row["file"] for row in rows]
    np.testing.assert_allclose(student.predict(files), prob, atol=1e-6)
    np.testing.assert_allclose(student.predict([Image.open(file) for file in files]), prob, atol=1e-6)
    test = load_split(f"imagefolder:{photographs}?split=test")
    assert sorted(int(row["key"]) for row in rows) == sorted(test.keys.tolist())


def test_arrays_of_one_size(digits: Split, digits_test: Split, tmp_path: Path) -> None:
    student = load_student(trained(digits, digits_test, tmp_path / "run", "cnn"))
    np.savez(tmp_path / "new.npz", x=digits_test.samples)
    write_predictions(student, f"npz:{tmp_path}/new.npz", tmp_path / "a.csv")
    write_predictions(student, "digits?split=test", tmp_path / "b.csv")
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    _, prob = read(tmp_path / "a.csv")
    assert nll(prob, digits_test.labels) == pytest.approx(json.loads((tmp_path / "run/result.json").read_text())["nll"])
    np.testing.assert_allclose(student.predict(digits_test.samples), prob, atol=1e-6)
    with pytest.raises(ValueError, match="the inputs holds arrays of 9 x 8 x 1; the model reads arrays of 8 x 8 x 1"):
        student.predict(np.zeros((2, 9, 8, 1), np.uint8))


def changed(run: Path, out: Path, **said: object) -> Path:
    """The folder of a run with another signature."""
    shutil.copytree(run, out)
    signature = json.loads((out / "signature.json").read_text())
    (out / "signature.json").write_text(json.dumps({**signature, **said}))
    return out


def test_code_that_a_folder_names_is_not_run(table: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'pwned')!r}, 'w')\nfactory = None\n")
    own = f"{tmp_path}/own.py:factory"
    hostile = changed(table / "run", tmp_path / "hostile", architecture=own)
    with pytest.raises(ValueError, match="which no folder makes run; .* name it: --student"):
        load_student(hostile)
    assert not (tmp_path / "pwned").exists()
    with pytest.raises(ValueError, match="its student is 'mlp:8', not 'mlp:9'"):
        load_student(table / "run", student="mlp:9")


def test_a_student_of_ones_own_is_named(table: Path, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def net(input_shape, num_classes):\n    return nn.Sequential(nn.Linear(input_shape[0], num_classes))\n"
    )
    spec = f"csv:{table}/train.csv?test={table}/test.csv"
    own = f"{tmp_path}/own.py:net"
    run = trained(load_split(spec), load_split(f"{spec}&split=test"), tmp_path / "run", own)
    assert load_student(run, student=own).predict({"size": [1], "colour": [None]}).shape == (1, 2)


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"architecture": "mlp:99999x99"}, "bytes are no weights of mlp:99999x99"),
        ({"num_classes": 10**6, "class_names": []}, "bytes are no weights of mlp:8"),
        ({"input_shape": [10**9]}, "its input shape is"),
        ({"input_shape": [4096, 4096, 4096], "features": [], "architecture": "resnet8"}, "bytes are no weights"),
        ({"num_classes": 10**15}, "classes"),
        ({"class_names": ["a", 1]}, "expected architecture"),
        ({"features": [{"name": "size", "mean": "nan", "std": 1.0}]}, "a column is"),
        ({"preprocessing": None}, "input scaling"),
        ({"architecture": "nothing"}, "nothing"),
    ],
)
def test_a_folder_that_lies_is_refused_before_memory_is_spent(
    table: Path, tmp_path: Path, said: dict[str, object], message: str
) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=message):
        load_student(changed(table / "run", tmp_path / "hostile", **said))
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_a_run_that_is_not_finished_or_damaged_is_refused(table: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        load_student(tmp_path)
    for number, content in enumerate((b"{", b"[]", b"[" * 10**5, b'{"architecture": NaN}')):
        run = tmp_path / str(number)
        shutil.copytree(table / "run", run)
        (run / "signature.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"signature.json: "):
            load_student(run)
    (run / "signature.json").unlink()
    with pytest.raises(ValueError, match=r"no file .*signature.json"):
        load_student(run)
