"""Tables from .csv and .parquet files: what is numeric, which categories there are and how columns are scaled is
learnt from the training rows alone.

Shapes: N rows, D features.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.classes import known_classes
from logitbank.pipeline.datasets.columns import Column, Columns, Feature, fit_feature
from logitbank.pipeline.datasets.csv_file import DECIMALS, read_csv, read_form
from logitbank.pipeline.datasets.held_out import divide_rows
from logitbank.pipeline.datasets.labels import MISSING, class_names, find_labels
from logitbank.pipeline.datasets.limits import check_fits
from logitbank.pipeline.datasets.parquet_file import read_parquet
from logitbank.pipeline.datasets.parquet_pictures import load_parquet_pictures, picture_column
from logitbank.pipeline.datasets.spec import check_split, read_one, said, shown, spell, tell
from logitbank.pipeline.datasets.split import Split, content_keys
from logitbank.pipeline.spelling import unknown

Reader = Callable[[str], Columns]

INDEX_NAMES = ("", "__index_level_0__")  # how pandas writes the index of a frame


def load_csv(
    path: str,
    *,
    split: str = "train",
    label: str = "",
    test: str = "",
    test_share: str = "",
    drop: str = "",
    group: str = "",
    classes: str = "",
    label_strip: str = "",
    header: str = "1",
    skip: str = "0",
    sep: str = ",",
    comment: str = "",
    decimal: str = ".",
    encoding: str = "utf-8-sig",
) -> Split:
    """A .csv file; blanks around fields do not count.

    Args:
        path: The file.
        split: "train" or "test".
        label: Column of the label (default: the last); an empty label is an unlabelled row.
        test: File of the test rows; without it a fixed random ``test_share`` of the rows is the test split.
        test_share: Share of the rows (default: 0.2), 0 to keep all for training.
        drop: Columns to leave out, with commas between.
        group: Column whose rows share a fold under ``--fold-strategy group``; it is no feature.
        classes: Number of classes, or a file of their names; see ``known_classes``.
        label_strip: Letters to take off the ends of labels, such as the dot of UCI's ``adult.test``.
        header: 1 when the first line names the columns, 0 when they are called 0, 1, 2, ...
        skip: Lines to skip before that.
        sep: What stands between fields: one of ``SEPARATORS``.
        comment: What lines that are no data begin with, such as #.
        decimal: The decimal mark, a dot or a comma.
        encoding: Of the text, such as latin-1.

    Raises:
        ValueError: Missing file or column, ragged lines, or labels that are no classes of the training rows.
    """
    defaults = {"header": "1", "skip": "0", "sep": ",", "decimal": ".", "encoding": "utf-8-sig"}
    form = {"header": header, "skip": skip, "sep": sep, "comment": comment, "decimal": decimal, "encoding": encoding}
    options = {"label": label, "test": test, "test_share": test_share, "drop": drop, "group": group}
    options |= {"classes": classes, "label_strip": label_strip}
    spec = spell("csv", path, {"split": split, **said({**options, **form}, defaults)})
    written = read_form(spec, header=header, skip=skip, sep=sep, comment=comment, encoding=encoding)
    read_one(spec, "decimal", decimal, DECIMALS)
    table = TableOptions(spec=spec, path=path, split=split, decimal=decimal, **options)
    return _load(table, lambda file: read_csv(Path(file), written))


def load_parquet(
    path: str,
    *,
    split: str = "train",
    label: str = "",
    test: str = "",
    test_share: str = "",
    drop: str = "",
    group: str = "",
    classes: str = "",
    label_strip: str = "",
    image: str = "",
    size: str = "",
    first_label: str = "0",
    on_error: str = "stop",
) -> Split:
    """A .parquet file, options as for csv, or pictures in .parquet files: see ``load_parquet_pictures``.

    It holds pictures when it has a column of them as the Hugging Face hub writes it, or when ``image`` names their
    column. Needs ``pip install logitbank[tables]``.

    Raises:
        ValueError: As for csv, or pyarrow is not installed.
    """
    image = image or picture_column(path)
    table = {"test_share": test_share, "drop": drop, "group": group, "label_strip": label_strip}
    if image:
        idle = [name for name, value in table.items() if value]
        if idle:
            raise ValueError(f"parquet:{path}: {idle[0]} does nothing here, because it holds pictures; leave it out")
        more = {"label": label, "test": test, "size": size, "classes": classes, "first_label": first_label}
        more["on_error"] = on_error
        return load_parquet_pictures(path, split=split, image=image, **more)
    for name, value in (
        ("size", size),
        ("first_label", first_label.strip("0")),
        ("on_error", "" if on_error == "stop" else on_error or "none"),
    ):
        if value:
            raise ValueError(f"parquet:{path}: {name} does nothing here, because it holds no pictures; leave it out")
    options = {"label": label, "test": test, "classes": classes, **table}
    spec = spell("parquet", path, {"split": split, **said(options, {})})
    wanted = TableOptions(spec=spec, path=path, split=split, decimal=".", **options)
    return _load(wanted, lambda file: read_parquet(Path(file)))


@dataclass(frozen=True, kw_only=True)
class TableOptions:
    """What is wanted of a table, whatever its file's format; see ``load_csv``."""

    spec: str
    path: str
    split: str
    decimal: str
    label: str
    test: str
    test_share: str
    drop: str
    group: str
    classes: str
    label_strip: str

    def __post_init__(self) -> None:
        check_split(self.spec, self.split)
        if self.test and self.test_share:
            raise ValueError(f"{self.spec}: test_share says nothing when test names a file; leave one of them out")

    @property
    def dropped(self) -> list[str]:
        return self.drop.split(",") if self.drop else []


