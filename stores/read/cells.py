"""What a teacher's group holds: its documents, and the checksums that commit a cell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from logitbank.stores.format.attributes import TEACHER, check_attributes
from logitbank.stores.format.documents import (
    Document,
    array_document,
    little_endian,
    raw_sha256,
    read_document,
    read_sealed,
)
from logitbank.stores.format.layout import Layout, block_layout, cell_layout
from logitbank.stores.format.schema import (
    CELL_ARRAYS,
    ROW_ARRAYS,
    RowArray,
    StoreError,
    row_dims,
)
from logitbank.stores.read.blocks import REMEDY, read_file

Fault = tuple[str, int | None, int | None, str]  # array, view, block, message


def checksum_value(rows: np.ndarray) -> int:
    """crc32c of the little-endian bytes of `rows`."""
    data = little_endian(rows).view(np.uint8)
    data.flags.writeable = False  # the extension takes nothing else
    return int(google_crc32c.value(data))


def commit_value(checksums: np.ndarray) -> int:
    """What `committed` holds for a cell with these checksums: their crc32c, never 0."""
    return checksum_value(checksums.astype("<u4")) or 1


def encoded(values: np.ndarray) -> bytes:
    """The file of one cell of `committed` or `checksum`: little-endian values, then their crc32c."""
    raw = little_endian(values.astype(np.uint32)).tobytes()
    return raw + int(google_crc32c.value(raw)).to_bytes(4, "little")


def read_cells(root: Path, folder: str, layout: Layout) -> tuple[np.ndarray, list[tuple[int, int, str]]]:
    """All cells of `committed` or `checksum`, 0 where there is no file.

    Only files that exist are visited: what a document declares costs nothing.

    Returns:
        Values, and the damaged cells with what is wrong.
    """
    values = np.zeros(layout.shape, dtype=np.uint32)
    problems = []
    for view in _numbers(root, root / folder / "c", layout.shape[0]):
        for block in _numbers(root, root / folder / "c" / str(view), layout.shape[1]):
            position = (view, block, *(0 for _ in layout.shape[2:]))
            try:
                read_file(root, folder, position, layout, values[view, block : block + 1])
            except StoreError as error:
                values[view, block] = 0
                problems.append((view, block, str(error)))
    return values, problems


def read_commits(
    where: Path, root: Path, layouts: Mapping[str, Layout], cells_sha256: object
) -> tuple[np.ndarray, np.ndarray, list[Fault]]:
    """The commits of a teacher.

    Args:
        where: Folder of the teacher.
        root: Folder of the store.
        layouts: Layouts of `committed` and `checksum`.
        cells_sha256: What a complete teacher says of its commits, else None.

    Returns:
        `committed` [V, blocks], `checksum` [V, blocks, arrays], and what is wrong with them.
    """
    folder = where.relative_to(root).as_posix()
    committed, damaged = read_cells(root, f"{folder}/committed", layouts["committed"])
    faults: list[Fault] = [("committed", *at) for at in damaged]
    checksum, damaged = read_cells(root, f"{folder}/checksum", layouts["checksum"])
    faults += [("checksum", *at) for at in damaged if committed[at[:2]]]
    known = {(view, block) for _, view, block, _ in faults}
    for view, block in np.argwhere(committed).tolist():
        if (view, block) not in known and commit_value(checksum[view, block]) != committed[view, block]:
            fault = f"checksums of view {view} block {block} are not those committed"
            faults.append(("checksum", view, block, f"{where}: {fault}; {REMEDY}"))
    if cells_sha256 is not None and not faults and committed.all() and raw_sha256(committed) != cells_sha256:
        fault = "commits are not those of the finished teacher"
        faults.append(("committed", None, None, f"{where}: {fault}; fetch the store again"))
    return committed, checksum, faults


def _numbers(root: Path, folder: Path, stop: int) -> list[int]:
    """Names in `folder` that are numbers below `stop`, in order."""
    if not folder.exists():
        return []
    if not folder.resolve().is_relative_to(root):
        raise StoreError(f"{folder} must lie inside the store, found a link; do not use this store")
    names = [entry.name for entry in folder.iterdir()]
    numbers = [int(name) for name in names if name.isdecimal() and len(name) < 20 and name == str(int(name))]
    return sorted(number for number in numbers if number < stop)


def array_plan(
    name: str,
    arrays: Mapping[str, RowArray],
    num_views: int,
    num_examples: int,
    block_rows: int,
    positions: int | None = None,
) -> tuple[Layout, Document]:
    """Layout and zarr.json of one array of a teacher."""
    if name in CELL_ARRAYS:
        dims = CELL_ARRAYS[name].row_dims
        layout = cell_layout(num_views, -(-num_examples // block_rows), (len(arrays),) * len(dims))
        return layout, array_document(layout, CELL_ARRAYS[name], ("view", "block", *dims))
    array = arrays[name]
    layout = block_layout(num_views, num_examples, block_rows, array.row_shape, array.dtype)
    return layout, array_document(layout, ROW_ARRAYS[name], ("view", "example", *row_dims(name, arrays, positions)))


def declared_arrays(attributes: Mapping[str, Any]) -> dict[str, RowArray]:
    """Row arrays as a teacher's attributes declare them."""
    return {
        name: RowArray(dtype=str(entry.get("dtype")), row_shape=tuple(entry["row_shape"]))
        for name, entry in attributes["arrays"].items()
    }


def load_teacher(root: Path, name: str, examples: str) -> dict[str, Document]:
    """All documents of a teacher, by folder below it, each checked.

    Args:
        root: Folder of the store.
        name: Name of the teacher.
        examples: `examples_sha256` of the store, which the teacher must name; old teachers name none.
    """
    where = root / "teachers" / name
    document = read_document(root, f"teachers/{name}")
    own = document["attributes"]
    check_attributes(own, TEACHER, where)
    documents = read_sealed(root, f"teachers/{name}", document)
    check_bound(own, examples, where)
    for folder in (*own["arrays"], *CELL_ARRAYS):
        if folder not in documents:
            raise StoreError(f"{where}: metadata names no array {folder[:100]!r}; fetch the store again")
    return documents


def check_bound(attributes: Mapping[str, Any], examples: str, where: Path | str) -> None:
    """Raise StoreError when a teacher's attributes name other examples than `examples`; old teachers name none."""
    found = attributes.get("examples_sha256", examples)
    if found != examples:
        raise StoreError(
            f"{where} answers other examples or views ({str(found)[:8]}) than those of its store ({examples[:8]});"
            " remove that teacher, or name others with --teacher-name"
        )
