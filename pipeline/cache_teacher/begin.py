"""The beginning of a pass: what rows are encoded with is decided once, and written down before the first row is."""

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from logitbank.pipeline.cache_teacher.asked import Asked, Budget
from logitbank.pipeline.cache_teacher.embedding import Embedding
from logitbank.pipeline.cache_teacher.fidelity import TEMPERATURES
from logitbank.pipeline.cache_teacher.passes import Pass
from logitbank.pipeline.cache_teacher.sample import Sample
from logitbank.pipeline.cache_teacher.sound import SoundTeacher, ask_first
from logitbank.pipeline.cache_teacher.teachers.answering import AnsweringTeacher
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.files.versions import library_versions
from logitbank.pipeline.folds import refuse_apart
from logitbank.pipeline.processes.heap import return_large_arrays
from logitbank.pipeline.processes.rank import Rank
from logitbank.pipeline.views import probe
from logitbank.stores import RowArray, StoreError, Teacher, TeacherWriter, create_store, open_store
from logitbank.stores.format.address import check_folder, is_url
from logitbank.stores.format.schema import ROW_ARRAYS
from logitbank.stores.waiting import Waiting

PREDICTOR_ROWS = 20_000
SETUP_SECONDS = 1800.0  # how long the other ranks of torchrun wait for rank 0 to describe the teacher
_POLL_SECONDS = 0.5
MASK = {"mask": RowArray(dtype="bool")}


def begin_pass(
    teacher: AnsweringTeacher,
    out: Path,
    *,
    encoding: Encoding | Budget,
    name: str = "teacher",
    predictor_rows: int = PREDICTOR_ROWS,
    embedding_dim: int = 0,
    temperatures: Sequence[float] = TEMPERATURES,
    block_rows: int | None = None,
    rank: Rank | None = None,
) -> Pass:
    """Creates the store and the teacher in it, or finds those of the same call; any number of processes may do so.

    Args:
        teacher: Who answers, about which examples and views.
        out: The store to write, or to go on with.
        encoding: What is kept of a row, or a budget that decides it.
        name: The teacher's name in the store.
        predictor_rows: Random rows of the first view on which the tail predictor is fitted; 0 fits none.
        embedding_dim: How many principal components are kept of a teacher's features, if it gives some; 0: all.
        temperatures: Where the encoding's fidelity is measured.
        block_rows: Rows written and committed together; when left out those of a store that is begun, or chosen for
            the examples and ``rank.count``.
        rank: Which of several processes this is (default: the only one).

    Raises:
        ValueError: ``out`` is a store of something else, or the answers are not ones that can be learnt from.
    """
    return_large_arrays()
    check_folder(out)
    if teacher.folds is not None:
        refuse_apart(teacher.split.keys, teacher.folds, teacher.split.spec)
    sound, rank = ask_first(teacher), rank or Rank()
    predictor_rows = sound.fitting_rows(encoding, predictor_rows)
    sample = Sample(sound, predictor_rows)
    asked = Asked(
        encoding=encoding,
        predictor_rows=predictor_rows,
        temperatures=tuple(temperatures),
        embedding="" if sound.features is None else sound.features.layer,
        embedding_dim=embedding_dim,
    )
    if is_begun(out):
        describe(sound, out)  # another dataset or other views: said before anything is computed
    stored = find_teacher(out, name)
    if stored is None and rank.together and not rank.first:
        stored = _wait_for_teacher(out, name)
    if stored is None:
        chosen, predictor, embedding = _decide(sample, asked)
        stored = find_teacher(out, name)  # another process may have been faster
    if stored is not None:
        asked.check(out, stored)
        chosen, predictor, embedding = _kept(stored)
    describe(sound, out)
    create = partial(_writer, sound, out, name, chosen, asked=asked, block_rows=block_rows, num_writers=rank.count)
    try:
        writer = create(predictor, embedding)
    except StoreError:
        late = find_teacher(out, name)  # its constants may be those of a process on another kind of machine
        if stored is not None or late is None:
            raise
        _, predictor, embedding = _kept(late)
        writer = create(predictor, embedding)
    return Pass(
        out=out,
        teacher=sound,
        writer=writer,
        encoding=chosen,
        predictor=predictor,
        embedding=embedding,
        asked=asked.recorded(),
        check=partial(asked.check, out),
        measure=partial(sample.measure, chosen, predictor, temperatures),
    )


