"""More views of a store: everything but the number of views is the store's, and the answers there are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from logitbank.pipeline.cache_teacher.embedding import Embedding
from logitbank.pipeline.cache_teacher.passes import Pass, write_cells
from logitbank.pipeline.cache_teacher.progress import Progress
from logitbank.pipeline.cache_teacher.sound import ask_first
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.cache_teacher.teachers.recorded import differences
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.views import probe
from logitbank.stores import Store
from logitbank.stores.write.extend import extend_store, extendable


def extend_views(
    store: Store,
    teacher: AnsweringTeacher,
    out: Path,
    *,
    rank: Rank | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Writes a store of more views; goes on where a killed run stopped.

    Args:
        store: A finished store with one teacher, opened with ``allow_incomplete``.
        teacher: This very teacher, to all views.
        out: The new store.
        rank: Which of several processes this is (default: the only one).
        on_progress: Called after each batch and each block.

    Returns:
        As ``cache_teacher``.

    Raises:
        ValueError: Another teacher, or a store that cannot be extended.
    """
    begun = begin_extension(store, teacher, out)
    write_cells(begun, rank or Rank(), on_progress)
    return begun.finish()


def begin_extension(store: Store, teacher: AnsweringTeacher, out: Path) -> Pass:
    """Creates the store of more views and takes over what is there, or finds it; arguments as in ``extend_views``.

    The arrays are those of a store that was cached with all views at once: encoding, tail predictor and block size are
    taken over, and so is the measured fidelity, which is the first view's.
    """
    stored = extendable(store, teacher.views.num_views)
    found = differences(stored.identity, teacher.identity())
    if found:
        raise ValueError(
            f"{store.path}: more views need the same teacher, this is another: {'; '.join(found)}; one more teacher"
            " goes into a store with cli cache-teacher --out STORE --teacher-name NAME"
        )
    if ("mask" in stored.arrays) != (teacher.split.readable is not None):
        raise ValueError(
            f"{store.path}: its teacher serves only some of the examples; extend the stores that it was merged from, or"
            " cache it again with --near and --views"
        )
    sound = ask_first(teacher)
    probes = probe(sound.split, sound.views, store.probes.get("row"))
    return Pass(
        out=out,
        teacher=sound,
        writer=extend_store(store, out, num_views=sound.views.num_views, probes=probes),
        encoding=Encoding.from_attributes(stored.encoding),
        predictor=TailPredictor.from_constants(stored.constants()),
        embedding=Embedding.kept_by(stored),
        asked=stored.summary.get("asked"),  # an older store does not say
        check=lambda _: None,
        measure=lambda: stored.fidelity,
    )
