"""Bringing a store into a folder: its documents first, then every file they imply, each checked on arrival.

What lies in the folder already and is sound is not fetched again, so that a killed copy goes on. Threads belong to
the calling process and are gone when a function returns.
"""

import contextlib
import errno
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from logitbank.stores.files import writing
from logitbank.stores.format.documents import MAX_DOCUMENT_BYTES, examples_sha256, read_document
from logitbank.stores.format.layout import Layout, file_name
from logitbank.stores.format.schema import CELL_ARRAYS, EXAMPLE_ARRAYS, PROBE, StoreError, check_name, constant_spec
from logitbank.stores.read.blocks import check_static
from logitbank.stores.read.cells import check_bound
from logitbank.stores.read.memory import available_memory
from logitbank.stores.read.reader import Store, load_root, open_store
from logitbank.stores.read.teacher import Teacher
from logitbank.stores.share.sources import ATTEMPTS, PAUSE, Source

FOLDS = "folds"  # the root's attribute that says how rows were assigned, in a store without teachers
MAX_NODES = 1000  # arrays that one group may name
MAX_FILES = 2**21  # of one array, or of the rows of a store
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)  # of this disk, which no second attempt mends
_OVERHEAD = 4096  # what codecs may add to a file, beside a sixteenth


@dataclass(frozen=True, kw_only=True)
class CopyProgress:
    """How far a copy is."""

    files: int
    num_files: int
    num_bytes: int


OnProgress = Callable[[CopyProgress], None]


class NotThereError(StoreError):
    """The source has no such file."""


