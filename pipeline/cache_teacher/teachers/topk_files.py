"""Two arrays of somebody's file: log-probabilities and class ids of the best classes of each answer.

    .npz            [P, K] or [N, L, K], as np.savez writes them; read through a memory map
    .safetensors    likewise, bfloat16 too
    .parquet        columns of lists, or of lists of lists; rows may have fewer entries than others

A file is a stranger's: nothing is unpickled, and what it declares is compared with the data before anything of that
size is made. A table is copied to a temporary file once, a few thousand rows at a time.

Shapes: N examples, L positions, P = N L answers, K entries of an answer.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from logitbank.pipeline.exchange.npz import mapped_arrays
from logitbank.pipeline.exchange.parquet import import_pyarrow
from logitbank.pipeline.spelling import unknown

NAMES = (
    ("values", "indices"),  # torch.topk
    ("logprobs", "logprob_token_ids"),  # TRL's server of vLLM
    ("logprobs", "token_ids"),  # vLLM's FlatLogprobs
    ("target_logprobs", "target_token_ids"),  # axolotl
    ("log_prob", "index"),  # this program's exports
)
"""Names of the two arrays, tried in this order where none are given."""
MAX_ENTRIES = 4096
"""Entries of an answer; more is no head."""
_COPIED_ROWS = 4096


@dataclass(frozen=True)
class Heads:
    """What a file says of each answer.

    Attributes:
        values: Floats [P, K]; an array or a tensor.
        indices: Whole numbers [P, K]; likewise.
        num_positions: L of a file of [N, L, K], else None.
        precision: The dtype of the values, such as "bfloat16".
        epsilon: Twice its relative rounding.
        last_id: The largest number that the file's own type of ids can hold.
    """

    values: Any
    indices: Any
    num_positions: int | None
    precision: str
    epsilon: float
    last_id: int

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_entries(self) -> int:
        """K."""
        return int(self.values.shape[1])

    def read(self, answers: "npt.NDArray[np.integer] | slice") -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
        """Values and ids of some answers, each [R, K]."""
        if isinstance(self.values, torch.Tensor):
            chosen: Any = answers if isinstance(answers, slice) else torch.from_numpy(answers.astype(np.int64))
            return self.values[chosen].double().numpy(), self.indices[chosen].long().numpy()
        return self.values[answers].astype(np.float64), self.indices[answers].astype(np.int64)


def open_heads(path: Path, names: tuple[str, str] | None, num_examples: int) -> Heads:
    """The two arrays of a file.

    Args:
        path: .npz, .safetensors or .parquet.
        names: Of the values and of the ids; None to look for `NAMES`.
        num_examples: N of the data.

    Raises:
        ValueError: Not readable, arrays missing, of other shapes or types, or pyarrow is not installed.
    """
    readers = {".npz": _npz, ".safetensors": _safetensors, ".parquet": _parquet}
    if path.suffix not in readers:
        raise ValueError(f"{path}: {unknown('ending', path.suffix, readers)}")
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    return readers[path.suffix](path, names, num_examples)


def _npz(path: Path, names: tuple[str, str] | None, num_examples: int) -> Heads:
    arrays = mapped_arrays(path)
    values, indices = (arrays[name] for name in _find(path, names, list(arrays)))
    if values.dtype.kind != "f" or indices.dtype.kind not in "iu":
        raise ValueError(f"{path}: found {values.dtype} and {indices.dtype}, expected floats and whole numbers")
    eps, last_id = float(np.finfo(values.dtype.name).eps), int(np.iinfo(indices.dtype.name).max)
    return _heads(path, values, indices, num_examples, values.dtype.name, eps, last_id)


def _safetensors(path: Path, names: tuple[str, str] | None, num_examples: int) -> Heads:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            found = _find(path, names, list(file.keys()))
            for name in found:  # of the header alone
                _shape(path, tuple(file.get_slice(name).get_shape()), num_examples)
            values, indices = (file.get_tensor(name) for name in found)  # mapped
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a readable .safetensors file ({error}); fetch it again") from error
    if not values.is_floating_point() or indices.is_floating_point() or indices.is_complex():
        raise ValueError(f"{path}: found {values.dtype} and {indices.dtype}, expected floats and whole numbers")
    precision = str(values.dtype).removeprefix("torch.")
    eps = float(torch.finfo(values.dtype).eps)
    last_id = 1 if indices.dtype == torch.bool else torch.iinfo(indices.dtype).max
    return _heads(path, values, indices, num_examples, precision, eps, last_id)


def _find(path: Path, names: tuple[str, str] | None, there: list[str]) -> tuple[str, str]:
    """Which two names to read."""
    for pair in NAMES if names is None else (names,):
        if set(pair) <= set(there):
            return pair
    shown = ", ".join(name[:40] for name in there[:10]) or "nothing"
    wanted = " and ".join(names or NAMES[0])
    raise ValueError(f"{path}: holds {shown}; expected {wanted}, or say topk:FILE?values=NAME&indices=NAME")


def _shape(path: Path, shape: tuple[int, ...], num_examples: int) -> None:
    if len(shape) not in (2, 3) or shape[0] != num_examples or not 1 <= shape[-1] <= MAX_ENTRIES or 0 in shape:
        length, rest = divmod(shape[0], num_examples) if len(shape) == 2 else (0, 1)
        flat = f"; if its rows are positions, reshape({num_examples}, {length}, -1)" if length > 1 and not rest else ""
        raise ValueError(
            f"{path}: found {list(shape)}, expected [{num_examples} examples, K] or [{num_examples}, positions, K] in"
            f" the data's order, K at most {MAX_ENTRIES}{flat}"
        )


def _heads(
    path: Path, values: Any, indices: Any, num_examples: int, precision: str, epsilon: float, last_id: int
) -> Heads:
    if tuple(values.shape) != tuple(indices.shape):
        raise ValueError(
            f"{path}: values are {list(values.shape)} and indices {list(indices.shape)}; expected one shape"
        )
    _shape(path, tuple(values.shape), num_examples)
    num_positions = int(values.shape[1]) if values.ndim == 3 else None
    flat = (-1, values.shape[-1])
    return Heads(values.reshape(flat), indices.reshape(flat), num_positions, precision, epsilon, last_id)


def _parquet(path: Path, names: tuple[str, str] | None, num_examples: int) -> Heads:
    pyarrow = import_pyarrow()
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            found = _find(path, names, file.schema_arrow.names)
            rows = file.metadata.num_rows
            if rows != num_examples:
                raise ValueError(f"{path}: has {rows} rows, expected the data's {num_examples} examples, in its order")
            dtype, last_id, shape = _measure(path, file, found, num_examples)
            copied = _copy(path, file, found, dtype, shape)
            return _heads(path, *copied, num_examples, dtype.name, float(np.finfo(dtype).eps), last_id)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"{path}: not a readable .parquet file ({reason}); fetch it again") from error


def _measure(
    path: Path, file: Any, names: tuple[str, str], num_examples: int
) -> tuple[np.dtype[np.floating], int, tuple[int, ...]]:
    """The values' dtype, the largest id that the ids' has, and [N, K] or [N, L, K] with K of the longest list."""
    most, dtype, last_id, lengths = 0, np.dtype(np.float32), 0, set[int]()
    for values, indices in _batches(path, file, names):
        if values.numbers.dtype.kind != "f" or indices.numbers.dtype.kind not in "iu":
            kinds = f"{values.numbers.dtype} and {indices.numbers.dtype}"
            raise ValueError(f"{path}: found lists of {kinds}, expected floats and whole numbers without null")
        if not np.array_equal(values.sizes, indices.sizes) or values.outer != indices.outer:
            raise ValueError(f"{path}: {names[0]} and {names[1]} have lists of other lengths; expected the same")
        most, dtype = max(most, int(values.sizes.max(initial=0))), values.numbers.dtype
        last_id = int(np.iinfo(indices.numbers.dtype).max)
        lengths |= values.outer
    if len(lengths) > 1:
        raise ValueError(
            f"{path}: rows have {min(lengths)} to {max(lengths)} positions; expected as many in each: pad with [] lists"
            " where the data have no position either, and save what is missing elsewhere"
        )
    shape = (num_examples, *lengths, most)
    _shape(path, shape, num_examples)
    return dtype, last_id, shape


def _copy(
    path: Path, file: Any, names: tuple[str, str], dtype: np.dtype[np.floating], shape: tuple[int, ...]
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Both columns as arrays of a temporary file; what a list lacks is -inf and -1."""
    values, indices = _on_disk(dtype, shape), _on_disk(np.dtype(np.int64), shape)
    flat_values, flat_indices = values.reshape(-1, shape[-1]), indices.reshape(-1, shape[-1])
    start = 0
    for some_values, some_indices in _batches(path, file, names):
        there = np.arange(shape[-1]) < some_values.sizes[:, None]
        own = slice(start, start + len(there))
        for target, column, absent in ((flat_values, some_values, -np.inf), (flat_indices, some_indices, -1)):
            part = np.full(there.shape, absent, target.dtype)
            part[there] = column.numbers
            target[own] = part
        start += len(there)
    return values, indices


