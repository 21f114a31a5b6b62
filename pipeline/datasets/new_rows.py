"""Examples that a trained model is asked about: no labels are needed, and only a part of them is in memory.

Rows of a table are read as the training rows were: columns by name, whatever their order, scaled by the training rows'
numbers; other columns are passed over.

Shapes: N rows, H x W x C pixels, D features.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.datasets.columns import Columns, Feature
from logitbank.pipeline.datasets.csv_file import DECIMALS, csv_parts, read_form
from logitbank.pipeline.datasets.image_tree import all_pictures
from logitbank.pipeline.datasets.new_values import NewValues
from logitbank.pipeline.datasets.npz import load_npz_rows
from logitbank.pipeline.datasets.originals import Originals
from logitbank.pipeline.datasets.parquet_file import parquet_parts
from logitbank.pipeline.datasets.parquet_pictures import picture_column
from logitbank.pipeline.datasets.picture_files import read_pictures
from logitbank.pipeline.datasets.spec import check_options, parse, read_flag, read_one, shown

PART_BYTES = 2**24  # of the samples of a part
MAX_ROWS = 4096

Options = Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a model reads.

    Attributes:
        input_shape: (H, W, C) of images, or (D,) of table rows.
        originals: Pictures of any sizes, which it resizes itself.
        features: How the columns of a table become the D features; empty for arrays.
    """

    input_shape: tuple[int, ...]
    originals: bool
    features: tuple[Feature, ...]

    @property
    def part_rows(self) -> int:
        """Rows of a part."""
        width = int(np.prod(self.input_shape))
        return max(1, min(MAX_ROWS, PART_BYTES // (width if len(self.input_shape) == 3 else 4 * width)))

    def check(self, samples: Any, source: str) -> None:
        """Raises ValueError when the samples, as those of a ``Split``, are not what the model reads."""
        shape, found = self.input_shape, tuple(samples.shape[1:])
        if self.originals and len(found) == 3 and found[-1] == 3:
            return
        if self.features:
            raise ValueError(f"{source} holds arrays; the model reads columns by name: give csv:FILE or parquet:FILE")
        if isinstance(samples, Originals) or found != shape:
            held = "pictures of any sizes" if isinstance(samples, Originals) else _sizes(found)
            wanted = "pictures of any sizes" if self.originals else _sizes(shape)
            more = f"; pass size={shape[0]}" if isinstance(samples, Originals) and shape[:2] == (shape[0],) * 2 else ""
            raise ValueError(f"{source} holds {held}; the model reads {wanted}{more}")


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some examples in their order: samples as those of a ``Split``, and the files of pictures that have their own."""

    samples: Any
    files: Sequence[str] = ()


def new_rows(spec: str, reads: Reads) -> Iterator[Part]:
    """All examples of a data spec in their order, part by part.

    ``csv:FILE`` and ``parquet:FILE`` give every row of the file, ``imagefolder:DIR`` every picture below the folder,
    ``npz:FILE`` the array x (x_test with split=test); other sources what ``load_split`` gives, whose labels do not
    count.

    Raises:
        ValueError: Unknown source, or examples that the model cannot read.
    """
    kind, name, options = parse(spec)
    if kind in _READERS and name and not (kind == "parquet" and picture_column(name)):
        return _READERS[kind](spec, name, options, reads)
    return _cut(load_split(spec).samples, reads, spec)


def encode_rows(columns: Columns, features: Sequence[Feature], source: str) -> npt.NDArray[np.float32]:
    """Rows of a table as a model reads them, float32 [N, D].

    Raises:
        ValueError: A column is missing, or holds texts where the training rows had numbers.
    """
    missing = [feature.name for feature in features if feature.name not in columns]
    if missing:
        columns_are = "a column" if len(missing) == 1 else f"{len(missing)} columns"
        raise ValueError(f"{source}: lacks {columns_are} that the model reads: {shown(missing)}; name them so")
    try:
        encoded = [feature.encode(columns[feature.name]) for feature in features]
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from error
    return np.ascontiguousarray(np.concatenate(encoded, axis=1))


def _csv(spec: str, path: str, options: Options, reads: Reads) -> Iterator[Part]:
    check_options(spec, options, ("header", "skip", "sep", "comment", "decimal", "encoding"))
    given = {"header": "1", "skip": "0", "sep": ",", "comment": "", "encoding": "utf-8-sig", **options}
    decimal = given.pop("decimal", "")
    form = read_form(spec, **given)
    if decimal:
        read_one(spec, "decimal", decimal, DECIMALS)
    features = _columns_read(reads, spec, decimal)
    yield from _encoded(csv_parts(Path(path), form, reads.part_rows), features, spec)


def _parquet(spec: str, path: str, options: Options, reads: Reads) -> Iterator[Part]:
    check_options(spec, options, ())
    features = _columns_read(reads, spec, ".")
    wanted = [feature.name for feature in features]
    yield from _encoded(parquet_parts(Path(path), wanted, reads.part_rows), features, spec)


def _encoded(parts: Iterator[Columns], features: Sequence[Feature], spec: str) -> Iterator[Part]:
    first, values = 0, NewValues(features)
    for columns in parts:
        samples = encode_rows(columns, features, f"{spec}, rows from {first}" if first else spec)
        values.count(columns)
        yield Part(samples=samples)
        first += len(samples)
    values.tell(spec)


def _columns_read(reads: Reads, spec: str, decimal: str) -> list[Feature]:
    """The features, for a file with this decimal mark; empty: that of the training rows."""
    if not reads.features:
        raise ValueError(f"{spec} is a table with columns; the model reads {_sizes(reads.input_shape)}: give npz:FILE")
    return [replace(feature, decimal=decimal or feature.decimal) for feature in reads.features]


def _pictures(spec: str, path: str, options: Options, reads: Reads) -> Iterator[Part]:
    check_options(spec, options, ("upright",))
    height, width, channels = reads.input_shape if len(reads.input_shape) == 3 else (0, 0, 0)
    if channels != 3 or not (reads.originals or height == width):
        raise ValueError(f"{spec} holds pictures; the model reads {_sizes(reads.input_shape)}: give npz:FILE")
    files = all_pictures(Path(path), spec)
    upright = read_flag(spec, "upright", options.get("upright", "0"))
    samples, _ = read_pictures(files, spec, size=0 if reads.originals else height, upright=upright)
    return _cut(samples, reads, spec, [str(file.relative_to(path)) for file in files])


def _npz(spec: str, path: str, options: Options, reads: Reads) -> Iterator[Part]:
    check_options(spec, options, ("split",))
    return _cut(load_npz_rows(path, **options), reads, spec)


_READERS: dict[str, Callable[[str, str, Options, Reads], Iterator[Part]]] = {
    "csv": _csv,
    "parquet": _parquet,
    "imagefolder": _pictures,
    "npz": _npz,
}


def _cut(samples: Any, reads: Reads, spec: str, files: Sequence[str] = ()) -> Iterator[Part]:
    reads.check(samples, spec)
    for start in range(0, len(samples), reads.part_rows):
        rows = np.arange(start, min(start + reads.part_rows, len(samples)))
        chosen = getattr(samples, "subset", samples.__getitem__)(rows)
        yield Part(samples=chosen, files=files[start : rows[-1] + 1])


def _sizes(shape: Sequence[int]) -> str:
    return f"arrays of {' x '.join(map(str, shape))}"
