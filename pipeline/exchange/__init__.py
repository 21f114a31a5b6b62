"""A store's answers for people without Zarr: .npz, .parquet and tar files of plain numbers.

    values, document, decode    what is said, in which words; one view as a dense array
    write, npz, parquet, tar    out
    read                        in

`docs/how-to/exchange.md` says what is in them. An .npz export becomes a store again; the others are for other tools.
"""

from logitbank.pipeline.exchange.read import open_export
from logitbank.pipeline.exchange.write import FORMATS, choose_format, export_store

__all__ = ["FORMATS", "choose_format", "export_store", "open_export"]