def _on_disk(dtype: np.dtype[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """An array of a file that nobody else sees and that goes with it."""
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, dtype, "w+", shape=shape)


@dataclass(frozen=True)
class _Lists:
    """A part of a column: all numbers, how many each answer has, and how many answers a row has ({} or one number)."""

    numbers: npt.NDArray[Any]
    sizes: npt.NDArray[np.int64]
    outer: set[int]


def _batches(path: Path, file: Any, names: tuple[str, str]) -> Iterator[tuple[_Lists, _Lists]]:
    for batch in file.iter_batches(_COPIED_ROWS, columns=list(names)):
        values, indices = (_lists(path, name, batch.column(name)) for name in names)
        yield values, indices


def _lists(path: Path, name: str, column: Any) -> _Lists:
    import pyarrow.compute

    types = pyarrow.types
    outer: set[int] = set()
    sizes = np.ones(0, np.int64)
    for depth in range(3):
        if not (
            types.is_list(column.type) or types.is_large_list(column.type) or types.is_fixed_size_list(column.type)
        ):
            break
        if column.null_count or depth == 2:
            raise ValueError(
                f"{path}: {name} has null or lists too deep; expected lists, or lists of lists, of numbers"
            )
        if depth:
            outer = {int(size) for size in np.unique(sizes)}
        sizes = pyarrow.compute.list_value_length(column).to_numpy(zero_copy_only=False).astype(np.int64)
        column = column.flatten()
    if column.null_count or not (types.is_integer(column.type) or types.is_floating(column.type)):
        raise ValueError(f"{path}: {name} has lists of {column.type} or null; expected numbers")
    return _Lists(column.to_numpy(zero_copy_only=False), sizes, outer)
