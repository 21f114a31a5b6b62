"""An export as one .parquet file: a row for each (view, example), view after view; needs pyarrow.

Shapes: V views, N examples, R rows of a row group.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.exchange.document import MAX_BYTES, read_document
from logitbank.pipeline.exchange.values import Arrays, Values

ROW_GROUP_BYTES = 2**24
MAX_ROW_GROUP_BYTES = 2**30
MAX_ROW_GROUP_ROWS = 2**17
DOCUMENT = b"store"
_EXAMPLE_DTYPES = {"view": "int32", "key": "uint64", "label": "int32", "fold": "uint16", "mask": "bool"}


def import_pyarrow() -> Any:
    """pyarrow, with its Parquet part.

    Raises:
        ValueError: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError("parquet: needs pyarrow; run `pip install logitbank[tables]`, or export to .npz") from error
    return pyarrow


def write_parquet(values: Values, document: str, path: Path) -> None:
    """Writes an export, row group by row group.

    Args:
        values: What is exported.
        document: Its document; the value of ``store`` in the schema's metadata.
        path: The file.
    """
    pyarrow = import_pyarrow()
    examples = ["view", "key", "label", *([] if values.folds is None else ["fold"])]
    fields = [(name, pyarrow.from_numpy_dtype(_EXAMPLE_DTYPES[name])) for name in examples]
    for name, array in values.arrays.items():
        kind = pyarrow.from_numpy_dtype(array.dtype)
        fields.append((name, pyarrow.list_(kind, array.row_shape[0]) if array.row_shape else kind))
    schema = pyarrow.schema(fields, metadata={DOCUMENT: document})
    with pyarrow.parquet.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for rows in _row_groups(values, examples):
            columns = [_column(pyarrow, rows[field.name], field.type) for field in schema]
            writer.write_table(pyarrow.table(columns, schema=schema))


def _row_groups(values: Values, examples: list[str]) -> Iterator[Arrays]:
    """All rows, in pieces of about ``ROW_GROUP_BYTES``; a piece holds rows of one view only."""
    most = min(MAX_ROW_GROUP_ROWS, max(1, ROW_GROUP_BYTES // values.row_bytes))
    for view in range(values.num_views):
        waiting: list[Arrays] = []
        num_rows = 0
        for rows, chunk in values.chunks(view):
            own: Arrays = {
                "view": np.full(rows.stop - rows.start, view, np.int32),
                "key": values.store.keys[rows],
                "label": values.store.labels[rows].astype(np.int32),
                **({} if values.folds is None else {"fold": values.folds[rows]}),
            }
            assert list(own) == examples
            for start in range(0, rows.stop - rows.start, most):  # a chunk may be of more rows than a row group
                part = {name: array[start : start + most] for name, array in {**own, **chunk}.items()}
                if num_rows and num_rows + len(part["key"]) > most:
                    yield _joined(waiting)
                    waiting, num_rows = [], 0
                waiting.append(part)
                num_rows += len(part["key"])
        yield _joined(waiting)


def _joined(parts: list[Arrays]) -> Arrays:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _column(pyarrow: Any, values: npt.NDArray[np.generic], kind: Any) -> Any:
    if values.ndim == 1:
        return pyarrow.array(values, type=kind)
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1), type=kind.value_type)
    return pyarrow.FixedSizeListArray.from_arrays(flat, type=kind)


