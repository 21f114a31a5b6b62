"""An export as one .parquet file: a row for each (view, example), view after view; needs pyarrow.

Shapes: V views, N examples.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.exchange.values import Arrays, Values

ROW_GROUP_BYTES = 2**24
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


def document_of(path: Path) -> str:
    """The document that an export carries; "" where there is none."""
    metadata = import_pyarrow().parquet.read_schema(path).metadata or {}
    return str(metadata.get(DOCUMENT, b"").decode())


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
