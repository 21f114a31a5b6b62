"""Tables from .csv and .parquet files: what is numeric, which categories there are and how columns are scaled is
learnt from the training rows alone.

Shapes: N rows, D features.
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipeline.datasets.split import Split, content_keys
from pipeline.spelling import unknown

Columns = Mapping[str, Sequence[str]]
Reader = Callable[[str], Columns]

MISSING = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
MAX_CATEGORIES = 256


def load_csv(
    path: str,
    *,
    split: str = "train",
    label: str = "",
    test: str = "",
    test_share: str = "0.2",
    drop: str = "",
    group: str = "",
    header: str = "1",
    skip: str = "0",
) -> Split:
    """A .csv file; blanks around fields do not count.

    Args:
        path: The file.
        split: "train" or "test".
        label: Column of the label (default: the last); an empty label is an unlabelled row.
        test: File of the test rows; without it a fixed random ``test_share`` of the rows is the test split.
        test_share: Share of the rows, 0 to keep all for training.
        drop: Columns to leave out, with commas between.
        group: Column whose rows share a fold under ``--fold-strategy group``; it is no feature.
        header: 1 when the first line names the columns, 0 when they are called 0, 1, 2, ...
        skip: Lines to skip before that.

    Raises:
        ValueError: Missing file or column, ragged lines, or labels that the training rows do not have.
    """

    def read(file: str) -> Columns:
        return _read_csv(Path(file), header == "1", int(skip) if skip.isdigit() else 0)

    options = _said(label=label, test=test, test_share=test_share, drop=drop, group=group, header=header, skip=skip)
    spec = f"csv:{path}?split={split}{options}"
    return _load(spec, path, split, read, label, test, test_share, drop, group)


def load_parquet(
    path: str,
    *,
    split: str = "train",
    label: str = "",
    test: str = "",
    test_share: str = "0.2",
    drop: str = "",
    group: str = "",
) -> Split:
    """A .parquet file, options as for csv; needs ``pip install logitbank[tables]``.

    Raises:
        ValueError: As for csv, or pyarrow is not installed.
    """
    options = _said(label=label, test=test, test_share=test_share, drop=drop, group=group)
    spec = f"parquet:{path}?split={split}{options}"
    return _load(spec, path, split, _read_parquet, label, test, test_share, drop, group)


@dataclass(frozen=True, kw_only=True)
class Feature:
    """How one column becomes numbers: scaled, or one 0/1 column for each category."""

    name: str
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] | None = None

    def encode(self, values: Sequence[str]) -> npt.NDArray[np.float32]:
        """[N, 1] or [N, categories]; a missing number is the mean, a missing or new category is all zeros."""
        if self.categories is not None:
            place = {category: i for i, category in enumerate(self.categories)}
            out = np.zeros((len(values), len(self.categories)), dtype=np.float32)
            for row, value in enumerate(values):
                if value in place:
                    out[row, place[value]] = 1
            return out
        numbers = np.array([_number(value, self.name, row) for row, value in enumerate(values)])
        scaled = np.where(np.isnan(numbers), 0.0, (numbers - self.mean) / self.std)
        return scaled[:, None].astype(np.float32)


def fit_feature(name: str, values: Sequence[str]) -> Feature:
    """A column's encoding, from the training rows."""
    present = [value for value in values if value.lower() not in MISSING]
    try:
        numbers = np.array([float(value) for value in present])
        if not np.isfinite(numbers).all():
            raise ValueError(f"column {name!r} holds infinite values; replace them or leave it out with drop={name}")
    except ValueError as error:
        if "infinite" in str(error):
            raise
        categories = sorted(set(present))
        if len(categories) > MAX_CATEGORIES:
            raise ValueError(
                f"column {name!r} has {len(categories)} different texts, more than {MAX_CATEGORIES}; is it an"
                f" identifier? Leave it out with drop={name}"
            ) from None
        return Feature(name=name, categories=tuple(categories))
    if not len(numbers):
        return Feature(name=name)
    std = float(numbers.std())
    return Feature(name=name, mean=float(numbers.mean()), std=std if std > 1e-12 else 1.0)


