"""Tables as people keep them: UCI's files as downloaded, frames with an index, decimal commas, damaged files."""

import random
import resource
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from logitbank.pipeline.datasets import limits, load_split, with_split
from logitbank.pipeline.datasets.split import check_same_classes
from tests.realdata import DATA, needs

ADULT = """39, State-gov, 77516, <=50K
50, Self-emp, 83311, >50K
?, Private, 215646, <=50K

"""
ADULT_TEST = """|1x3 Cross validator
25, Private, 226802, <=50K.
38, Private, 89814, >50K.

"""
WINE = """fixed acidity;"volatile acidity";"alcohol";"quality"
7,4;0,7;9,4;5
7,8;0,88;9,8;5
11,2;0,28;9,8;6
"""


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.csv").write_text(text)


def test_uci_files_as_they_are_downloaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, adult=ADULT, adult_test=ADULT_TEST)
    spec = f"csv:{tmp_path}/adult.csv?header=0&test={tmp_path}/adult_test.csv"
    with pytest.raises(ValueError, match=r"adult_test.csv: line 2 has another number of fields \(4\) .* comment="):
        load_split(spec)
    with pytest.raises(ValueError, match=r"label '<=50K.' of row 0 is not among the training labels <=50K, >50K"):
        load_split(f"{spec}&comment=|&split=test")
    load_split(f"{spec}&skip=1")  # right for the one file, a row less of the other
    assert "adult.csv: 1 of the skipped lines look like rows: 39, State-gov, 77516, <=50K" in caplog.text
    train = load_split(f"{spec}&comment=|&label_strip=.")
    test = load_split(with_split(train.spec, "test"))
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 1, 0], [0, 1])
    assert train.class_names == test.class_names == ("<=50K", ">50K")
    assert train.input_shape == test.input_shape == (5,)


@needs("tabular/adult.data", "tabular/adult.test")
def test_adult_itself() -> None:
    assert DATA is not None
    folder = DATA / "tabular"
    spec = f"csv:{folder}/adult.data?header=0&test={folder}/adult.test&comment=|&label_strip=."
    train, test = load_split(spec), load_split(f"{spec}&split=test")
    assert (len(train), len(test)) == (32561, 16281)
    assert np.bincount(train.labels).tolist() == [24720, 7841]
    assert np.bincount(test.labels).tolist() == [12435, 3846]


def test_other_separators_and_decimal_commas(tmp_path: Path) -> None:
    write(tmp_path, wine=WINE)
    with pytest.raises(ValueError, match=r"wine.csv: line 2 has another number of fields|pass sep=;"):
        load_split(f"csv:{tmp_path}/wine.csv")
    with pytest.raises(ValueError, match=r"'fixed acidity' holds numbers with a decimal comma, such as '.*'; pass dec"):
        load_split(f"csv:{tmp_path}/wine.csv?sep=;&test_share=0")
    wine = load_split(f"csv:{tmp_path}/wine.csv?sep=;&test_share=0&decimal=,")
    acidity = np.array([7.4, 7.8, 11.2])
    np.testing.assert_allclose(wine.samples[:, 0].astype(float), (acidity - acidity.mean()) / acidity.std(), rtol=1e-6)
    assert wine.labels.tolist() == [0, 0, 1]
    write(tmp_path, blanks="  7.4 \t\t0.7  1\n 7.8   0.88\t 2 \n", tabs="a\tb\n7.4\t1\n\t2\n", quality='q;"a"\n1;2\n')
    assert load_split(f"csv:{tmp_path}/blanks.csv?sep=space&header=0&test_share=0").samples.shape == (2, 2)
    assert load_split(f"csv:{tmp_path}/tabs.csv?sep=tab&test_share=0").samples.tolist() == [[0], [0]]
    with pytest.raises(ValueError, match=r"one column .*; when it is several, pass sep=;"):
        load_split(f"csv:{tmp_path}/quality.csv")


def test_the_index_of_a_frame_is_no_feature(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(
        tmp_path, frame=",size,bought\n0,3,yes\n1,4,no\n", same="size,bought\n3,yes\n4,no\n", odd="a,,y\n1,2,0\n3,4,1\n"
    )
    table = {"size": [3, 4], "bought": ["yes", "no"], "__index_level_0__": [7, 9]}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "frame.parquet")
    plain = load_split(f"csv:{tmp_path}/same.csv?test_share=0&label=bought")
    for name in ("csv:{}/frame.csv", "parquet:{}/frame.parquet"):
        split = load_split(f"{name.format(tmp_path)}?test_share=0&label=bought")
        assert split.fingerprint == plain.fingerprint
    assert caplog.text.count("numbers the rows or is empty, and is left out") == 2
    with pytest.raises(ValueError, match=r"column 1 has no name"):
        load_split(f"csv:{tmp_path}/odd.csv?test_share=0")


