"""Pictures in .parquet files (the layout of the Hugging Face hub: a struct of bytes and path, and a label).

A row of such a file can be read only with the whole group of rows around it. So the encoded pictures are taken out
once, one behind another, into a file of the cache folder, from which any row is read alone.

Shapes: N rows.
"""

import io
import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from logitbank.pipeline.datasets.encoded import ON_ERROR, encoded_samples
from logitbank.pipeline.datasets.file_cache import bound, hold, make_room
from logitbank.pipeline.datasets.file_notes import Notes, notes_folder
from logitbank.pipeline.datasets.labels import place_labels, read_labels
from logitbank.pipeline.datasets.limits import check_declared
from logitbank.pipeline.datasets.patterns import find_files, matching
from logitbank.pipeline.datasets.picture_files import MAX_SIZE
from logitbank.pipeline.datasets.spec import check_split, read_one, read_whole, said, shown, spell, tell
from logitbank.pipeline.datasets.split import Split
from logitbank.stores.files import whole_file
from logitbank.stores.locks import locked

_ABOUT = "parquet pictures 1"
_BATCH = 64  # rows taken out at once


@dataclass(frozen=True)
class TakenOut:
    """Pictures that were taken out of tables; ``Blobs``.

    Attributes:
        paths: The tables.
        file: Where the pictures lie one behind another.
        starts: Where each begins, and where the last ends, uint64 [N + 1].
        labels: As the tables have them [N]; -1 or an empty text where there is none.
        names: Of the classes, where the tables name them.
        about: What was taken out.
    """

    paths: Sequence[Path]
    file: Path
    starts: npt.NDArray[np.uint64]
    labels: npt.NDArray[Any]
    names: tuple[str, ...]
    about: str

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, number: int) -> bytes:
        start, stop = map(int, self.starts[number : number + 2])
        try:
            with self.file.open("rb") as file:
                file.seek(start)
                data = file.read(stop - start)
        except OSError as error:
            raise ValueError(
                f"{self.file}: cannot be read ({error.strerror or error}); run the command again"
            ) from error
        if len(data) != stop - start:
            raise ValueError(f"{self.file}: is shorter than it was; remove it and run the command again")
        return data

    def name(self, number: int) -> str:
        return f"row {number} of {self.paths[0]}{' ...' if len(self.paths) > 1 else ''}"

    def notes(self, about: str) -> Notes | None:
        return Notes(self.paths, f"{self.about}, {about}")


def load_parquet_pictures(
    path: str,
    *,
    split: str,
    image: str,
    label: str,
    test: str,
    size: str,
    classes: str,
    first_label: str,
    on_error: str,
) -> Split:
    """Pictures of .parquet files, in the order of the files' names and of their rows.

    Args:
        path: A file, or a pattern such as ``train-*.parquet``.
        split: "train" or "test".
        image: Column of the pictures.
        label: Column of the class ids, or of their names; -1 or null is unlabelled.
        test: The files of the test split.
        size: For small trials: see ``load_image_folder``.
        classes: Number of classes, or a file of their names; see ``known_classes``.
        first_label: 1 when labels count from 1.
        on_error: ``stop`` refuses what is no picture by its header, or cut off, when the keys are made; what only the
            decoder sees stops the pass there, and names the picture. ``skip`` decodes every picture once now, and masks
            the rows of those that fail.

    Raises:
        ValueError: No such files or columns, or damaged ones.
    """
    options = {"image": image, "label": label, "test": test, "size": size, "classes": classes}
    given = said(
        {**options, "first_label": first_label, "on_error": on_error}, {"first_label": "0", "on_error": "stop"}
    )
    spec = spell("parquet", path, {"split": split, **given})
    check_split(spec, split)
    if split == "test" and not test:
        raise ValueError(f"{spec}: nothing says which files are the test split; pass test=PATTERN")
    read_one(spec, "on_error", on_error, ON_ERROR)
    pixels = read_whole(spec, "size", size, 1, MAX_SIZE, f"1 to {MAX_SIZE} pixels") if size else 0
    from_one = read_one(spec, "first_label", first_label, ("0", "1")) == "1"
    what = ".parquet files, such as train-*.parquet"
    found = [take_out(find_files(each, spec, what), image, label or "label", spec) for each in (path, test) if each]
    chosen = 1 if split == "test" else 0
    _same_names([(part.paths[0], part.names) for part in found], spec)
    parts = [read_labels(part.labels, f"{spec}: labels", from_one=from_one) for part in found]
    labels, num_classes, names = place_labels(parts, chosen, classes, spec, own=found[0].names)
    samples, readable = encoded_samples(found[chosen], pixels, spec, on_error)
    return Split(
        name=Path(path).name.partition("*")[0].removesuffix(".parquet").rstrip("-_.0123456789") or "pictures",
        split=split,
        spec=spec,
        samples=samples,
        labels=labels,
        num_classes=num_classes,
        class_names=names,
        readable=readable,
    )


def picture_column(pattern: str) -> str:
    """The column in which the first of some files holds pictures as the hub writes them; empty where there is none.

    Raises:
        ValueError: No readable .parquet file.
    """
    files = matching(pattern)
    kinds = _open(files[0])[1] if files else ()
    return next((field.name for field in kinds if str(field.type) == "struct<bytes: binary, path: string>"), "")


