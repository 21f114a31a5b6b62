"""Values of new rows that a model has not learnt to read: counted over all parts of a table, and told once."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from logitbank.pipeline.datasets.columns import Columns, Feature
from logitbank.pipeline.datasets.labels import MISSING
from logitbank.pipeline.datasets.spec import shown, tell

FEW_ROWS = 10  # below, a column without a value is a record without it, not a table that lost it


class NewValues:
    """Categories that no training row had, and columns without any value."""

    def __init__(self, features: Sequence[Feature]) -> None:
        self._features = features
        self._rows = 0
        self._missing, self._new = Counter[str](), Counter[str]()
        self._texts: dict[str, str] = {}

    def count(self, columns: Columns) -> None:
        """Counts the rows of a part."""
        for feature in self._features:
            column = columns[feature.name]
            rows_of = np.bincount(column.codes, minlength=len(column.texts)).tolist()
            known = None if feature.categories is None else frozenset(feature.categories)
            for text, rows in zip(column.texts, rows_of, strict=True):
                if text.lower() in MISSING:
                    self._missing[feature.name] += rows
                elif rows and known is not None and text not in known:
                    self._new[feature.name] += rows
                    self._texts.setdefault(feature.name, text)
        self._rows += len(columns[self._features[0].name]) if self._features else 0

    def tell(self, source: str) -> None:
        """Says what was counted, a line for each column with categories that no training row had."""
        for name, rows in self._new.items():
            tell(
                f"{source}: column {name!r} holds categories that no training row had in {rows} of {self._rows} rows,"
                f" such as {self._texts[name][:60]!r}; they are read as missing"
            )
        empty = [name for name, rows in self._missing.items() if rows == self._rows >= FEW_ROWS]
        if empty:
            tell(f"{source}: no row has a value of {shown(empty)}, which the model reads")
