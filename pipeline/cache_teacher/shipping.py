"""A pass into a bucket: by machines that share no folder, each with a disk of its own."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from logitbank.pipeline.cache_teacher.passes import Pass, write_cells
from logitbank.pipeline.cache_teacher.progress import Progress
from logitbank.pipeline.processes.rank import Rank
from logitbank.stores.folders import local_folder
from logitbank.stores.format.address import spelled
from logitbank.stores.locks import locked
from logitbank.stores.share.shipping import Address
from logitbank.stores.share.shipping_writer import PATIENCE, ShippingWriter
from logitbank.stores.share.widen import remove
from logitbank.stores.write.building import build


def ship_pass(
    out: Path,
    name: str,
    begin: Callable[[Path], Pass],
    *,
    rank: Rank,
    on_progress: Callable[[Progress], None] | None = None,
    patience: float = PATIENCE,
) -> dict[str, Any]:
    """Writes a teacher's answers to a store in a bucket; goes on where killed runs stopped, on any machine.

    A cell is written here first, sent when it is whole, and removed here. Cells are claimed there; those of a machine
    that was killed, or is slower than ``patience``, are answered again at the end, by as many processes as are idle.

    Args:
        out: The store's address.
        name: The teacher's name in it.
        begin: Begins the pass in a folder, or finds it there.
        rank: Which of several processes this is.
        on_progress: As in ``write_cells``.
        patience: Seconds without any commit after which the claims of others are no longer believed.

    Returns:
        The summary written to the store.
    """
    address = Address(spelled(out), name)
    folder = _folder(out, name)
    with locked(folder):
        if not address.agrees(folder):
            remove(folder)  # of a store that lay there before
    build(folder, lambda built: address.begin(built, begin), same=address.agrees)
    begun = begin(folder)
    writer = ShippingWriter(begun.writer, address, folder, patience=patience)
    shipped = replace(begun, writer=writer)
    while shipped.cells():
        write_cells(shipped, rank, on_progress)
        writer.wait()
    return shipped.finish()


def is_finished_there(out: Path, name: str) -> bool:
    """Whether the store at an address holds a teacher whole."""
    return Address(spelled(out), name).is_finished()


def _folder(out: Path, name: str) -> Path:
    """Where the cells of a teacher are made; processes of one machine share it."""
    own = hashlib.sha256(f"{spelled(out)}\0{name}".encode()).hexdigest()[:16]
    return local_folder("outgoing") / f"{own}.zarr"