def test_labels_of_tables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(
        tmp_path,
        ints="size,label\n1,0\n2,1\n3,10\n4,?\n",
        floats="size,label\n1,0.0\n2,10.0\n",
        price="rooms,price\n" + "".join(f"{i % 7},{i * 1.37:.4f}\n" for i in range(400)),
        whole="rooms,price\n" + "".join(f"{i % 7},{i * 137 % 9001}\n" for i in range(400)),
        few="size,y\n1,0.5\n2,1.5\n" * 1,
    )
    spec = f"csv:{tmp_path}/ints.csv?test={tmp_path}/floats.csv"
    assert load_split(f"{spec}&split=test").labels.tolist() == [0, 2]
    assert load_split(spec).labels.tolist() == [0, 1, 2, -1]
    assert "1 rows are unlabelled, with labels such as '?'" in caplog.text
    wide = load_split(f"{spec}&classes=12&split=test")
    assert (wide.labels.tolist(), wide.num_classes) == ([0, 10], 12)
    for name, message in (("price", "is a measurement, not a class"), ("whole", "different labels in .* rows are no")):
        with pytest.raises(ValueError, match=message):
            load_split(f"csv:{tmp_path}/{name}.csv")
    (tmp_path / "names.txt").write_text("1.5\n9\n0.5\n")
    assert load_split(f"csv:{tmp_path}/few.csv?test_share=0&classes={tmp_path}/names.txt").labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("text", "query", "message"),
    [
        ('a,b\n1,"2\n3,4\n', "", "not a readable .csv file"),
        ("a,b\n1,2\n3\n", "", "line 3 has another number of fields"),
        ("a,b\n1,inf\n2,3\n", "label=a", "holds infinite values"),
        ("a,b\n1e308,2\n-1e308,3\n", "label=b&test_share=0", "column 'a' holds numbers up to 1e.308, too large"),
        ("a,b\n1,2\n3,4\n", "label=a&drop=a", "one column is two of label"),
        ("a,b\n1,2\n3,4\n", "group=b", "one column is two of label"),
        ("a,b\n1,2\n3,4\n", "test=X.csv&test_share=0.5", "test_share says nothing"),
        ("\xff\xfe,b\n", "encoding=ascii", "no text in ascii"),
        ("a,b\n1,2\n", "encoding=latin-9000", "no text in latin-9000"),
        ("", "", "no rows"),
        ("a,b\n", "test_share=0", "has no rows"),
    ],
)
def test_tables_that_cannot_be_read_right(tmp_path: Path, text: str, query: str, message: str) -> None:
    write(tmp_path, t=text)
    with pytest.raises(ValueError, match=message) as caught:
        load_split(f"csv:{tmp_path}/t.csv?{query}")
    assert "\n" not in str(caught.value)


def test_numbers_among_texts_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, t="children,y\n0,a\n1,b\n2,a\n3+,b\n")
    assert load_split(f"csv:{tmp_path}/t.csv?test_share=0").input_shape == (4,)
    assert "column 'children' holds 3 numbers and texts such as '3+': its values are categories" in caplog.text


def test_rows_without_a_group_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, t="size,patient,y\n1,a,0\n2,,1\n3,?,0\n4,,1\n")
    load_split(f"csv:{tmp_path}/t.csv?test_share=0&group=patient")
    assert "3 rows have no 'patient'; rows of one such text are one group" in caplog.text


def test_a_first_line_that_looks_like_a_row_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, t=ADULT, counted="0,1,2,y\n5,6,7,a\n8,9,1,b\n", trailing="a,y,\n1,0,\n2,1,\n")
    load_split(f"csv:{tmp_path}/counted.csv?test_share=0")
    assert not caplog.text
    load_split(f"csv:{tmp_path}/t.csv?test_share=0")
    assert "line 1 is read as names of columns, 39, State-gov, 77516 ... (4 in all); pass header=0" in caplog.text
    assert load_split(f"csv:{tmp_path}/trailing.csv?test_share=0&label=y").input_shape == (1,)


def test_infinite_numbers_among_the_test_rows(tmp_path: Path) -> None:
    write(tmp_path, t="a,y\n1,0\n2,1\n", u="a,y\n1,0\n1e999,1\n")
    with pytest.raises(ValueError, match="column 'a' holds infinite values"):
        load_split(f"csv:{tmp_path}/t.csv?test={tmp_path}/u.csv&split=test")


