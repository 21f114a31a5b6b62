"""More views of a store, in a store beside it: what is there is taken over, only the new cells are to be written."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from logitbank.stores.format.schema import StoreError
from logitbank.stores.read.lineage import own_attributes, with_lineage
from logitbank.stores.read.reader import Store
from logitbank.stores.read.teacher import Teacher
from logitbank.stores.write.create import create_store
from logitbank.stores.write.link import cell_files, same_layout
from logitbank.stores.write.writer import TeacherWriter


def extendable(store: Store, num_views: int) -> Teacher:
    """The store's only teacher, when more views of it can be added.

    Args:
        store: Opened with ``allow_incomplete``.
        num_views: How many views the result is to have.

    Raises:
        StoreError: There are several teachers, or none that is finished, or as many views already.
    """
    names = store.teachers
    if len(names) != 1:
        raise StoreError(
            f"{store.path} has {len(names)} teachers ({', '.join(names) or 'none'}), and all of them would need the new"
            " views; take one with copy --teacher-name NAME, extend it, and merge the results"
        )
    teacher = store.teacher()
    if not teacher.complete:
        raise StoreError(
            f"{store.path}: teacher {names[0]!r} is unfinished; run the command that writes it again first"
        )
    if num_views <= store.num_views:
        raise StoreError(
            f"{store.path} has {store.num_views} views, {num_views} are wanted; ask for {store.num_views + 1} or more"
            " (copy --views takes fewer)"
        )
    return teacher


def extend_store(store: Store, out: str | Path, *, num_views: int, probes: Mapping[str, np.ndarray]) -> TeacherWriter:
    """Create a store of more views, or go on with it, and take over every cell of the views that are there.

    Rows are compared with their checksums. Files are shared through hard links where the disk has them.

    Args:
        store: As `extendable` takes it.
        out: The new store.
        num_views: How many views it has.
        probes: Evidence of what all its views look like.

    Returns:
        The writer of the new store, to which only cells of new views are left.

    Raises:
        StoreError: As `extendable`; `out` is something else; or a cell of the store is damaged.
    """
    teacher = extendable(store, num_views)
    if Path(out).resolve() == store.path.resolve():
        raise StoreError(
            f"{out} is the store itself, and somebody may be reading it; choose another path for the new one"
        )
    step = {"operation": "extend", "digest": store.attributes["digest"], "num_views": [num_views, store.num_views]}
    step["teachers"] = {teacher.name: teacher.digest}
    create_store(
        out,
        dataset=store.dataset,
        views={**store.views, "num_views": num_views},
        keys=store.keys,
        labels=store.labels,
        folds=store.folds,
        groups=store.groups,
        probes=probes,
        attributes=with_lineage(own_attributes(store), step),
        version=store.version,
    )
    writer = TeacherWriter(
        out,
        teacher.name,
        identity=teacher.identity,
        encoding=teacher.encoding,
        arrays=teacher.row_arrays,
        folds=teacher.folds,
        constants=teacher.constants(),
        block_rows=teacher.block_rows,
    )
    same = same_layout(store.path.resolve(), teacher, Path(out).resolve(), teacher.name, teacher.arrays)
    for cell in writer.pending():
        if cell.view < store.num_views:
            writer.write(cell, teacher.block(*cell), same_files=cell_files(same, teacher, cell))
    return writer
