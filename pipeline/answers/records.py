"""Several arrays per row as one array of records, so that a random row costs one look into memory."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Records = npt.NDArray[np.void]
Arrays = Mapping[str, npt.NDArray[np.generic]]


def record_dtype(arrays: Arrays) -> np.dtype[Any]:
    """Aligned dtype of a record with a row of each array as field, widest numbers first to waste nothing."""
    order = sorted(arrays, key=lambda name: -arrays[name].dtype.itemsize)
    return np.dtype([(name, arrays[name].dtype, arrays[name].shape[1:]) for name in order], align=True)


def fill_records(records: Records, arrays: Arrays) -> None:
    """Copies arrays [R, *row_shape], contiguous, into the fields of records [R] that have their names."""
    fields = records.view(_opaque_fields(records.dtype))
    for name, values in arrays.items():
        fields[name] = values.reshape(len(values), -1).view(fields.dtype[name])[:, 0]


def _opaque_fields(records: np.dtype[Any]) -> np.dtype[Any]:
    """The same records with each field as plain bytes: numpy copies those four times as fast."""
    fields: Mapping[str, Any] = records.fields or {}
    return np.dtype(
        {
            "names": list(fields),
            "formats": [f"V{field[0].itemsize}" for field in fields.values()],
            "offsets": [field[1] for field in fields.values()],
            "itemsize": records.itemsize,
        }
    )