def _load(
    spec: str,
    path: str,
    split: str,
    read: Reader,
    label: str,
    test: str,
    test_share: str,
    drop: str,
    group: str,
) -> Split:
    if split not in ("train", "test"):
        raise ValueError(f"{spec}: no split {split!r}; use split=train or split=test")
    columns = read(path)
    names = list(columns)
    label = label or names[-1]
    for name in [label, *filter(None, [*drop.split(","), group])]:
        if name not in columns:
            raise ValueError(f"{spec}: {unknown('column', name, names)}")
    train, held_out = (columns, read(test)) if test else _divide(columns, test_share, spec)
    if list(train) != list(held_out):
        raise ValueError(f"{spec}: {test} has other columns ({', '.join(held_out)}) than {path} ({', '.join(names)})")
    chosen = train if split == "train" else held_out
    used = [name for name in names if name not in {label, group, *drop.split(",")}]
    if not used or not len(train[label]) or not len(chosen[label]):
        raise ValueError(f"{spec}: no columns or no rows are left; expected at least one of each")
    features = [fit_feature(name, train[name]) for name in used]
    samples = np.concatenate([feature.encode(chosen[feature.name]) for feature in features], axis=1)
    classes = sorted({value for value in train[label] if value.lower() not in MISSING}, key=_class_order)
    return Split(
        name=Path(path).stem,
        split=split,
        spec=spec,
        samples=np.ascontiguousarray(samples),
        labels=_labels(chosen[label], classes, spec),
        num_classes=max(len(classes), 2),
        class_names=tuple(classes) if len(classes) >= 2 else (),
        groups=_groups(chosen[group]) if group else None,
    )


def _divide(columns: Columns, test_share: str, spec: str) -> tuple[Columns, Columns]:
    num_rows = len(next(iter(columns.values())))
    try:
        num_test = round(float(test_share) * num_rows)
    except ValueError:
        num_test = -1
    if not 0 <= num_test < num_rows:
        raise ValueError(f"{spec}: test_share is {test_share!r}; expected a number from 0 to below 1")
    order = np.random.default_rng(0).permutation(num_rows)
    parts = np.sort(order[num_test:]), np.sort(order[:num_test])
    train, test = ({name: [values[row] for row in rows] for name, values in columns.items()} for rows in parts)
    return train, test


def _labels(values: Sequence[str], classes: Sequence[str], spec: str) -> npt.NDArray[np.int64]:
    place = {name: i for i, name in enumerate(classes)}
    labels = np.full(len(values), -1, dtype=np.int64)
    for row, value in enumerate(values):
        if value.lower() in MISSING:
            continue
        if value not in place:
            shown = ", ".join(map(repr, classes[:8]))
            raise ValueError(f"{spec}: label {value!r} of row {row} is not among the training labels {shown}")
        labels[row] = place[value]
    return labels


def _groups(values: Sequence[str]) -> npt.NDArray[np.uint64]:
    width = max(len(value.encode()) for value in values) or 1
    texts = np.array([value.encode() for value in values], dtype=f"S{width}")
    return content_keys(texts.view(np.uint8).reshape(-1, width))


def _class_order(name: str) -> tuple[int, float, str]:
    try:
        return 0, float(name), name
    except ValueError:
        return 1, 0.0, name


def _number(value: str, name: str, row: int) -> float:
    if value.lower() in MISSING:
        return float("nan")
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"column {name!r} is {value!r} in row {row}; expected a number, as in training") from None


def _read_csv(path: Path, has_header: bool, skip: int) -> Columns:
    if not path.is_file():
        raise ValueError(f"no such file {path}; expected a .csv file")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = [
                (number, [field.strip() for field in line])
                for number, line in enumerate(csv.reader(file, skipinitialspace=True), start=1)
                if number > skip and line
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a readable .csv file ({error})") from error
    if not lines:
        raise ValueError(f"{path}: no rows; expected at least one")
    names = lines.pop(0)[1] if has_header else [str(column) for column in range(len(lines[0][1]))]
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two columns have one name; rename them, or pass header=0 when line 1 is data")
    ragged = next((number for number, line in lines if len(line) != len(names)), None)
    if ragged is not None:
        raise ValueError(f"{path}: line {ragged} has another number of fields than the {len(names)} columns; mend it")
    return {name: [line[column] for _, line in lines] for column, name in enumerate(names)}


def _read_parquet(file: str) -> Columns:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError("parquet: needs pyarrow; run `pip install logitbank[tables]`, or export to .csv") from error
    if not Path(file).is_file():
        raise ValueError(f"no such file {file}; expected a .parquet file")
    try:
        table = parquet.read_table(file).to_pydict()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{file}: not a readable .parquet file ({error})") from error
    return {name: ["" if value is None else str(value) for value in values] for name, values in table.items()}


def _said(**options: str) -> str:
    """The options that differ from their defaults, as a query."""
    defaults = {"test_share": "0.2", "header": "1", "skip": "0"}
    return "".join(f"&{name}={value}" for name, value in options.items() if value != defaults.get(name, ""))