class ParquetExport:
    """Reads an export row group by row group.

    Args:
        path: The file.

    Raises:
        ValueError: Not an export, or damaged.
    """

    def __init__(self, path: Path) -> None:
        self._pyarrow = import_pyarrow()
        self.path = path
        try:
            self._file = self._pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
            metadata, self._schema = self._file.metadata, self._file.schema_arrow
        except (self._pyarrow.ArrowException, OSError) as error:
            raise ValueError(f"{path}: not a readable .parquet file ({_line(error)}); fetch it again") from error
        text = (self._schema.metadata or {}).get(DOCUMENT, b"")[: MAX_BYTES + 1].decode(errors="replace")
        if not text:
            raise ValueError(f"{path}: not an export that `cli export` wrote; for plain logits use array:FILE.npy")
        self.description = read_document(text, str(path))
        self._check(metadata)
        sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        self._last: tuple[int, Arrays] = (-1, {})
        self._read_examples(folds="fold" in self._schema.names)

    def _check(self, metadata: Any) -> None:
        """The schema and the sizes that the file declares, before anything of them is read."""
        said, names = self.description, set(self._schema.names)
        wanted = {name: (_EXAMPLE_DTYPES[name], 0) for name in ("view", "key", "label")}
        wanted |= {"fold": (_EXAMPLE_DTYPES["fold"], 0)} if "fold" in names else {}
        wanted |= {name: (row.dtype, row.row_shape[0] if row.row_shape else 0) for name, row in said.arrays.items()}
        for name, (dtype, size) in wanted.items():
            kind = self._pyarrow.from_numpy_dtype(dtype)
            kind = self._pyarrow.list_(kind, size) if size else kind
            if name not in names or self._schema.field(name).type != kind:
                found = str(self._schema.field(name).type)[:60] if name in names else "nothing"
                raise ValueError(f"{self.path}: expected column {name} {kind}, found {found}; export the store again")
        num_rows = sum(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        if num_rows != said.num_views * said.num_examples:
            raise ValueError(
                f"{self.path}: has {num_rows} rows; expected {said.num_views} views of {said.num_examples}"
            )
        for number in range(metadata.num_row_groups):
            group = metadata.row_group(number)
            unfolded = max(group.total_byte_size, group.num_rows * (said.row_bytes + 18))
            if not group.num_rows > 0 or unfolded > MAX_ROW_GROUP_BYTES:
                raise ValueError(
                    f"{self.path}: row group {number} unfolds to {unfolded} bytes; expected at most"
                    f" {MAX_ROW_GROUP_BYTES}: export the store again"
                )

    def _read_examples(self, *, folds: bool) -> None:
        """Keys, labels and folds of the first view, and proof that the other views have the same in the same order.

        What is allocated grows with what was read, not with what is declared.
        """
        size, names = self.description.num_examples, ["key", "label", *(["fold"] if folds else [])]
        mask = ["mask"] if "mask" in self.description.arrays else []
        found = {name: np.empty(0, _EXAMPLE_DTYPES[name]) for name in [*names, *mask]}
        for number in range(len(self._starts) - 1):
            part = self._read(number, ["view", *names, *mask])
            view, row = np.divmod(np.arange(self._starts[number], self._starts[number + 1]), size)
            if view[0] == 0:
                found = {name: np.concatenate([array, part[name][view == 0]]) for name, array in found.items()}
            same = [part["view"] == view, *(part[name] == found[name][row] for name in names)]
            if not np.logical_and.reduce(same).all():
                raise ValueError(
                    f"{self.path}: expected a row for each view and example, view after view in the same order; the"
                    " rows were moved: export the store again"
                )
            for name in mask:
                np.logical_and.at(found[name], row, part[name])
        self.keys, self.labels = found["key"], found["label"]
        self.folds = found.get("fold")
        self.served = found.get("mask", np.ones(size, np.bool_))

    def rows(self, view: int, rows: npt.NDArray[np.int64]) -> Arrays:
        """The natural values of some rows of a view."""
        positions = view * self.description.num_examples + rows
        groups = np.searchsorted(self._starts, positions, side="right") - 1
        out: Arrays = {
            name: np.empty((len(rows), *row.row_shape), row.dtype) for name, row in self.description.arrays.items()
        }
        for number in np.unique(groups):
            here = np.flatnonzero(groups == number)
            if self._last[0] != number:
                self._last = (-1, {})  # one row group at a time is in memory
                self._last = (int(number), self._read(int(number), list(self.description.arrays)))
            for name, array in self._last[1].items():
                out[name][here] = array[positions[here] - self._starts[number]]
        return out

    def _read(self, number: int, names: list[str]) -> Arrays:
        """Some columns of a row group."""
        try:
            table = self._file.read_row_group(number, columns=names, use_threads=False)
            if table.num_rows != self._starts[number + 1] - self._starts[number]:
                raise ValueError(f"{table.num_rows} rows")
            return {name: self._values(table.column(name)) for name in names}
        except (self._pyarrow.ArrowException, OSError, ValueError) as error:
            raise ValueError(f"{self.path}: row group {number} is damaged ({_line(error)}); fetch it again") from error

    def _values(self, column: Any) -> npt.NDArray[np.generic]:
        column = column.combine_chunks()
        if isinstance(column, self._pyarrow.ChunkedArray):
            column = column.chunk(0)
        if column.null_count:
            raise ValueError("values are missing")
        if not isinstance(column, self._pyarrow.FixedSizeListArray):
            return np.asarray(column.to_numpy(zero_copy_only=False))
        flat = column.flatten()
        if flat.null_count:
            raise ValueError("values are missing")
        return np.asarray(flat.to_numpy(zero_copy_only=False)).reshape(len(column), column.type.list_size)


def _line(error: Exception) -> str:
    """What Arrow says, without the lines that follow."""
    return next(iter(str(error).splitlines()), "")
