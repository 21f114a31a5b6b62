"""The teacher-logit store: what stage one leaves behind and all that stage two needs besides the data.

Format and engine need numpy and zarr, never torch. `README.md` beside this file is the format.
"""

from stores.cache import local_store
from stores.create import create_store
from stores.reader import Store, open_store
from stores.schema import FORMAT, VERSION, Cell, RowArray, StoreError
from stores.share import copy_store
from stores.teacher import Teacher
from stores.verify import Problem, verify_store
from stores.writer import TeacherWriter

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
