"""Columns of a table as texts, each different text kept once, and how they become numbers.

Shapes: N rows.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.labels import MISSING
from logitbank.pipeline.datasets.spec import tell

MAX_CATEGORIES = 256
_DECIMAL_COMMA = re.compile(r"[+-]?\d*,\d+")
_DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}([T ]\d.*)?|\d{1,2}([./])\d{1,2}\2\d{2}(\d{2})?( \d.*)?")
_DATE_NUMBER = re.compile(r"(19|20)\d{2}(0[1-9]|1[0-2])(0[1-9]|[12]\d|3[01])")
_PLAIN = re.compile(r"[+-]?\d+")


@dataclass(frozen=True)
class Column:
    """A column of texts: row i holds ``texts[codes[i]]``.

    Attributes:
        texts: The different texts.
        codes: int32 [N].
    """

    texts: list[str]
    codes: npt.NDArray[np.int32]

    @classmethod
    def of(cls, values: Iterable[str]) -> "Column":
        place: dict[str, int] = {}
        codes = np.array([place.setdefault(value, len(place)) for value in values], dtype=np.int32)
        return cls(list(place), codes)

    def __len__(self) -> int:
        return len(self.codes)

    def take(self, rows: npt.NDArray[np.integer]) -> "Column":
        """Some rows; the texts stay, also those that no row has any more."""
        return Column(self.texts, self.codes[rows])

    def values(self) -> list[str]:
        """The texts of all rows."""
        return [self.texts[code] for code in self.codes.tolist()]

    def present(self) -> list[str]:
        """The different texts that rows have, without those that stand for a missing value."""
        used = np.unique(self.codes)
        return [self.texts[code] for code in used if self.texts[code].lower() not in MISSING]


Columns = Mapping[str, Column]


@dataclass(frozen=True, kw_only=True)
class Feature:
    """How one column becomes numbers: scaled, or one 0/1 column for each category."""

    name: str
    mean: float = 0.0
    std: float = 1.0
    categories: tuple[str, ...] | None = None
    decimal: str = "."

    @property
    def width(self) -> int:
        return 1 if self.categories is None else len(self.categories)

    def attributes(self) -> dict[str, Any]:
        """JSON-able description; ``from_attributes`` is its inverse."""
        if self.categories is not None:
            return {"name": self.name, "categories": list(self.categories)}
        return {"name": self.name, "mean": self.mean, "std": self.std, "decimal": self.decimal}

    @classmethod
    def from_attributes(cls, attributes: Any) -> "Feature":
        """What ``attributes`` gave, read back from a file that anybody may have written.

        Raises:
            ValueError: Anything else.
        """
        match attributes:
            case {"name": str(name), "categories": list(texts)} if all(isinstance(text, str) for text in texts):
                return cls(name=name, categories=tuple(texts))
            case {"name": str(name), "mean": float(mean), "std": float(std), "decimal": "." | "," as mark} if std > 0:
                return cls(name=name, mean=mean, std=std, decimal=str(mark))
        raise ValueError(f"a column is {str(attributes)[:80]!r}; expected its name, and categories or mean and std")

    def encode(self, column: Column) -> npt.NDArray[np.float32]:
        """[N, 1] or [N, categories]; a missing number is the mean, a missing or new category is all zeros."""
        if self.categories is not None:
            place = {category: i for i, category in enumerate(self.categories)}
            chosen = np.array([place.get(text, -1) for text in column.texts] or [-1])[column.codes]
            out = np.zeros((len(column), len(self.categories)), dtype=np.float32)
            known = np.flatnonzero(chosen >= 0)
            out[known, chosen[known]] = 1
            return out
        numbers = self._numbers(column)
        scaled = np.where(np.isnan(numbers), 0.0, (numbers - self.mean) / self.std)
        return scaled[:, None].astype(np.float32)

    def _numbers(self, column: Column) -> npt.NDArray[np.float64]:
        used = set(np.unique(column.codes).tolist())
        of_text = np.full(max(len(column.texts), 1), np.nan)
        for code in used:
            text = column.texts[code]
            if text.lower() in MISSING:
                continue
            try:
                of_text[code] = read_number(text, self.decimal)
            except ValueError:
                row = int(np.flatnonzero(column.codes == code)[0])
                raise ValueError(
                    f"column {self.name!r} is {text!r} in row {row}; expected a number, as in training"
                ) from None
        _check_finite(self.name, of_text)
        return of_text[column.codes]


def read_number(text: str, decimal: str) -> float:
    """A number; Python's underscores between digits are none.

    Raises:
        ValueError: The text is no number.
    """
    if "_" in text or (decimal != "." and "." in text):
        raise ValueError(f"{text!r} is no number")
    return float(text.replace(decimal, ".") if decimal != "." else text)


def fit_feature(name: str, column: Column, decimal: str) -> Feature:
    """A column's encoding, from the training rows.

    Raises:
        ValueError: Infinite numbers, numbers with a decimal comma, or more than ``MAX_CATEGORIES`` texts.
    """
    texts = column.present()
    numbers = [text for text in texts if is_number(text, decimal)]
    dates = [text for text in texts if _DATE.fullmatch(text)]
    if len(numbers) == len(texts):
        if len(texts) > 1 and all(_DATE_NUMBER.fullmatch(text) for text in texts):
            tell(f"column {name!r} holds numbers that look like dates, such as {texts[0]!r}: they are read as numbers")
        return _fit_numbers(name, column, decimal)
    if decimal == "." and all(_DECIMAL_COMMA.fullmatch(text) or _PLAIN.fullmatch(text) for text in texts):
        raise ValueError(f"column {name!r} holds numbers with a decimal comma, such as {texts[0]!r}; pass decimal=,")
    if len(texts) > MAX_CATEGORIES and dates:
        raise ValueError(
            f"column {name!r} has {len(texts)} different texts, dates such as {dates[0]!r}, more than {MAX_CATEGORIES};"
            f" write them as numbers, such as days, or leave the column out with drop={name}"
        )
    if len(texts) > MAX_CATEGORIES:
        odd = f" ({len(numbers)} of them numbers)" if numbers else ""
        raise ValueError(
            f"column {name!r} has {len(texts)} different texts{odd}, more than {MAX_CATEGORIES}; is it an"
            f" identifier? Leave it out with drop={name}"
        )
    if dates:
        tell(f"column {name!r} holds dates such as {dates[0]!r}: each is a category; write numbers, such as days")
    if numbers:
        odd = next(text for text in texts if text not in set(numbers))
        tell(f"column {name!r} holds {len(numbers)} numbers and texts such as {odd!r}: its values are categories")
    return Feature(name=name, categories=tuple(sorted(texts)))


def _fit_numbers(name: str, column: Column, decimal: str) -> Feature:
    values = Feature(name=name, decimal=decimal)._numbers(column)
    numbers = values[~np.isnan(values)]
    if not len(numbers):
        return Feature(name=name, decimal=decimal)
    with np.errstate(over="ignore", invalid="ignore"):
        std = float(numbers.std())
    if not np.isfinite(std):
        raise ValueError(f"column {name!r} holds numbers up to {np.abs(numbers).max():g}, too large to be scaled")
    return Feature(name=name, mean=float(numbers.mean()), std=std if std > 1e-12 else 1.0, decimal=decimal)


def is_number(text: str, decimal: str = ".") -> bool:
    """Is the text a number, as ``read_number`` reads it."""
    try:
        read_number(text, decimal)
    except ValueError:
        return False
    return True


def _check_finite(name: str, numbers: npt.NDArray[np.float64]) -> None:
    if np.isinf(numbers).any():
        raise ValueError(f"column {name!r} holds infinite values; replace them or leave it out with drop={name}")
