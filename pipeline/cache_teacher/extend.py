"""More views of a store: everything but the number of views is the store's, and the answers there are kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from logitbank.pipeline.cache_teacher.run import Progress, write_cells
from logitbank.pipeline.cache_teacher.sample import zero_warnings
from logitbank.pipeline.cache_teacher.sound import ask_first
from logitbank.pipeline.cache_teacher.summary import summarise
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.cache_teacher.teachers.recorded import differences
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.views import probe
from logitbank.stores import Store, open_store
from logitbank.stores.write.extend import extend_store, extendable


def extend_views(
    store: Store,
    answers: AnsweringTeacher,
    out: Path,
    *,
    rank: Rank | None = None,
    on_progress: Callable[[Progress], None] | None = None,
) -> dict[str, Any]:
    """Writes a store of more views; goes on where a killed run stopped.

    The arrays are those of a store that was cached with all views at once: encoding, tail predictor and block size are
    taken over, and so is the measured fidelity, which is the first view's.

    Args:
        store: A finished store with one teacher, opened with ``allow_incomplete``.
        answers: This very teacher, to all views.
        out: The new store.
        rank: Which of several processes this is (default: the only one).
        on_progress: Called after each block.

    Returns:
        As ``cache_teacher``.

    Raises:
        ValueError: Another teacher, or a store that cannot be extended.
    """
    teacher = extendable(store, answers.views.num_views)
    found = differences(teacher.identity, answers.identity())
    if found:
        raise ValueError(
            f"{store.path}: more views need the same teacher, this is another: {'; '.join(found)}; one more teacher"
            " goes into a store with cli cache-teacher --out STORE --name NAME"
        )
    if ("mask" in teacher.arrays) != (answers.split.readable is not None):
        raise ValueError(
            f"{store.path}: its teacher serves only some of the examples; extend the stores that it was merged from"
        )
    answers = ask_first(answers)
    rows = store.probes.get("row")
    probes = probe(answers.split, answers.views, rows)
    writer = extend_store(store, out, num_views=answers.views.num_views, probes=probes)
    encoding = Encoding.from_attributes(teacher.encoding)
    predictor = TailPredictor.from_constants(teacher.constants())
    write_cells(writer, answers, encoding, predictor, rank or Rank(), on_progress)
    if writer.pending():
        return {}
    written = open_store(out, allow_incomplete=True)
    if written.teacher().complete:
        return dict(written.teacher().summary)
    summary = summarise(written, teacher.name, answers.seen)
    summary["warnings"] += zero_warnings(teacher.fidelity)
    if "asked" in teacher.summary:  # an older store does not say
        summary["asked"] = teacher.summary["asked"]
    writer.finish(fidelity=teacher.fidelity, summary=summary)
    return summary
