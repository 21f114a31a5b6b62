"""Every other kind of data: tables, folders of images, own code, the hub; and rows that are left out or masked."""

import io
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import load_split, with_split
from logitbank.pipeline.datasets.image_files import paths_of
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.views import Views
from logitbank.stores import open_store, verify_store

PEOPLE = """age, job, city, income
30, clerk, A, low
50, , B, high
?, nurse, A, low
40, clerk, B,
20, "cook, chef", A, high
"""
MORE = """age, job, city, income
60, pilot, B, high
10, clerk, A, low
"""


@pytest.fixture
def people(tmp_path: Path) -> Path:
    (tmp_path / "people.csv").write_text(PEOPLE)
    (tmp_path / "more.csv").write_text(MORE)
    return tmp_path


def test_a_table_is_encoded_by_its_training_rows(people: Path) -> None:
    spec = f"csv:{people}/people.csv?test={people}/more.csv&group=city"
    train, test = load_split(spec), load_split(with_split(spec, "test"))
    assert train.class_names == ("high", "low")
    assert train.labels.tolist() == [1, 0, 1, -1, 0]
    age = np.array([30, 50, 35, 40, 20])  # the missing one is the mean
    std = np.array([30, 50, 40, 20]).std()
    np.testing.assert_allclose(train.samples[:, 0].astype(float), (age - 35) / std, rtol=1e-6)
    jobs = train.samples[:, 1:]  # clerk, cook, nurse
    assert jobs.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0]]
    np.testing.assert_allclose(test.samples.astype(float), [[25 / std, 0, 0, 0], [-25 / std, 1, 0, 0]], rtol=1e-6)
    assert test.labels.tolist() == [0, 1]
    assert train.groups is not None
    assert (train.groups == train.groups[0]).tolist() == [True, False, True, False, True]
    assert load_split(train.spec).fingerprint == train.fingerprint


def test_a_table_without_names_or_test_file(tmp_path: Path) -> None:
    rows = [f"{i},{i % 3},{'ab'[i % 2]}" for i in range(50)]
    (tmp_path / "t.data").write_text("comment\n" + "\n".join(rows) + "\n")
    spec = f"csv:{tmp_path}/t.data?header=0&skip=1&drop=1"
    train, test = load_split(spec), load_split(with_split(spec, "test"))
    assert (len(train), len(test)) == (40, 10)
    assert train.input_shape == (1,)
    both = np.concatenate([train.samples, test.samples])[:, 0]
    assert len(np.unique(both)) == 50
    assert abs(float(train.samples.mean())) < 1e-6
    assert len(load_split(f"{spec}&test_share=0")) == 50


def test_parquet_is_the_same_table(tmp_path: Path) -> None:
    table = {"age": [30.5, None, 20.0, 40.0], "job": ["a", "b", None, "a"], "y": [1, 0, 1, None]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("age,job,y\n30.5,a,1\n,b,0\n20.0,,1\n40.0,a,\n")
    found, same = (load_split(f"{kind}:{tmp_path}/t.{kind}?label=y&test_share=0") for kind in ("parquet", "csv"))
    assert (found.samples == same.samples).all()
    assert found.labels.tolist() == same.labels.tolist() == [1, 0, 1, -1]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("label=incom", "unknown column 'incom', did you mean 'income'"),
        ("split=val", "no split 'val'"),
        ("test_share=2", "expected a number from 0"),
        ("test=TMP/odd.csv", "has other columns"),
        ("test=TMP/ragged.csv", "line 2 has another number of fields"),
        ("test=TMP/new.csv&split=test", "label 'middle' of row 0 is not among"),
        ("test=TMP/text.csv&split=test", "column 'age' is 'old' in row 0"),
        ("test=TMP/none.csv", "no such file"),
    ],
)
def test_tables_that_do_not_fit(people: Path, query: str, message: str) -> None:
    (people / "odd.csv").write_text("age,income\n1,low\n")
    (people / "ragged.csv").write_text("age,job,city,income\n1,low\n")
    (people / "new.csv").write_text("age,job,city,income\n1,clerk,A,middle\n")
    (people / "text.csv").write_text("age,job,city,income\nold,clerk,A,low\n")
    with pytest.raises(ValueError, match=message) as caught:
        load_split(f"csv:{people}/people.csv?{query.replace('TMP', str(people))}")
    assert "\n" not in str(caught.value)


def test_a_column_of_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,y\n" + "".join(f"person{i},{i % 2}\n" for i in range(600)))
    with pytest.raises(ValueError, match="Leave it out with drop=id"):
        load_split(f"csv:{tmp_path}/t.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes in files of several sizes and kinds, and some images without a label."""
    rng = np.random.default_rng(0)
    for label, name in enumerate(["cat", "dog", "unlabelled"]):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 100, (20 + 3 * i, 40 - i, 3)) + 100 * (label % 2)
            mode = "L" if i == 3 else "RGB"
            image = Image.fromarray(pixels.astype(np.uint8)).convert(mode)
            image.save(tmp_path / "train" / name / f"{i:02}.{'png' if i % 2 else 'jpg'}")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("no image")
    return tmp_path


