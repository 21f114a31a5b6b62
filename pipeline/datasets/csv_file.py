"""Reading .csv files line by line: no line is left out without a word."""

import csv
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from logitbank.pipeline.datasets.columns import Column, Columns, is_number
from logitbank.pipeline.datasets.limits import check_fits
from logitbank.pipeline.datasets.spec import read_flag, read_one, read_whole, shown, tell

SEPARATORS = {",": ",", ";": ";", "|": "|", ":": ":", "tab": "\t", "space": " "}
DECIMALS = (".", ",")
_MAX_SKIP = 10**6
_TIMES = 4  # as texts in memory, at the least


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a file is written.

    Attributes:
        header: The first line names the columns.
        skip: Lines before it.
        separator: Between fields; runs of blanks and tabs count as one for a blank.
        comment: What lines that are no data begin with, or nothing.
        encoding: Of the text.
    """

    header: bool = True
    skip: int = 0
    separator: str = ","
    comment: str = ""
    encoding: str = "utf-8-sig"


def read_csv(path: Path, form: Form) -> Columns:
    """Columns by name; blanks around fields and lines without text do not count.

    Raises:
        ValueError: Missing file, another encoding, quotes that do not close, ragged lines, or two columns of one name.
    """
    if not path.is_file():
        raise ValueError(f"no such file {path}; expected a .csv file")
    check_fits(path, _TIMES * path.stat().st_size)
    try:
        with path.open(newline="", encoding=form.encoding) as file:
            lines, num_blank = [], 0
            for number, fields in _records(file, form):
                if any(fields):
                    lines.append((number, fields))
                else:
                    num_blank += len(fields) > 1
    except (UnicodeError, LookupError, csv.Error) as error:
        raise _unreadable(path, form, error) from error
    if num_blank:
        tell(f"{path}: {num_blank} lines hold separators alone, and are no rows")
    if not lines:
        raise ValueError(f"{path}: no rows; expected at least one")
    first = lines[0][0]
    names = lines.pop(0)[1] if form.header else [str(column) for column in range(len(lines[0][1]))]
    _check(path, names, lines, first, form)
    columns = {name: Column.of(line[column] for _, line in lines) for column, name in enumerate(names)}
    if "" in columns and columns[""].present() and (names[0] or len(columns[""].texts) < len(lines)):
        raise ValueError(f"{path}: column {names.index('')} has no name; name it, or pass header=0 when line 1 is data")
    return columns


def csv_parts(path: Path, form: Form, num_rows: int) -> Iterator[Columns]:
    """The columns of a file, so many rows at a time; lines are read and refused as ``read_csv`` does."""
    if not path.is_file():
        raise ValueError(f"no such file {path}; expected a .csv file")
    try:
        with path.open(newline="", encoding=form.encoding) as file:
            records = ((number, fields) for number, fields in _records(file, form) if any(fields))
            start = next(records, None)
            if start is None:
                raise ValueError(f"{path}: no rows; expected at least one")
            first, fields = start
            names = fields if form.header else [str(column) for column in range(len(fields))]
            lines = [] if form.header else [start]
            _check(path, names, lines, first, form)
            while lines := [*lines, *islice(records, num_rows - len(lines))]:
                _check_ragged(path, names, lines, first)
                yield {name: Column.of(line[column] for _, line in lines) for column, name in enumerate(names)}
                lines = []
    except (UnicodeError, LookupError, csv.Error) as error:
        raise _unreadable(path, form, error) from error


def read_form(spec: str, *, header: str, skip: str, sep: str, comment: str, encoding: str) -> Form:
    """How a file is written, from the options of a data spec.

    Raises:
        ValueError: Outside their domains.
    """
    return Form(
        header=read_flag(spec, "header", header),
        skip=read_whole(spec, "skip", skip, 0, _MAX_SKIP, "a number of lines"),
        separator=SEPARATORS[read_one(spec, "sep", "tab" if sep == "\t" else sep, SEPARATORS)],
        comment=comment,
        encoding=encoding,
    )


def _unreadable(path: Path, form: Form, error: Exception) -> ValueError:
    if isinstance(error, csv.Error):
        return ValueError(f"{path}: not a readable .csv file ({error}); mend it, or pass sep=")
    return ValueError(f"{path}: no text in {form.encoding} ({error}); pass encoding=, such as latin-1")


def _records(file: TextIO, form: Form) -> Iterator[tuple[int, list[str]]]:
    """Number of its last line and fields of every record."""
    skipped = [line for line in (file.readline() for _ in range(form.skip)) if line.strip()]
    reader = csv.reader(_data(file, form), delimiter=form.separator, skipinitialspace=True, strict=True)
    for fields in reader:
        alike = [line for line in skipped if len(fields) > 1 and line.count(form.separator) == len(fields) - 1]
        if alike and form.separator != " ":
            tell(f"{file.name}: {len(alike)} of the skipped lines look like rows: {shown(alike, 1).strip()}")
        skipped = []
        yield form.skip + reader.line_num, [field.strip() for field in fields]


def _data(file: TextIO, form: Form) -> Iterator[str]:
    lines: Iterable[str] = file
    for line in lines:
        if form.comment and line.startswith(form.comment):
            yield "\n"  # keeps the numbers of the lines
        elif form.separator == " ":
            yield line.replace("\t", " ").strip() + "\n"
        else:
            yield line


def _check(path: Path, names: list[str], lines: list[tuple[int, list[str]]], first: int, form: Form) -> None:
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two columns have one name; rename them, or pass header=0 when line 1 is data")
    _check_ragged(path, names, lines, first)
    if form.header and _looks_like_a_row(names):
        tell(f"{path}: line {first} is read as names of columns, {shown(names, 3)}; pass header=0 when it is a row")
    other = next((name for name, text in SEPARATORS.items() if len(names) == 1 and text in names[0]), None)
    if other is not None and form.header:
        raise ValueError(f"{path}: one column {names[0]!r}; when it is several, pass sep={other}")


def _check_ragged(path: Path, names: list[str], lines: list[tuple[int, list[str]]], first: int) -> None:
    ragged = next(((number, len(line)) for number, line in lines if len(line) != len(names)), None)
    if ragged is not None:
        number, found = ragged
        raise ValueError(
            f"{path}: line {number} has another number of fields ({found}) than the {len(names)} columns of line"
            f" {first}; mend it, or pass skip= or comment= for lines that are no data"
        )


def _looks_like_a_row(names: list[str]) -> bool:
    """Numbers among the names, unless they just count the columns."""
    numbers = [name for name in names if is_number(name)]
    counted = [int(name) for name in numbers if name.isdecimal()]
    return bool(numbers) and (len(counted) < len(numbers) or np.ptp(counted) >= len(counted))
