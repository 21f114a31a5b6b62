"""Handing a store on: copies between folders, zip files, web servers and buckets, whole or in part.

A copy appears when it is whole and every checksum matches. Interrupted, the same command goes on where it was.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from logitbank.stores.files import make_folders, write_document, writing
from logitbank.stores.format.address import is_url, is_zip, spelled
from logitbank.stores.format.documents import Document, examples_sha256, raw_sha256, sealed
from logitbank.stores.format.schema import CELL_ARRAYS, StoreError
from logitbank.stores.locks import scratch
from logitbank.stores.read.cells import load_teacher
from logitbank.stores.read.lineage import last_step, with_lineage
from logitbank.stores.read.reader import Store, load_root, open_store
from logitbank.stores.share.fetch import FOLDS, Fetcher, OnProgress, row_files
from logitbank.stores.share.push import Parcel, check_writable, push
from logitbank.stores.share.sources import FolderSource, Source, open_source
from logitbank.stores.share.widen import NOISE, settle, widen
from logitbank.stores.share.zip_file import write_zip
from logitbank.stores.write.building import build

NUM_THREADS = 16


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What a copy brought: teachers by name, unfinished ones that were left out, and whether it was there already."""

    teachers: tuple[str, ...]
    unfinished: tuple[str, ...] = ()
    num_views: int
    already_there: bool = False


def copy_store(
    source: str | Path,
    target: str | Path,
    *,
    num_views: int | None = None,
    teachers: Sequence[str] | None = None,
    folds_only: bool = False,
    num_threads: int = NUM_THREADS,
    report: OnProgress | None = None,
) -> Copied:
    """Copy a store, or a part of it that is a sound store by itself.

    Args:
        source: A folder, a .zip file, or a URL: s3://, gs://, hf://, http(s)://.
        target: A folder, a .zip file, or s3://, gs://, hf://.
        num_views: Only the first views; views are replayed by their number, so a part starts with view 0.
        teachers: Only these; all finished ones when left out.
        folds_only: Examples, their folds and the probes, and no teacher at all: the root's attribute `folds` says how
            rows were assigned. `teachers` then names one whose folds they are, where the source cannot list them.
        num_threads: Files under way at a time.
        report: Called after every file of rows.

    Raises:
        StoreError: a place cannot be read or written, the source is damaged, or the target holds something else.
    """
    with open_source(source) as origin:
        folds = _folds_of(origin, teachers) if folds_only else None
        return _copy(origin, target, num_views, [] if folds_only else teachers, folds, num_threads, report)


def _copy(
    origin: Source,
    target: str | Path,
    num_views: int | None,
    teachers: Sequence[str] | None,
    folds: dict[str, Any] | None,
    num_threads: int,
    report: OnProgress | None,
) -> Copied:
    if is_url(target):
        return _push(origin, spelled(target), num_views, teachers, folds, num_threads, report)
    path = Path(target)
    as_zip = is_zip(path)
    outcome: list[Copied] = []

    def make(built: Path) -> None:
        folder = built.with_name("store") if as_zip else built
        outcome.append(fetch_store(origin, folder, num_views, teachers, num_threads, report, folds))
        if as_zip:
            built.unlink(missing_ok=True)  # of a killed process
            write_zip(folder, built)

    address = origin.name if is_url(origin.name) else str(Path(origin.name).resolve())
    request = {
        "operation": "copy",
        "source": hashlib.sha256(os.fsencode(address)).hexdigest(),  # an address may hold a signature
        "num_views": num_views,
        "teachers": teachers if teachers is None else sorted(teachers),
        "folds": folds,
    }

    def same(there: Path) -> bool:
        outcome.append(_already_there(origin, there, num_views, teachers))
        return True

    settle(path)

    def is_narrower() -> bool:
        return not as_zip and not folds and path.is_dir() and _is_narrower(origin, path, num_views, teachers)

    if not is_narrower() or not widen(path, make, request, is_narrower):
        build(path, make, request=request, same=same)
    return outcome[-1]