def test_a_folder_of_images(folder: Path) -> None:
    split = load_split(f"imagefolder:{folder}?size=16")
    assert split.input_shape == (16, 16, 3)
    assert split.class_names == ("cat", "dog")
    assert np.bincount(split.labels + 1).tolist() == [12, 12, 12]
    assert split.samples[:].shape == (36, 16, 16, 3)
    assert (split.samples[np.array([5, 2])] == split.samples[:][[5, 2]]).all()
    assert (split.samples[7] == split.samples[7:8][0]).all()
    cats = split.samples[split.labels == 0].mean()
    assert split.samples[split.labels == 1].mean() > cats + 80
    assert len(np.unique(split.keys)) == 36
    assert split.fingerprint == load_split(split.spec).fingerprint
    assert split.fingerprint != load_split(f"imagefolder:{folder}?size=17").fingerprint
    assert all(0.1 < mean < 0.9 for mean in fit_preprocessing(split).mean)
    few = load_split(f"imagefolder:{folder}?size=16&limit=9")
    assert (few.samples[:] == split.samples[np.arange(9) * 4]).all()
    assert (few.keys == split.keys[np.arange(9) * 4]).all()
    with pytest.raises(ValueError, match="no folder test, val or validation"):
        load_split(with_split(split.spec, "test"))


def test_broken_images_stop_the_pass_or_are_masked(folder: Path, tmp_path: Path) -> None:
    """Their rows stay where they are, every other row is answered as if nothing had happened."""
    whole = load_split(f"imagefolder:{folder}?size=16")
    files = paths_of(whole)
    assert files is not None
    victims = [files[row] for row in (4, 20)]
    victims[0].write_bytes(b"not an image")  # and the other: the header is sound, the rest is cut off
    victims[1].write_bytes(victims[1].read_bytes()[: victims[1].stat().st_size * 4 // 5])
    with pytest.raises(ValueError, match=r"1 files cannot be decoded: .*train/cat/04"):
        load_split(f"imagefolder:{folder}?size=16")
    split = load_split(f"imagefolder:{folder}?size=16&on_error=skip")
    assert split.readable is not None
    assert np.flatnonzero(~split.readable).tolist() == [4, 20]
    assert (split.labels == whole.labels).all()
    train_teachers(split, "cnn", Training(epochs=2, batch_size=8), tmp_path / "t")
    teachers = load_teachers(split, "cnn", str(tmp_path / "t"))
    lossless = Encoding(kind="dense", num_classes=2, bits=32)
    views = Views(transform="rrc?size=12&scale=0.5", num_views=2)
    summary = cache_teacher(NetworkTeacher(split, teachers, views), tmp_path / "s.zarr", encoding=lossless)
    assert summary["num_rows"] == 22
    assert verify_store(tmp_path / "s.zarr") == []
    store = open_store(tmp_path / "s.zarr")
    assert (store.teacher().slab(1)["mask"] == split.readable).all()
    check_data(store, split)
    stored = StoredAnswers(store)
    assert (stored.served(0) == split.readable).all()
    victims[0].unlink()
    with pytest.raises(ValueError, match="cut off|cannot be decoded"):
        load_split(f"imagefolder:{folder}?size=16").samples[:]
    with pytest.raises(ValueError, match="expected stop or skip"):
        load_split(f"imagefolder:{folder}?on_error=ignore")


def test_data_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(
        "import numpy as np\n"
        "def blobs(split, num='30'):\n"
        "    rng = np.random.default_rng(split == 'test')\n"
        "    return rng.normal(size=(int(num), 3)), np.arange(int(num)) % 3 - 1\n"
        "def odd():\n"
        "    return 3\n"
    )
    split = load_split(f"{tmp_path}/own.py:blobs?num=12")
    assert split.samples.dtype == np.float32
    assert split.labels.min() == -1
    assert split.num_classes == 2
    test = load_split(with_split(split.spec, "test"))
    assert (len(test), test.split) == (12, "test")
    assert (test.samples != split.samples).all()
    with pytest.raises(ValueError, match="returned int"):
        load_split(f"{tmp_path}/own.py:odd")
    with pytest.raises(ValueError, match="no such file"):
        load_split("missing.py:blobs")


def test_groups_in_an_npz_file(tmp_path: Path) -> None:
    x, y = np.zeros((6, 2), np.float32), np.array([0, 1, -1, 0, 1, -1])
    np.savez(tmp_path / "a.npz", x=x, y=y, group=np.array([1, 1, 2, 2, 3, 3]))
    split = load_split(f"npz:{tmp_path}/a.npz")
    assert split.groups is not None
    assert split.groups.tolist() == [1, 1, 2, 2, 3, 3]
    np.savez(tmp_path / "a.npz", x=x, y=y, group=np.zeros(5, np.int64))
    with pytest.raises(ValueError, match="expected integers"):
        load_split(f"npz:{tmp_path}/a.npz")


def test_the_hub_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in of the library: the library itself is an extra, and the hub is not asked in tests."""
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install logitbank\[hf\]"):
        load_split("hf:someone/pictures")

    class Pictures:
        column_names, cache_files = ("img", "label"), ()
        features = {"label": SimpleNamespace(names=["a", "b", "c"])}  # noqa: RUF012

        def __len__(self) -> int:
            return 3

        def select_columns(self, columns: list[str]) -> "Pictures":
            return self

        def cast_column(self, column: str, kind: object) -> "Pictures":
            return self

        def __getitem__(self, wanted: str | int) -> object:
            if wanted == "label":
                return [0, None, 2]
            file = io.BytesIO()
            Image.new("RGB", (30 + int(wanted), 20), (int(wanted), 0, 0)).save(file, "PNG")
            return {"img": {"bytes": file.getvalue(), "path": None}}

    stand_in = ModuleType("datasets")
    stand_in.Image = lambda decode: None  # type: ignore[attr-defined]
    stand_in.load_dataset = lambda name, config, split, revision: Pictures()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", stand_in)
    split = load_split("hf:someone/pictures?image=img&size=8")
    assert split.samples.shape == (3, 8, 8, 3)
    assert split.samples[:][:, 0, 0, 0].tolist() == [0, 1, 2]
    assert split.labels.tolist() == [0, -1, 2]
    assert split.num_classes == 3
    with pytest.raises(ValueError, match="no column 'image'; it has img, label"):
        load_split("hf:someone/pictures")
