"""What a store may hold: every array with its dimensions, dtypes, unit and meaning.

The tables here are the format; `stores/README.md` says the same in sentences and a test compares the two.
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

FORMAT = "teacher-logit-store"
VERSION = 2
VERSIONS = (1, VERSION)  # that are read; a store is written in the newest unless it goes on with an older one
# attributes of a root that the format itself writes
RESERVED = (
    "format",
    "version",
    "dataset",
    "views",
    "created",
    "documents",
    "digest",
)

MAX_EXAMPLES = 2**40
MAX_VIEWS = 2**20
MAX_CELLS = 2**24
MAX_CLASSES = 2**31
MAX_POSITIONS = 2**20
MAX_BLOCK_BYTES = 2**30  # of one array, decoded
MAX_BLOCK_ROWS = 131_072
CELLS_A_WRITER = 4  # that a new teacher is cut into at least
MOST_WRITERS = 1024  # that blocks are cut for: each cell costs files

# A head of 8 bits: code c is a step of GAP_SCALE (exp(GAP_RATE c) - 1) nats in multiples of 1 / GAP_GRID; GAP_NEVER is
# down to -inf.
GAP_SCALE = 0.2
GAP_RATE = 0.07
GAP_GRID = 1024.0
GAP_NEVER = 255

FLOATS = ("float16", "float32")
IDS = ("uint8", "uint16", "uint32")
STATIC_DTYPES = (
    *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "float32", "float64"),
)


class StoreError(ValueError):
    """A store that cannot be used as asked: what was expected, what was found, what to do, in one line.

    Args:
        message: The line.
        array: Path of the array in the store whose own metadata is at fault, when it is one.
    """

    def __init__(self, message: str, *, array: str | None = None) -> None:
        super().__init__("".join(c if c.isprintable() else " " for c in message))
        self.array = array


class Cell(NamedTuple):
    """The rows that are written and committed together: one block of one view."""

    view: int
    block: int


@dataclass(frozen=True, kw_only=True)
class RowArray:
    """Dtype and shape per row of one array [V, N, *row_shape] of a teacher; of L positions the shape begins with L."""

    dtype: str
    row_shape: tuple[int, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one decoded row."""
        return int(np.dtype(self.dtype).itemsize) * int(np.prod(self.row_shape, dtype=object))

    def at(self, positions: int | None) -> "RowArray":
        """The same of each of L positions of an example; None: of the example."""
        return self if positions is None else RowArray(dtype=self.dtype, row_shape=(positions, *self.row_shape))


@dataclass(frozen=True, kw_only=True)
class ArraySpec:
    """One line of the format: what an array of this name holds.

    `row_dims` are the dimensions after (view, example), and after position where examples have positions. "answer" is
    "kept" in a store with `index` and "class" in a dense one. `shuffle` and `level` are what compressed real answers
    best at a good speed; a reader takes any. `finite`: neither NaN nor infinite. `since`: the first version of the
    format that has it.
    """

    row_dims: tuple[str, ...]
    dtypes: tuple[str, ...]
    unit: str
    doc: str
    shuffle: str = "shuffle"
    level: int = 1
    finite: bool = False
    since: int = 1


ROW_ARRAYS: dict[str, ArraySpec] = {
    "index": ArraySpec(
        row_dims=("kept",), dtypes=IDS, unit="class id", shuffle="bitshuffle", doc="kept classes, best first"
    ),
    "log_prob": ArraySpec(
        row_dims=("answer",),
        dtypes=FLOATS,
        unit="nat",
        level=5,
        doc="natural log-probability at temperature 1 over all classes",
    ),
    "log_prob_code": ArraySpec(
        row_dims=("answer",),
        dtypes=("uint8",),
        unit="code",
        doc="log-probability: with log_prob_floor, floor + code * log_prob_scale; else gaps of a sorted head",
    ),
    "log_prob_scale": ArraySpec(
        row_dims=(), dtypes=FLOATS, unit="nat", shuffle="bitshuffle", doc="step of log_prob_code", finite=True
    ),
    "log_prob_floor": ArraySpec(
        row_dims=(), dtypes=FLOATS, unit="nat", shuffle="bitshuffle", doc="value of log_prob_code 0", finite=True
    ),
    "logit": ArraySpec(row_dims=("class",), dtypes=FLOATS, unit="raw logit", doc="the teacher's raw logits"),
    "logsumexp": ArraySpec(
        row_dims=(),
        dtypes=("float32",),
        unit="raw logit",
        shuffle="bitshuffle",
        doc="logsumexp of the raw logits of all classes; log-probability + logsumexp = raw logit",
        finite=True,
    ),
    "log_tail_mass": ArraySpec(
        row_dims=(),
        dtypes=FLOATS,
        unit="nat",
        shuffle="bitshuffle",
        doc="natural log of the probability at temperature 1 of all classes that index does not name",
    ),
    "label_log_prob": ArraySpec(
        row_dims=(), dtypes=FLOATS, unit="nat", doc="log-probability of the label, named by index or not"
    ),
    "label_rank": ArraySpec(
        row_dims=(),
        dtypes=IDS,
        unit="classes",
        doc="classes with logit >= the label's, its own included, counted before rounding; 0 = no label",
    ),
    "tail_code": ArraySpec(
        row_dims=("tail_byte",),
        dtypes=("uint8",),
        unit="packed bits",
        doc="what the teacher's tail constants leave over of the classes that index does not name",
    ),
    "tail_shift": ArraySpec(
        row_dims=(),
        dtypes=("float32",),
        unit="raw logit",
        doc="what the shape of a row's predicted tail is raised by; from version 2 on",
        since=2,
    ),
    "mask": ArraySpec(row_dims=(), dtypes=("bool",), unit="bool", doc="true where the teacher serves the row"),
    "embedding": ArraySpec(
        row_dims=("feature",), dtypes=FLOATS, unit="feature", doc="the teacher's penultimate features", finite=True
    ),
}

