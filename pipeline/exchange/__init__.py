"""A store's answers for people without Zarr: .npz, .parquet and tar files of plain numbers, and their readers.

`docs/how-to/exchange.md` says what is in them.
"""

from logitbank.pipeline.exchange.document import Description
from logitbank.pipeline.exchange.read import Export, open_export
from logitbank.pipeline.exchange.write import FORMATS, choose_format, export_store

__all__ = ["FORMATS", "Description", "Export", "choose_format", "export_store", "open_export"]
