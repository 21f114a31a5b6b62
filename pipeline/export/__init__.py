"""A store's answers for people without Zarr: .npz, .parquet and tar files of plain numbers, and their readers.

`docs/exchange.md` says what is in them.
"""

from pipeline.export.document import Description
from pipeline.export.read import Export, open_export
from pipeline.export.write import FORMATS, choose_format, export_store

__all__ = ["FORMATS", "Description", "Export", "choose_format", "export_store", "open_export"]