def fetch_store(
    origin: Source,
    folder: Path,
    num_views: int | None,
    teachers: Sequence[str] | None,
    num_threads: int,
    report: OnProgress | None,
    folds: dict[str, Any] | None = None,
) -> Copied:
    """Fill `folder` with a store of the format that opens."""
    with writing(str(folder)):
        make_folders(folder)
    fetcher = Fetcher(origin, folder, num_threads=num_threads, report=report)
    store, names, unfinished = fetcher.documents(teachers)
    views = _checked_views(num_views, store)
    fetcher.statics(store, [store.teacher(name) for name in names])
    loaded = [fetcher.cells(store, name) for name in names]
    fetcher.rows(loaded, views)
    fetcher.prune()
    if not _is_whole(origin, store, names, views, teachers):
        documents = _documents(store, names, views, False, {} if folds is None else {FOLDS: folds})
        with writing(str(folder)):
            _cut(store, names, views)
            for below, document in documents.items():
                write_document(folder / below, document)
    part = open_store(folder)
    for name in names:
        part.teacher(name).committed()
    return Copied(teachers=tuple(sorted(names)), unfinished=tuple(unfinished), num_views=views)


def _push(
    origin: Source,
    url: str,
    num_views: int | None,
    teachers: Sequence[str] | None,
    folds: dict[str, Any] | None,
    num_threads: int,
    report: OnProgress | None,
) -> Copied:
    """Send a store to a bucket; one on this disk is read where it lies, of another a few files at a time lie here."""
    check_writable(url)
    with _workplace(origin) as folder:
        fetcher = Fetcher(origin, folder, num_threads=num_threads, report=report)
        store, names, unfinished = fetcher.documents(teachers)
        views = _checked_views(num_views, store)
        fetcher.statics(store, [store.teacher(name) for name in names])
        loaded = [fetcher.cells(store, name) for name in names]
        whole = _is_whole(origin, store, names, views, teachers)
        documents = _documents(store, names, views, whole, {} if folds is None else {FOLDS: folds})
        push(fetcher, Parcel(documents=documents, teachers=loaded, num_views=views), url, num_threads=num_threads)
    return Copied(teachers=tuple(sorted(names)), unfinished=tuple(unfinished), num_views=views)


@contextlib.contextmanager
def _workplace(origin: Source) -> Iterator[Path]:
    """Where a source's files are looked at: in the folder that it is, or in one for a while."""
    if origin.root is not None:
        yield origin.root
    else:
        with scratch() as folder:
            yield folder


def _is_whole(
    origin: Source, store: Store, names: Sequence[str], num_views: int, teachers: Sequence[str] | None
) -> bool:
    """Whether all that can be copied of a source was asked for."""
    return num_views == store.num_views and (teachers is None or set(names) == set(origin.teachers() or ()))


def _checked_views(num_views: int | None, store: Store) -> int:
    if num_views is None:
        return store.num_views
    if not 1 <= num_views <= store.num_views:
        raise StoreError(
            f"{num_views} views are wanted, the store has {store.num_views}; ask for 1 to {store.num_views}"
        )
    return num_views


def _folds_of(origin: Source, teachers: Sequence[str] | None) -> dict[str, Any]:
    """How the rows of a source were assigned to folds, as its teachers say it."""
    with _workplace(origin) as folder:
        store, names, _ = Fetcher(origin, folder, num_threads=NUM_THREADS).documents(teachers)
        said = [store.teacher(name).folds for name in names]
        plan = next((folds for folds in [*said, store.attributes.get(FOLDS)] if isinstance(folds, dict)), None)
        if plan is None or "examples/fold" not in store.static_arrays:
            raise StoreError(f"{origin.name} has no folds, as its teachers were not cross-fitted; leave out --folds")
        return {key: value for key, value in plan.items() if key != "proof"}


def _cut(store: Store, names: Sequence[str], num_views: int) -> None:
    """Remove the commits of the views that were left behind."""
    for name in names:
        for kind in CELL_ARRAYS:
            for view in range(num_views, store.num_views):
                shutil.rmtree(store.path / "teachers" / name / kind / "c" / str(view))


