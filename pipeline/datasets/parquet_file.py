"""Reading .parquet files: what they say that they unpack to is compared with limits first."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from logitbank.pipeline.datasets.columns import Column, Columns
from logitbank.pipeline.datasets.limits import check_declared

_CELL_BYTES = 8
_REMEDY = "write it without compression and dictionaries"


def read_parquet(path: Path) -> Columns:
    """Columns by name; a null is an empty text.

    Raises:
        ValueError: Missing or damaged file, columns of lists, or far more rows than its size allows for.
    """
    parquet = _import_parquet(path)
    try:
        with parquet.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        check_declared(path, _declared(metadata), path.stat().st_size, _REMEDY)
        texts = _texts(schema)
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            table = file.read()
        return {name: _column(path, name, table.column(place)) for place, name in enumerate(_names(path, schema))}
    except Exception as error:  # the library raises many kinds on damaged bytes
        raise _unreadable(path, error) from error


def parquet_parts(path: Path, wanted: Collection[str], num_rows: int) -> Iterator[Columns]:
    """Columns of a file that are wanted and there, so many rows at a time; refused as ``read_parquet`` does."""
    parquet = _import_parquet(path)
    try:
        import pyarrow

        with parquet.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        for place in range(metadata.num_row_groups):
            group = metadata.row_group(place)
            stored = sum(group.column(column).total_compressed_size for column in range(group.num_columns))
            check_declared(path, group.total_byte_size, stored, _REMEDY)
        names = [name for name in _names(path, schema) if name in wanted]
        with parquet.ParquetFile(path, read_dictionary=_texts(schema)) as file:
            for batch in file.iter_batches(num_rows, columns=names):
                table = pyarrow.Table.from_batches([batch])
                yield {name: _column(path, name, table.column(name)) for name in names}
    except Exception as error:
        raise _unreadable(path, error) from error


def _import_parquet(path: Path) -> Any:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError("parquet: needs pyarrow; run `pip install logitbank[tables]`, or export to .csv") from error
    if not path.is_file():
        raise ValueError(f"no such file {path}; expected a .parquet file")
    return parquet


def _unreadable(path: Path, error: Exception) -> ValueError:
    """What was raised, when it is ours; else one line about the file."""
    return error if type(error) is ValueError else ValueError(f"{path}: not a readable .parquet file ({_line(error)})")


def _declared(metadata: Any) -> int:
    groups = (metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups))
    return int(max(sum(groups), metadata.num_rows * metadata.num_columns * _CELL_BYTES))


def _names(path: Path, schema: Any) -> list[str]:
    names = list(schema.names)
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two columns have one name; rename them")
    return names


def _texts(schema: Any) -> list[str]:
    from pyarrow import types

    return [field.name for field in schema if _is_text(types, field.type)]


def _is_text(types: Any, kind: Any) -> bool:
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind))


def _column(path: Path, name: str, column: Any) -> Column:
    try:
        encoded = column.dictionary_encode().unify_dictionaries().combine_chunks()
        texts = ["" if value is None else str(value) for value in encoded.dictionary.to_pylist()]
    except NotImplementedError as error:
        raise ValueError(f"{path}: column {name!r} holds {column.type}, no numbers or texts; remove it") from error
    codes = encoded.indices.fill_null(len(texts)).to_numpy(zero_copy_only=False).astype(np.int32)
    return Column([*texts, ""], codes)


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