EXAMPLE_ARRAYS: dict[str, ArraySpec] = {
    "key": ArraySpec(row_dims=(), dtypes=("uint64",), unit="hash", doc="content id: hash of the example's raw bytes"),
    "label": ArraySpec(row_dims=(), dtypes=("int32",), unit="class id", doc="the dataset's label; -1 = none"),
    "fold": ArraySpec(
        row_dims=(),
        dtypes=("uint16",),
        unit="fold id",
        doc="the teacher of a row has seen no example of the row's fold",
    ),
    "group": ArraySpec(row_dims=(), dtypes=("uint64",), unit="group id", doc="examples of one group share a fold"),
}

CELL_ARRAYS: dict[str, ArraySpec] = {
    "checksum": ArraySpec(
        row_dims=("array",),
        dtypes=("uint32",),
        unit="crc32c",
        doc="crc32c of the decoded little-endian rows of each row array, by array name in sorted order",
    ),
    "committed": ArraySpec(
        row_dims=(),
        dtypes=("uint32",),
        unit="crc32c",
        doc="crc32c of the cell's little-endian checksums, written last; 0 = the cell is not there",
    ),
}

CONSTANTS: dict[str, str] = {
    "tail_matrix": "linear map from a row's head to the logits of its tail, per fold",
    "tail_factor": "second factor of tail_matrix when it is of low rank, per fold",
    "tail_bias": "what tail_matrix is added to, per fold",
    "tail_gauge": "how a row's head is centred and clipped before tail_matrix",
    "tail_basis": "directions in which the tail's residual is coded, per fold",
    "tail_scale": "size of the residual along each direction, per fold",
    "tail_width": "bits of the residual along each direction, per fold",
    "tail_levels": "values that the codes of tail_code stand for",
    "head_weight": "weight of the teacher's last layer on embedding, per fold: fold, class, feature",
    "head_bias": "bias of that layer, per fold: fold, class",
    "embedding_basis": "directions that all features were projected on, per fold: fold, all features, feature",
    "embedding_mean": "what the features had taken off before, per fold: fold, all features",
}

POSITION = "position"  # right after "example", where an example is answered at several; from version 2 on

PROBE = ArraySpec(row_dims=(), dtypes=STATIC_DTYPES, unit="hash", doc="evidence that a replayed view is the same")


def constant_spec(name: str) -> ArraySpec:
    """What a constant of this name holds; one that the format does not know is the encoding's affair."""
    doc = CONSTANTS.get(name, "constant of the encoding, the same for every row")
    return ArraySpec(row_dims=(), dtypes=STATIC_DTYPES, unit="see encoding", doc=doc)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")