Kept = tuple[Encoding, TailPredictor | None, Embedding | None]


def _decide(sample: Sample, asked: Asked) -> Kept:
    """What rows are encoded with, measured once: a teacher that does not fit is found before a file is made."""
    encoding = asked.encoding
    if isinstance(encoding, Budget):
        encoding = sample.choose(encoding.kl, encoding.temperatures)
    predictor = sample.fit_predictor(encoding)
    sample.measure(encoding, predictor, asked.temperatures)
    features = sample.teacher.features
    embedding = None if features is None else Embedding.of(features, sample, asked.embedding_dim)
    return encoding, predictor, embedding


def _kept(stored: Teacher) -> Kept:
    """What the rows of a teacher that is there are encoded with."""
    predictor = TailPredictor.from_constants(stored.constants())
    return Encoding.from_attributes(stored.encoding), predictor, Embedding.kept_by(stored)


def _writer(
    teacher: SoundTeacher,
    out: Path,
    name: str,
    encoding: Encoding,
    predictor: TailPredictor | None,
    embedding: Embedding | None,
    *,
    asked: Asked,
    block_rows: int | None,
    num_writers: int,
) -> TeacherWriter:
    shifted = predictor is not None and _keeps_shift(out, name)
    kept = {} if embedding is None else embedding.row_arrays
    arrays = {**encoding.row_arrays(shifted=shifted), **kept, **({} if teacher.split.readable is None else MASK)}
    return TeacherWriter(
        out,
        name,
        identity=teacher.identity(),
        encoding=encoding.attributes(),
        arrays={name: array.at(teacher.split.positions) for name, array in arrays.items()},
        folds=teacher.fold_attributes,
        constants={part: array for each in (predictor, embedding) if each for part, array in each.constants().items()},
        block_rows=block_rows,
        num_writers=num_writers,
        summary={"asked": asked.recorded()},
    )


def _keeps_shift(out: Path, name: str) -> bool:
    """Whether rows keep the shift of their predicted tail: as those that are there, and as the store's version can."""
    store = open_store(out, allow_incomplete=True)
    if name in store.teachers:
        return "tail_shift" in store.teacher(name).row_arrays
    return store.version >= ROW_ARRAYS["tail_shift"].since


def describe(teacher: SoundTeacher, out: Path) -> None:
    """Creates the store, or checks that the one that is there has these examples and views."""
    split, views = teacher.split, teacher.views
    create_store(
        out,
        dataset=split.describe(),
        views={**views.attributes(), "versions": library_versions()},
        keys=split.keys,
        labels=split.labels,
        folds=teacher.folds,
        groups=teacher.groups,
        probes=probe(split, views),
    )


def is_begun(out: Path) -> bool:
    """Whether something lies there already."""
    return out.exists() and not (out.is_dir() and not any(out.iterdir()))


def is_finished(out: Path, name: str) -> bool:
    """Whether a store holds a teacher whole, so that writing it again only finds that it is the same."""
    if is_url(out):
        from logitbank.pipeline.cache_teacher.shipping import is_finished_there  # brings clients of the network

        return is_finished_there(out, name)
    teacher = find_teacher(out, name)
    return teacher is not None and teacher.complete


def find_teacher(out: Path, name: str) -> Teacher | None:
    """A teacher of a store that may be unfinished."""
    if not is_begun(out):
        return None
    store = open_store(out, allow_incomplete=True)
    return store.teacher(name) if name in store.teachers else None


def _wait_for_teacher(out: Path, name: str) -> Teacher | None:
    """Rank 0 measures, fits and creates; the other ranks need not do it again."""
    until = time.monotonic() + SETUP_SECONDS
    advice = f"after {SETUP_SECONDS / 60:.0f} min this process begins it itself"
    waiting = Waiting(f"rank 0, which measures the teacher and begins {out}", advice)
    while time.monotonic() < until:
        teacher = find_teacher(out, name)
        if teacher is not None:
            return teacher
        waiting.say()
        time.sleep(_POLL_SECONDS)
    return None
