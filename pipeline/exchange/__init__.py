"""A store's answers for people without Zarr: .npz, .parquet and tar files of plain numbers.

`docs/how-to/exchange.md` says what is in them. An .npz export becomes a store again; the others are for other tools.
"""

from logitbank.pipeline.exchange.read import open_export
from logitbank.pipeline.exchange.write import FORMATS, choose_format, export_store

__all__ = ["FORMATS", "choose_format", "export_store", "open_export"]