def _load(options: TableOptions, read: Reader) -> Split:
    spec, columns = options.spec, _without_index(read(options.path), options)
    names = list(columns)
    label = _choose_label(options, names)
    train, held_out = _divide(columns, options, read)
    chosen = train if options.split == "train" else held_out
    used = [name for name in names if name not in {label, options.group, *options.dropped}]
    if not used or not len(train[label]) or not len(chosen[label]):
        raise ValueError(f"{spec}: no columns or no rows are left; expected at least one of each")
    features = [fit_feature(name, train[name], options.decimal) for name in used]
    samples = _encode(features, chosen, options)
    texts = _labels(train[label], options)
    found = known_classes(class_names(texts, options.classes, spec), options.classes, spec)
    wanted = _labels(chosen[label], options)
    _tell_absent(chosen, wanted, options)
    return Split(
        name=Path(options.path).stem,
        split=options.split,
        spec=spec,
        samples=samples,
        labels=find_labels(wanted, found, spec, remedy="mend it, take letters off its ends with label_strip="),
        num_classes=max(len(found), 2),
        class_names=found if len(found) >= 2 else (),
        groups=_groups(chosen[options.group]) if options.group else None,
        learnt=hashlib.sha256(repr(features).encode()).hexdigest()[:16],
        features=tuple(features),
    )


def _without_index(columns: Columns, options: TableOptions) -> Columns:
    """Leaves the index of a data frame out, and says so."""
    index = next((name for name in INDEX_NAMES if name in columns), None)
    if index is None or len(columns) == 1:
        return columns
    if options.split == "train":
        tell(f"{options.spec}: the column {index!r} numbers the rows or is empty, and is left out")
    return {name: column for name, column in columns.items() if name != index}


def _choose_label(options: TableOptions, names: list[str]) -> str:
    label = options.label or names[-1]
    for name in [label, *options.dropped, *filter(None, [options.group])]:
        if name not in names:
            raise ValueError(f"{options.spec}: {unknown('column', name, names)}")
    if label == options.group or {label, options.group} & set(options.dropped):
        raise ValueError(f"{options.spec}: one column is two of label ({label}), group and drop; give it one part")
    return label


def _divide(columns: Columns, options: TableOptions, read: Reader) -> tuple[Columns, Columns]:
    """Training rows and test rows."""
    spec = options.spec
    if options.test:
        held_out = _without_index(read(options.test), options)
        return columns, _by_name(columns, held_out, options)
    num_rows = len(next(iter(columns.values())))
    if not num_rows:
        raise ValueError(f"{spec}: {options.path} has no rows; expected at least one")
    parts = divide_rows(num_rows, options.test_share, spec)
    train, test = ({name: column.take(rows) for name, column in columns.items()} for rows in parts)
    return train, test


def _by_name(columns: Columns, held_out: Columns, options: TableOptions) -> Columns:
    """The test columns that training rows have, in whatever order; where columns are only counted, all must agree."""
    counted = all(name.isdecimal() for name in columns)
    if set(columns) - set(held_out) or (counted and set(held_out) - set(columns)):
        raise ValueError(
            f"{options.spec}: {options.test} has other columns ({shown(held_out, 20)}) than {options.path}"
            f" ({shown(columns, 20)})"
        )
    more = [name for name in held_out if name not in columns]
    if more and options.split == "test":
        tell(f"{options.spec}: {options.test} has columns that training rows do not, left out: {shown(more, 8)}")
    return {name: held_out[name] for name in columns}


def _encode(features: list[Feature], chosen: Columns, options: TableOptions) -> npt.NDArray[np.float32]:
    width = sum(feature.width for feature in features)
    check_fits(options.spec, 4 * width * len(chosen[features[0].name]))
    samples = np.concatenate([feature.encode(chosen[feature.name]) for feature in features], axis=1)
    return np.ascontiguousarray(samples)


def _labels(column: Column, options: TableOptions) -> list[str]:
    if not options.label_strip:
        return column.values()
    return Column([text.strip(options.label_strip) for text in column.texts], column.codes).values()


def _tell_absent(chosen: Columns, texts: list[str], options: TableOptions) -> None:
    absent = [text for text in texts if text.lower() in MISSING]
    if any(absent):
        tell(f"{options.spec}: {len(absent)} rows are unlabelled, with labels such as {max(absent)!r}")
    apart = chosen[options.group].values() if options.group else []
    alone = sum(text.lower() in MISSING for text in apart)
    if alone:
        tell(f"{options.spec}: {alone} rows have no {options.group!r}; rows of one such text are one group")


def _groups(column: Column) -> npt.NDArray[np.uint64]:
    used, place = np.unique(column.codes, return_inverse=True)
    texts = [column.texts[code].encode() for code in used]
    width = max(map(len, texts)) or 1
    keys = content_keys(np.array(texts, dtype=f"S{width}").view(np.uint8).reshape(-1, width))
    return keys[place]
