"""The teacher-logit store: what stage one leaves behind and all that stage two needs besides the data.

Format and engine need numpy and zarr, never torch. `README.md` beside this file is the format.

    format/   what a store may hold: arrays, documents, layout of files; with files.py, folders.py,
              locks.py and waiting.py
    read/     opening, checked rows, verifying
    write/    creating, cells, stores out of stores
    share/    elsewhere: zip files, web servers, buckets

Each may import what stands before it. `share` is imported when it is asked for: it brings clients of the network.
"""

from typing import TYPE_CHECKING, Any

from logitbank.stores.format.schema import FORMAT, VERSION, Cell, RowArray, StoreError
from logitbank.stores.read.reader import Store, open_store
from logitbank.stores.read.teacher import Teacher
from logitbank.stores.read.verify import Problem, verify_store
from logitbank.stores.write.create import create_store
from logitbank.stores.write.writer import TeacherWriter

if TYPE_CHECKING:
    from logitbank.stores.share.cache import local_store
    from logitbank.stores.share.copy import copy_store

__all__ = [
    "FORMAT",
    "VERSION",
    "Cell",
    "Problem",
    "RowArray",
    "Store",
    "StoreError",
    "Teacher",
    "TeacherWriter",
    "copy_store",
    "create_store",
    "local_store",
    "open_store",
    "verify_store",
]


def __getattr__(name: str) -> Any:
    if name == "copy_store":
        from logitbank.stores.share.copy import copy_store

        return copy_store
    if name == "local_store":
        from logitbank.stores.share.cache import local_store

        return local_store
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