def check_name(name: object, what: str) -> str:
    """Return `name` when it is safe as the name of one folder, else raise StoreError."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.endswith(".partial"):
        raise StoreError(
            f"{what} name must be 1 to 100 of A-Z a-z 0-9 . _ + - and start with a letter or digit, "
            f"found {str(name)[:100]!r}; choose another name"
        )
    return name


def safe_names(found: Any) -> list[str]:
    """The names of teachers among `found`, sorted; whatever else is there is left out."""
    names = set()
    for name in found if isinstance(found, Iterable) else ():
        with contextlib.suppress(StoreError):
            names.add(check_name(name, "teacher"))
    return sorted(names)


def check_row_arrays(
    arrays: Mapping[str, RowArray],
    *,
    num_classes: int,
    encoding: Mapping[str, object],
    positions: int | None = None,
    version: int = VERSION,
) -> None:
    """Raise StoreError unless arrays are known to a version, well-typed and agree with the encoding and each other."""
    if not arrays:
        raise StoreError("a teacher needs at least one array per row, found none; pass arrays")
    sizes: dict[str, tuple[int, str]] = {"class": (num_classes, "dataset.num_classes")}
    if positions is not None:
        sizes[POSITION] = (positions, "dataset.num_positions")
    top_k = encoding.get("top_k", 0)
    if isinstance(top_k, int) and top_k > 0:
        sizes["kept"] = (top_k, "encoding.top_k")
    for name, array in arrays.items():
        if name not in ROW_ARRAYS or ROW_ARRAYS[name].since > version:
            known = [known for known, spec in ROW_ARRAYS.items() if spec.since <= version]
            raise StoreError(f"array {name!r} is not in format version {version}; it knows {', '.join(known)}")
        spec = ROW_ARRAYS[name]
        if array.dtype not in spec.dtypes:
            raise StoreError(f"array {name} must be {' or '.join(spec.dtypes)}, found {array.dtype}")
        dims = row_dims(name, arrays, positions)
        if len(array.row_shape) != len(dims) or not all(
            isinstance(size, int) and 0 < size <= MAX_CLASSES for size in array.row_shape
        ):
            raise StoreError(f"array {name} must have row dimensions {list(dims)}, found shape {list(array.row_shape)}")
        for dim, size in zip(dims, array.row_shape, strict=True):
            expected, source = sizes.setdefault(dim, (size, f"array {name}"))
            if size != expected:
                raise StoreError(f"array {name} must have {expected} per {dim} as {source} says, found {size}")


def row_dims(name: str, arrays: Mapping[str, RowArray], positions: int | None = None) -> tuple[str, ...]:
    """Dimension names of one row of array `name` in a teacher that holds `arrays`, about examples of so many positions.

    A row is one example's: its answers at all positions.
    """
    answer = "kept" if "index" in arrays else "class"
    dims = tuple(answer if dim == "answer" else dim for dim in ROW_ARRAYS[name].row_dims)
    return dims if positions is None else (POSITION, *dims)


def default_block_rows(
    num_examples: int,
    arrays: Mapping[str, RowArray],
    *,
    positions: int | None = None,
    num_views: int = 1,
    num_writers: int = 1,
) -> int:
    """Rows of a block: a sixteenth of the examples, or fewer where many write; within bounds of answers and of bytes.

    Every writer has some cells to take, so that none waits long for the last one. Four writers a view get the
    blocks that one gets: the bytes of most stores say nothing of how many wrote them.
    """
    length = positions or 1  # answers of a row: a block's size is counted in answers, whatever they are answers to
    step = max(1, 256 // length)
    wanted = -(-min(num_writers, MOST_WRITERS) * CELLS_A_WRITER // num_views)
    if wanted > 16:
        rows = max(step, num_examples // wanted // step * step)
    else:
        rows = max(max(1, 1024 // length), -(-num_examples // 16 // step) * step)
    rows = min(rows, max(1, MAX_BLOCK_ROWS // length))
    widest = max(array.row_bytes for array in arrays.values())
    affordable = max(1, MAX_BLOCK_BYTES // 4 // widest)
    if affordable < rows:
        rows = affordable - affordable % step if affordable >= step else affordable
    return min(rows, num_examples)


def check_block_rows(block_rows: object, num_examples: int, num_views: int, arrays: Mapping[str, RowArray]) -> int:
    """Return `block_rows` when blocks of it fit the format's bounds, else raise StoreError."""
    if type(block_rows) is not int or not 1 <= block_rows <= min(num_examples, MAX_BLOCK_ROWS):
        raise StoreError(
            f"block_rows must be 1 to {min(num_examples, MAX_BLOCK_ROWS)}, found {block_rows}; leave it out"
        )
    cells = num_views * -(-num_examples // block_rows)
    if cells > MAX_CELLS:
        raise StoreError(f"a teacher must have at most {MAX_CELLS} cells, found {cells}; use more block_rows")
    for name, array in arrays.items():
        if block_rows * array.row_bytes > MAX_BLOCK_BYTES:
            raise StoreError(
                f"a block of array {name} must stay within {MAX_BLOCK_BYTES} bytes, found "
                f"{block_rows * array.row_bytes}; use fewer block_rows"
            )
    return block_rows