def _documents(
    store: Store, names: Sequence[str], num_views: int, whole: bool, more: Mapping[str, Any]
) -> dict[str, Document]:
    """The documents of a store, or of a part of it, with each teacher tied to its examples, by folder.

    Args:
        store: The whole store.
        names: Teachers of the part.
        num_views: The part has the first views.
        whole: Whether that is all of it; then its root stays as it is.
        more: Attributes that the root of a part gets.
    """
    root = load_root(store.path)
    teachers = {name: load_teacher(store.path.resolve(), name, store.examples_sha256) for name in names}
    if not whole:
        step = {
            "operation": "copy",
            "digest": store.attributes["digest"],
            "teachers": {name: own[""]["attributes"]["digest"] for name, own in sorted(teachers.items())},
            "num_views": [num_views, store.num_views],
        }
        attributes = {**with_lineage(store.attributes, step), **more}
        attributes["views"] = {**attributes["views"], "num_views": num_views}
        root = sealed({**root, "": {**root[""], "attributes": attributes}})
    documents = dict(root)
    for name, own in teachers.items():
        said = {"examples_sha256": examples_sha256(root)}
        if not whole:
            said["cells_sha256"] = raw_sha256(store.teacher(name).committed()[:num_views])
            arrays = (*own[""]["attributes"]["arrays"], *CELL_ARRAYS)
            own |= {array: {**own[array], "shape": [num_views, *own[array]["shape"][1:]]} for array in arrays}
        own = sealed({**own, "": {**own[""], "attributes": {**own[""]["attributes"], **said}}})
        documents |= {f"teachers/{name}/{folder}".rstrip("/"): document for folder, document in own.items()}
    return documents


def digests_of(origin: Source, teachers: Sequence[str] | None) -> dict[str, str]:
    """Digests of a store's root ("") and of its teachers, from their documents alone."""
    with _workplace(origin) as folder:
        store, names, _ = Fetcher(origin, folder, num_threads=NUM_THREADS).documents(teachers)
        digests = {name: store.teacher(name).digest for name in sorted(names)}
        return {"": store.attributes["digest"], **digests}


def _already_there(origin: Source, path: Path, num_views: int | None, teachers: Sequence[str] | None) -> Copied:
    """What lies at the target when it is this very copy; StoreError when it is something else."""
    differs = StoreError(f"{path} is there and is not this store; remove it or choose another path")
    wanted = digests_of(origin, teachers)
    try:
        with open_source(path) as there:
            found = digests_of(there, None)
            with _workplace(there) as folder:
                store = Fetcher(there, folder, num_threads=1).documents(None)[0]
                attributes, views = store.attributes, store.num_views
    except StoreError as error:
        raise differs from error
    names = tuple(sorted(set(wanted) - {""}))
    last = last_step(attributes)
    same = found == wanted and num_views in (None, views)
    taken = {"digest": wanted.pop(""), "teachers": wanted}
    part = {key: last.get(key) for key in taken} == taken and views == (num_views or last["num_views"][1])
    if same or (part and set(found) - {""} == set(names)):
        return Copied(teachers=names, num_views=views, already_there=True)
    raise differs


def _is_narrower(origin: Source, path: Path, num_views: int | None, teachers: Sequence[str] | None) -> bool:
    """Whether a folder is a part, and nothing but that, of the part of the source that is asked for."""
    try:
        there = Fetcher(FolderSource(path), path.resolve(), num_threads=1)
        store, names, unfinished = there.documents(None)
        there.statics(store, [store.teacher(name) for name in names])
        loaded = [there.cells(store, name) for name in names]
    except StoreError:
        return False
    known = there.wanted.union(*(row_files(teacher, store.num_views) for teacher in loaded))
    files = (file.relative_to(path) for file in path.rglob("*") if not file.is_dir())
    strange = (f for f in files if f.as_posix() not in known and not f.name.startswith(".") and f.name not in NOISE)
    if unfinished or not names or next(strange, None) is not None:
        return False
    wanted = digests_of(origin, teachers)
    step = last_step(store.attributes)
    own = {"": store.attributes["digest"], **{teacher.name: teacher.digest for teacher in loaded}}
    if wanted[""] != own[""]:
        taken = step.get("teachers")
        if step.get("operation") != "copy" or not isinstance(taken, dict) or set(taken) != set(names):
            return False
        own = {"": step.get("digest"), **taken}
    most = store.num_views if wanted[""] == store.attributes["digest"] else step["num_views"][1]
    views = most if num_views is None else num_views
    wider = store.num_views < views or len(own) < len(wanted)
    return wider and store.num_views <= views and own.items() <= wanted.items()
