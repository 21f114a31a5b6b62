"""Opens an export of any format."""

from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.exchange.document import Description
from logitbank.pipeline.exchange.npz import NpzExport
from logitbank.pipeline.exchange.parquet import ParquetExport
from logitbank.pipeline.exchange.tar_reader import TarExport


class Export(Protocol):
    """An export that was checked on opening; rows are read when they are asked for."""

    path: Path
    description: Description
    keys: npt.NDArray[np.uint64]
    labels: npt.NDArray[np.int32]
    folds: npt.NDArray[np.uint16] | None
    served: npt.NDArray[np.bool_]  # [N], True where every view has an answer

    def rows(self, view: int, rows: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.generic]]:
        """The natural values of some rows of a view, arrays [len(rows), *row_shape] by name."""
        ...


def open_export(path: Path) -> Export:
    """Opens an export by its ending: .npz, .parquet, .tar, or a folder of .tar shards.

    Raises:
        ValueError: No export, damaged, or of another version; in one line.
    """
    if path.is_dir():
        if (path / "zarr.json").exists():
            raise ValueError(f"{path} is a store already, and needs no import; see copy, subset and merge")
        return TarExport(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected an export: .npz, .parquet, .tar or a folder of .tar files")
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] == b"\x80" or path.suffix in (".pt", ".pth", ".pkl", ".pickle") or path.name.endswith(".pth.tar"):
        raise ValueError(
            f"{path}: looks like a pickle, and nothing is unpickled here: it could run any code on opening"
        )
    readers: dict[str, type[NpzExport] | type[ParquetExport] | type[TarExport]] = {
        ".npz": NpzExport,
        ".parquet": ParquetExport,
        ".tar": TarExport,
    }
    if path.suffix not in readers:
        raise ValueError(f"{path}: unknown ending {path.suffix!r}; expected an export: .npz, .parquet or .tar")
    return readers[path.suffix](path)
