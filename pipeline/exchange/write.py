"""Writes a store's answers for people without Zarr."""

import contextlib
import tarfile
from collections.abc import Callable
from pathlib import Path

from logitbank.pipeline.exchange import parquet, tar
from logitbank.pipeline.exchange.document import describe
from logitbank.pipeline.exchange.npz import NpzExport, write_npz
from logitbank.pipeline.exchange.values import Values
from logitbank.pipeline.spelling import unknown
from logitbank.stores import open_store
from logitbank.stores.write.building import build

FORMATS = {".npz": "npz", ".parquet": "parquet", ".tar": "webdataset"}


def choose_format(out: Path, wanted: str = "") -> str:
    """``npz``, ``parquet`` or ``webdataset``, by name or else by the ending of ``out``.

    Raises:
        ValueError: Unknown, or a name that contradicts the ending.
    """
    if wanted and wanted not in FORMATS.values():
        raise ValueError(unknown("format", wanted, FORMATS.values()))
    by_ending = FORMATS.get(out.suffix, "")
    if not wanted and not by_ending:
        raise ValueError(
            f"{out}: its ending names no format; pass --format npz or parquet, or --format webdataset for a folder"
            " of tar files"
        )
    is_folder = wanted == "webdataset" and not by_ending
    if wanted and by_ending != wanted and not is_folder:
        endings = {name: ending for ending, name in FORMATS.items()}
        raise ValueError(f"{out}: --format {wanted} writes {endings[wanted]} files; choose another name")
    return wanted or by_ending


def export_store(
    path: Path,
    out: Path,
    *,
    to: str = "",
    teacher: str | None = None,
    num_views: int | None = None,
    dense: bool = False,
    on_rows: Callable[[int], None] | None = None,
) -> tuple[Values, bool]:
    """Writes one teacher of a store as .npz, .parquet, .tar or a folder of .tar shards, block by block.

    The export appears when it is whole.

    Args:
        path: A finished store on this machine.
        out: The file or folder; this very export may be there already.
        to: ``npz``, ``parquet`` or ``webdataset``; "" looks at the ending. A webdataset without the ending .tar is a
            folder of shards.
        teacher: Which teacher (default: the only one).
        num_views: The first views only.
        dense: All classes, also where the store holds the top K and predicts the others.
        on_rows: Called with the number of rows of each chunk that was decoded.

    Returns:
        What was written, and whether it was: False when it was there already.

    Raises:
        ValueError: ``out`` is something else, or something asked for is not in the store.
    """
    to = choose_format(out, to)
    if to == "parquet":
        parquet.import_pyarrow()
    store = open_store(path)
    if store.positions is not None and to != "npz":
        raise ValueError(
            f"{to} holds one answer an example, {path} has {store.positions}; export to .npz, or write"
            " log-probabilities with cli decode --out FILE.npy"
        )
    values = Values(store, teacher, num_views=num_views, dense=dense, on_rows=on_rows)
    document = describe(
        store,
        values.teacher,
        values.arrays,
        num_views=values.num_views,
        tail="predicted" if values.predicts else "",
    )
    folder = to == "webdataset" and out.suffix != ".tar"
    write = {
        "npz": write_npz,
        "parquet": parquet.write_parquet,
        "webdataset": tar.write_shards if folder else tar.write_tar,
    }[to]

    def make(built: Path) -> None:
        if folder:
            built.mkdir()
        write(values, document, built)

    def same(there: Path) -> bool:
        with contextlib.suppress(ValueError, OSError, tarfile.TarError):
            return _document_of(there, to, store.num_examples) == document
        return False

    return values, build(out, make, same=same)


def _document_of(path: Path, to: str, num_examples: int) -> str:
    """The document of an export that is there already."""
    if to == "npz":
        return NpzExport(path).description.text
    if to == "parquet":
        return parquet.document_of(path)
    return tar.document_of(sorted(path.glob("*.tar")) if path.is_dir() else [path], num_examples)