class Fetcher:
    """Fetches one store from a source into a folder.

    Args:
        source: Where it is.
        folder: Where it goes; may hold a part of it already. The source's own `root` is read where it lies.
        num_threads: Files under way at a time.
        report: Called after every file of rows.
    """

    def __init__(self, source: Source, folder: Path, *, num_threads: int, report: OnProgress | None = None) -> None:
        self.source, self.folder = source, folder
        self._in_place = source.root == folder
        self._num_threads, self._report = num_threads, report
        self.wanted: set[str] = set()  # every file of the store
        self._done = self._total = self._bytes = 0

    def documents(
        self, teachers: Sequence[str] | None, *, unfinished: bool = False
    ) -> tuple[Store, list[str], list[str]]:
        """The store's documents, and those of the wanted teachers (None: all that are finished; empty: none).

        Args:
            teachers: Their names.
            unfinished: Whether those that are named may be unfinished.

        Returns:
            The store as the folder now has it, the teachers' names, and the names of unfinished ones left out.
        """
        self._document("")
        self._below("")
        examples = examples_sha256(load_root(self.folder))
        names = list(teachers) if teachers is not None else self.source.teachers()
        if names is None:
            raise StoreError(
                f"{self.source.name} cannot list its teachers; name the ones to copy with --teacher-name NAME"
            )
        chosen, left_out = [], []
        for name in dict.fromkeys(names):
            folder = f"teachers/{check_name(name, 'teacher')}"
            try:
                document = self._document(folder)
            except NotThereError as error:
                if teachers is None or unfinished:
                    raise
                there = ", ".join(self.source.teachers() or ()) or "unknown ones"
                raise StoreError(
                    f"{self.source.name}: no teacher {name!r}, found {there}; name one of these"
                ) from error
            if unfinished or document["attributes"].get("complete") is True:
                self._below(folder)
                check_bound(document["attributes"], examples, f"{self.source.name}/{folder}")
                chosen.append(name)
            elif teachers is not None:
                raise StoreError(f"{self.source.name}: teacher {name!r} is unfinished; copy it when its writer is done")
            else:
                self.wanted.discard(f"{folder}/zarr.json")
                left_out.append(name)
        bare = not left_out and FOLDS in read_document(self.folder, "")["attributes"]  # a store of folds only
        if not chosen and teachers is None and not bare:
            raise StoreError(f"{self.source.name}: expected a finished teacher, found none; finish stage one first")
        return open_store(self.folder, allow_incomplete=True), chosen, left_out

    def statics(self, store: Store, teachers: Iterable[Teacher]) -> None:
        """Keys, labels, probes and the teachers' constants, each checked against its sha256."""
        for folder in store.static_arrays:
            spec = PROBE if folder.startswith("probes/") else EXAMPLE_ARRAYS[folder.removeprefix("examples/")]
            layout = check_static(read_document(self.folder, folder), spec, self.folder / folder)
            self._static(folder, layout, partial(store.static_array, folder))
        for teacher in teachers:
            for name in teacher.constant_names:
                folder = f"teachers/{teacher.name}/{name}"
                layout = check_static(read_document(self.folder, folder), constant_spec(name), self.folder / folder)
                self._static(folder, layout, partial(teacher.constant, name))

    def cells(self, store: Store, name: str) -> Teacher:
        """The commits and checksums of all cells of a teacher, up to what its digest vouches for."""
        teacher = store.teacher(name)
        where = f"teachers/{name}"
        self._check_count(2 * teacher.num_views * teacher.num_blocks)
        cells = [(view, block) for view in range(teacher.num_views) for block in range(teacher.num_blocks)]
        paths = [f"{where}/{kind}/{file_name((*cell, 0)[:n])}" for cell in cells for kind, n in _CELL_DIMS.items()]
        self.wanted.update(paths)
        self._in_threads([partial(self._fetch, path, 256 + 4 * 64) for path in paths if not self._has(path)])
        for attempt in range(ATTEMPTS):
            teacher = store.teacher(name)
            faults, absent = teacher.commit_faults(), [] if teacher.commit_faults() else teacher.uncommitted()
            if not faults and not absent:
                return teacher
            damaged = [fault[1:3] for fault in faults if fault[1] is not None]
            again = {cell for cell in [*damaged, *absent] if None not in cell} or set(cells)
            message = faults[0][3] if faults else f"commit of view {absent[0][0]} block {absent[0][1]} is missing"
            if attempt + 1 < ATTEMPTS:
                chosen = [
                    path for cell, path in zip(np.repeat(cells, 2, axis=0), paths, strict=True) if tuple(cell) in again
                ]
                self._in_threads([partial(self._fetch, path, 256 + 4 * 64) for path in chosen])
        raise StoreError(f"{self.source.name}: {message}")

    def rows(
        self, teachers: Sequence[Teacher], num_views: int, arrived: Callable[[str], None] = lambda path: None
    ) -> None:
        """All rows of the first views, each file compared with its checksum when it arrives.

        Args:
            teachers: Of the store.
            num_views: How many views.
            arrived: Called with the path of every file that is sound.
        """
        jobs: list[Callable[[], None]] = []
        widest = 1
        for teacher in teachers:
            self._check_count(len(jobs) + len(teacher.arrays) * num_views * teacher.num_blocks)
            for name in teacher.arrays:
                block_bytes = teacher.block_rows * teacher.row_arrays[name].row_bytes
                widest = max(widest, block_bytes)
                jobs += [
                    partial(self._row_file, teacher, name, view, block, _most(block_bytes), arrived)
                    for view in range(num_views)
                    for block in range(teacher.num_blocks)
                ]
        self._total = len(jobs)
        self._in_threads(jobs, most=max(1, available_memory() // (4 * widest)))

    def let_go(self, path: str) -> None:
        """Remove a file that has been passed on, unless it lies where it came from."""
        if not self._in_place:
            (self.folder / path).unlink()

    def prune(self) -> None:
        """Remove every file that is no part of the store, such as what an earlier copy of another left."""
        for path in sorted(self.folder.rglob("*"), reverse=True):
            if path.is_dir() and not path.is_symlink():
                with contextlib.suppress(OSError):
                    path.rmdir()
            elif path.relative_to(self.folder).as_posix() not in self.wanted:
                path.unlink()

    def _document(self, folder: str) -> dict[str, dict[str, object]]:
        path = f"{folder}/zarr.json".lstrip("/")
        self._fetch(path, MAX_DOCUMENT_BYTES)
        self.wanted.add(path)
        with self._at_source():
            return read_document(self.folder, folder)

    def _below(self, top: str) -> None:
        """Documents of all nodes that the group `top` names."""
        names = read_document(self.folder, top)["attributes"].get("documents")
        if not isinstance(names, dict) or len(names) > MAX_NODES:
            raise StoreError(f"{self.source.name}: {top or 'root'} must name at most {MAX_NODES} arrays; do not use it")
        for name in names:
            for part in str(name).split("/"):
                check_name(part, "array")
        whole = [f"{top}/{name}".lstrip("/") for name in names]
        self._in_threads([partial(self._document, folder) for folder in whole])

    def _static(self, folder: str, layout: Layout, check: Callable[[], object]) -> None:
        count = int(np.prod(layout.grid, dtype=object))
        self._check_count(count)
        paths = [f"{folder}/{file_name(position)}" for position in layout.files()]
        self.wanted.update(paths)
        limit = _most(layout.chunk_bytes)
        for attempt in range(ATTEMPTS):
            again = [path for path in paths if attempt or not self._has(path)]
            self._in_threads([partial(self._fetch, path, limit) for path in again])
            try:
                with self._at_source():
                    check()
                return
            except StoreError:
                if attempt + 1 == ATTEMPTS:
                    raise

    def _row_file(
        self, teacher: Teacher, name: str, view: int, block: int, limit: int, arrived: Callable[[str], None]
    ) -> None:
        path = _row_path(teacher, name, view, block)
        self.wanted.add(path)
        for attempt in range(ATTEMPTS):
            if attempt or not self._has(path):
                self._fetch(path, limit)
            try:
                with self._at_source():
                    teacher.block(view, block, [name])
                break
            except StoreError as error:
                if attempt + 1 == ATTEMPTS:
                    raise StoreError(f"{self.source.name}: {path} does not hold the rows committed: {error}") from error
        self._done += 1
        self._bytes += (self.folder / path).stat().st_size
        arrived(path)
        if self._report is not None:
            self._report(CopyProgress(files=self._done, num_files=self._total, num_bytes=self._bytes))

    def _fetch(self, path: str, limit: int) -> None:
        target = self.folder / path
        if not self._in_place:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # another store may have the file, too
        for attempt in range(ATTEMPTS):
            try:
                self.source.fetch(path, target, limit)
                return
            except FileNotFoundError as error:
                raise NotThereError(
                    f"{self.source.name}: {path} is not there; check the address or fetch it whole"
                ) from error
            except OSError as error:
                if error.errno in _NO_ROOM:
                    with writing(str(self.folder)):
                        raise
                if attempt + 1 == ATTEMPTS:
                    raise StoreError(
                        f"{self.source.name}: cannot copy {path}: {error}; run the command again"
                    ) from error
                time.sleep(PAUSE * 2**attempt)

    @contextlib.contextmanager
    def _at_source(self) -> Iterator[None]:
        """Let a refusal name the file at its source: where it was brought to is gone when somebody reads that."""
        try:
            yield
        except StoreError as error:
            text = str(error).replace(str(self.folder.resolve()), self.source.name)
            raise StoreError(text.replace(str(self.folder), self.source.name)) from error

    def _has(self, path: str) -> bool:
        return (self.folder / path).is_file()

    def _check_count(self, count: int) -> None:
        if count > MAX_FILES:
            raise StoreError(f"{self.source.name}: a store has at most {MAX_FILES} files, found {count}; do not use it")

    def _in_threads(self, jobs: Sequence[Callable[[], object]], most: int = 64) -> None:
        with ThreadPoolExecutor(max(1, min(self._num_threads, most))) as pool:
            try:
                for _ in pool.map(lambda job: job(), jobs):
                    pass
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


_CELL_DIMS = {"committed": 2, "checksum": 3}  # dimensions of the files' names
assert set(_CELL_DIMS) == set(CELL_ARRAYS)


def row_files(teacher: Teacher, num_views: int) -> list[str]:
    """Paths of all files of rows of the first views."""
    cells = [(view, block) for view in range(num_views) for block in range(teacher.num_blocks)]
    return [_row_path(teacher, name, *cell) for name in teacher.arrays for cell in cells]


def _row_path(teacher: Teacher, name: str, view: int, block: int) -> str:
    tail = (0,) * len(teacher.row_arrays[name].row_shape)
    return f"teachers/{teacher.name}/{name}/{file_name((view, block, *tail))}"


def _most(num_bytes: int) -> int:
    """The most bytes that a file may have that decodes to `num_bytes`."""
    return num_bytes + num_bytes // 16 + _OVERHEAD