def test_what_a_parquet_file_unpacks_to_is_looked_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is set lower, so that the files can be small."""
    monkeypatch.setattr(limits, "ALWAYS", 2**20)
    path, rows = tmp_path / "t.parquet", 2_000_000
    pyarrow.parquet.write_table(pyarrow.table({"x": np.zeros(rows, np.int8), "y": np.zeros(rows, np.int8)}), path)
    with pytest.raises(ValueError, match=r"t.parquet: .* MB that say they unpack to 0.0 GB, over 100 times as much"):
        load_split(f"parquet:{path}")
    text = pyarrow.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["a" * 200_000])  # 4 GB that are one text
    table = pyarrow.table({"x": text, "n": np.arange(20_000), "y": np.arange(20_000) % 3})
    pyarrow.parquet.write_table(table, path, store_schema=False)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load_split(f"parquet:{path}?test_share=0").input_shape == (2,)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kilobytes


def test_columns_of_lists_are_named(tmp_path: Path) -> None:
    pyarrow.parquet.write_table(pyarrow.table({"x": [[1], [2]], "y": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(ValueError, match=r"column 'x' holds list<.*>, no numbers or texts"):
        load_split(f"parquet:{tmp_path}/t.parquet")


def test_damaged_tables_are_one_line(tmp_path: Path) -> None:
    """Hundreds of files with bytes changed or cut off: read, or refused in one line."""
    rng = random.Random(0)
    write(tmp_path, t="size,colour,y\n" + "".join(f"{i},{'red' if i % 3 else 'blue'},{i % 2}\n" for i in range(40)))
    table = {"size": [*range(40)], "colour": ["red", "blue"] * 20, "y": [0, 1] * 20}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "t.parquet")
    for kind, count in (("csv", 100), ("parquet", 200)):
        path = tmp_path / f"t.{kind}"
        whole = path.read_bytes()
        for _ in range(count):
            data = bytearray(whole)
            for _ in range(rng.randint(1, 6)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            path.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
            try:
                load_split(f"{kind}:{path}")
            except ValueError as error:
                assert "\n" not in str(error)  # noqa: PT017 - either is right


def test_columns_are_read_as_in_training(tmp_path: Path) -> None:
    """Another file learns another scaling from its own rows: a student would be measured on other numbers."""
    for name, start in (("a", 0), ("b", 50)):
        rows = "".join(f"{start + number},{number % 2}\n" for number in range(40))
        (tmp_path / f"{name}.csv").write_text(f"size,bought\n{rows}")
    train, other = (load_split(f"csv:{tmp_path}/{name}.csv") for name in "ab")
    together = f"csv:{tmp_path}/a.csv?test={tmp_path}/b.csv"
    check_same_classes(load_split(together), load_split(f"{together}&split=test&limit=3"))
    with pytest.raises(ValueError, match=r"b\.csv\S* has other columns than \S*a\.csv.* scales them by other rows"):
        check_same_classes(train, other)


def test_lines_of_separators_are_no_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path, t="size,bought\n1,0\n,\n2,1\n,\n")
    assert len(load_split(f"csv:{tmp_path}/t.csv?test_share=0")) == 2
    assert "2 lines hold separators alone, and are no rows" in caplog.text


def test_columns_go_by_name_in_whatever_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(
        tmp_path,
        train="age,job,y\n30,a,1\n20,b,0\n40,a,1\n",
        same="age,job,y\n25,b,0\n,c,1\n",
        other="y,note,job,age\n0,x,b,25\n1,z,c,\n",
        fewer="y,age\n0,25\n",
        counted="1,2,3\n4,5,6\n",
        longer="0,1,2,3\n0,4,5,6\n",
    )
    same, other = (
        load_split(f"csv:{tmp_path}/train.csv?test={tmp_path}/{name}.csv&split=test") for name in ("same", "other")
    )
    assert (same.samples == other.samples).all()
    assert (same.keys == other.keys).all()
    assert same.labels.tolist() == other.labels.tolist() == [0, 1]
    assert same.samples[1].tolist() == [0, 0, 0]  # a missing number is the mean, a new category none
    assert "has columns that training rows do not, left out: note" in caplog.text
    for train, test in (("train", "fewer"), ("counted", "longer")):
        header = "&header=0" if train == "counted" else ""
        with pytest.raises(ValueError, match="has other columns"):
            load_split(f"csv:{tmp_path}/{train}.csv?test={tmp_path}/{test}.csv{header}")


def test_dates_are_told_apart_from_numbers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    days = [f"2024-{1 + day // 28:02}-{1 + day % 28:02}" for day in range(300)]
    for name, texts in (("few", days[:9]), ("many", days), ("number", [day.replace("-", "") for day in days])):
        rows = "".join(f"{text},{place % 2}\n" for place, text in enumerate(texts))
        (tmp_path / f"{name}.csv").write_text(f"day,y\n{rows}")
    few = load_split(f"csv:{tmp_path}/few.csv?test_share=0")
    assert few.input_shape == (9,)
    assert "column 'day' holds dates such as '2024-01-01': each is a category" in caplog.text
    with pytest.raises(ValueError, match="300 different texts, dates such as '2024-01-01'.* such as days.*drop=day"):
        load_split(f"csv:{tmp_path}/many.csv?test_share=0")
    caplog.clear()
    assert load_split(f"csv:{tmp_path}/number.csv?test_share=0").input_shape == (1,)
    assert "numbers that look like dates, such as '20240101': they are read as numbers" in caplog.text
    plain = "".join(f"{number},{number % 2}\n" for number in range(20_000, 20_040))
    (tmp_path / "plain.csv").write_text(f"size,y\n{plain}")
    caplog.clear()
    load_split(f"csv:{tmp_path}/plain.csv?test_share=0")
    assert not caplog.text
