"""Reading .parquet files: what they say that they unpack to is compared with limits first."""

from pathlib import Path
from typing import Any

import numpy as np

from logitbank.pipeline.datasets.columns import Column, Columns
from logitbank.pipeline.datasets.limits import check_declared

_CELL_BYTES = 8


def read_parquet(path: Path) -> Columns:
    """Columns by name; a null is an empty text.

    Raises:
        ValueError: Missing or damaged file, columns of lists, or far more rows than its size allows for.
    """
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError("parquet: needs pyarrow; run `pip install logitbank[tables]`, or export to .csv") from error
    if not path.is_file():
        raise ValueError(f"no such file {path}; expected a .parquet file")
    try:
        with parquet.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        check_declared(path, _declared(metadata), path.stat().st_size, "write it without compression and dictionaries")
        texts = [field.name for field in schema if _is_text(pyarrow.types, field.type)]
        with parquet.ParquetFile(path, read_dictionary=texts) as file:
            table = file.read()
        return {name: _column(path, name, table.column(place)) for place, name in enumerate(_names(path, schema))}
    except ValueError as error:
        if type(error) is ValueError:
            raise
        raise ValueError(f"{path}: not a readable .parquet file ({_line(error)})") from error
    except Exception as error:  # the library raises many kinds on damaged bytes
        raise ValueError(f"{path}: not a readable .parquet file ({_line(error)})") from error


def _declared(metadata: Any) -> int:
    groups = (metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups))
    return int(max(sum(groups), metadata.num_rows * metadata.num_columns * _CELL_BYTES))


def _names(path: Path, schema: Any) -> list[str]:
    names = list(schema.names)
    if len(set(names)) != len(names):
        raise ValueError(f"{path}: two columns have one name; rename them")
    return names


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