def take_out(paths: Sequence[Path], image: str, label: str, spec: str) -> TakenOut:
    """The pictures and labels of tables; they are taken out again only when a table has changed.

    Raises:
        ValueError: No such column, another kind of column, or a table that unpacks to far more than it holds.
    """
    about = f"{_ABOUT}, {image}, {label}"
    notes = Notes(paths, f"{about}, places")
    file = notes_folder() / f"{notes.name}.pictures"
    recalled = notes.recall()
    if recalled is not None and recalled[0].all() and file.is_file():
        with np.load(io.BytesIO(recalled[1]), allow_pickle=False) as known:
            hold(file)
            if int(known["starts"][-1]) == file.stat().st_size:
                return TakenOut(paths, file, known["starts"], known["labels"], tuple(known["names"].tolist()), about)
    declared = sum(_check(path, image, label, spec) for path in paths)
    kinds = {"string" in kind for kind in (str(_open(path)[1].field(label).type) for path in paths) if kind != "null"}
    if len(kinds) > 1:
        raise ValueError(f"{spec}: column {label!r} is text in some files and numbers in others; write one kind")
    names = _same_names([(path, _class_names(path, label)) for path in paths], spec)
    file.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(file.parent).free
    if declared > free:
        raise ValueError(
            f"{spec}: needs {declared / 1e9:.1f} GB in {file.parent}, found {free / 1e9:.1f} GB; set LOGITBANK_CACHE to"
            " a larger disk"
        )
    with locked(file.with_name("room")):
        make_room(file.parent, declared, bound())  # what no process uses goes first; this one is needed
    tell(f"{spec}: takes the pictures out once, {declared / 1e9:.3f} GB into {file.parent}")
    starts, labels = [0], list[Any]()
    with whole_file(file) as beside, beside.open("wb") as target:
        for data, value in _rows(paths, image, label, spec):
            target.write(data)
            starts.append(starts[-1] + len(data))
            labels.append(value)
    hold(file)
    absent = "" if any(isinstance(value, str) for value in labels) else -1
    array = np.array([absent if value is None else value for value in labels])
    out = TakenOut(paths, file, np.array(starts, np.uint64), array, names, about)
    payload = io.BytesIO()
    np.savez(payload, starts=out.starts, labels=out.labels, names=np.array(names, np.str_))
    notes.write(payload.getvalue())
    return out


def _rows(paths: Sequence[Path], image: str, label: str, spec: str) -> Iterator[tuple[bytes, Any]]:
    import pyarrow.parquet as parquet

    for path in paths:
        row = 0
        try:
            with parquet.ParquetFile(path) as file:
                for batch in file.iter_batches(_BATCH, columns=[image, label]):
                    pictures, labels = batch.column(image).to_pylist(), batch.column(label).to_pylist()
                    for picture, value in zip(pictures, labels, strict=True):
                        data = picture.get("bytes") if isinstance(picture, dict) else picture
                        if not isinstance(data, bytes):
                            raise ValueError(f"{spec}: row {row} of {path} holds no picture; remove it")
                        yield data, value
                        row += 1
        except OSError as error:  # as the library calls damaged bytes
            raise ValueError(f"{path}: not a readable .parquet file ({_line(error)}); fetch it again") from error


def _check(path: Path, image: str, label: str, spec: str) -> int:
    """Bytes that the pictures of a table unpack to, as it says, at most."""
    metadata, schema = _open(path)
    missing = [name for name in (image, label) if name not in schema.names]
    if missing:
        raise ValueError(f"{spec}: {path} has no column {missing[0]!r}; it has {', '.join(schema.names)[:200]}")
    declared = sum(metadata.row_group(place).total_byte_size for place in range(metadata.num_row_groups))
    check_declared(path, declared, path.stat().st_size, "write it without compression")
    return int(declared)


def _open(path: Path) -> tuple[Any, Any]:
    """Metadata and schema."""
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise ValueError("parquet: needs pyarrow; run `pip install logitbank[tables]`, or export to .csv") from error
    try:
        with parquet.ParquetFile(path) as file:
            return file.metadata, file.schema_arrow
    except Exception as error:  # the library raises many kinds on damaged bytes
        raise ValueError(f"{path}: not a readable .parquet file ({_line(error)})") from error


def _class_names(path: Path, label: str) -> tuple[str, ...]:
    """The names that the hub's library writes beside the schema."""
    try:
        said_ = json.loads((_open(path)[1].metadata or {})[b"huggingface"])
        names = said_["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


def _same_names(named: Sequence[tuple[Path, tuple[str, ...]]], spec: str) -> tuple[str, ...]:
    """The names of the classes that tables give their ids; those of a table that gives none are not known.

    Raises:
        ValueError: Tables give them other names, or another order.
    """
    known = [(path, names) for path, names in named if names]
    for path, names in known[1:]:
        if names != known[0][1]:
            raise ValueError(
                f"{spec}: {path} names its classes {shown(names, 3)}, but {known[0][0]} {shown(known[0][1], 3)}: one"
                " id would be two classes; write the files with the same names in one order"
            )
    return known[0][1] if known else ()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
