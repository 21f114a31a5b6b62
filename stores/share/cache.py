"""Copies of stores from elsewhere, kept on this disk: fetched once, looked at whenever they are asked for, and mended.

An entry is called after the digests of what it is a copy of. One that was emptied, damaged or replaced is filled again
from what is left of it, of other entries of the same store, and of the source. Who needs an entry that another process
is filling waits for it.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from logitbank.stores.files import write_file, writing
from logitbank.stores.folders import default_cache
from logitbank.stores.format.address import is_url, is_zip, shown, spelled
from logitbank.stores.format.documents import read_document
from logitbank.stores.format.schema import StoreError
from logitbank.stores.locks import locked, scratch
from logitbank.stores.read.lineage import last_step
from logitbank.stores.read.reader import open_store
from logitbank.stores.share.copy import NUM_THREADS, digests_of, fetch_store
from logitbank.stores.share.fetch import OnProgress, row_files
from logitbank.stores.share.sources import Source, fetch_zip, open_source
from logitbank.stores.share.widen import link_files, remove
from logitbank.stores.share.zip_file import open_zip
from logitbank.stores.write.building import build

_PLACE = ".place"  # of the file beside an entry that says where it was copied from last


def local_store(
    place: str | Path,
    cache: Path | None = None,
    *,
    num_views: int | None = None,
    teachers: Sequence[str] | None = None,
    report: OnProgress | None = None,
) -> Path:
    """The folder of a store that may be elsewhere: copied once into a cache.

    Args:
        place: A folder, which is returned as it is, or a .zip file or URL.
        cache: Folder of copies; by default $LOGITBANK_CACHE, or ~/.cache/logitbank.
        num_views: As in `copy_store`.
        teachers: As in `copy_store`.
        report: As in `copy_store`.

    Raises:
        StoreError: The place cannot be read, or the cache cannot be written.
    """
    if not is_url(place) and not is_zip(place):
        return Path(place)
    wanted = _Wanted(cache or default_cache(), num_views, None if teachers is None else tuple(teachers), report)
    if is_url(place) and is_zip(place):
        entry = wanted.of_zip(spelled(place))
    else:
        with open_source(place) as origin:
            entry = wanted.of_source(origin)
    if place_of(entry) != shown(place):
        with writing(str(entry)):
            write_file(entry.with_suffix(_PLACE), shown(place).encode())
    return entry


@contextlib.contextmanager
def fresh_store(place: str | Path) -> Iterator[Path]:
    """The folder of a store as its place has it now: what is elsewhere is copied for a while, past every cache."""
    if not is_url(place) and not is_zip(place):
        yield Path(place)
        return
    with scratch() as folder:
        yield local_store(place, folder)


def place_of(path: str | Path) -> str:
    """How people call the store at a path: of an entry of a cache, where it was copied from, without secrets."""
    with contextlib.suppress(OSError, ValueError):
        return Path(path).with_suffix(_PLACE).read_text()
    return str(path)


class _Wanted:
    """What is wanted of a store, and the folder of entries."""

    def __init__(
        self, cache: Path, num_views: int | None, teachers: tuple[str, ...] | None, report: OnProgress | None
    ) -> None:
        self._cache, self._num_views, self._teachers, self._report = cache, num_views, teachers, report

    def of_zip(self, url: str) -> Path:
        """The entry of a zip file that is elsewhere, which is fetched only when the server has another version."""
        name = _short_hash((url.partition("?")[0], _lasting(url), self._num_views, self._teachers))
        note = self._cache / f"{name}.json"
        noted = _read_note(note)
        entry = self._cache / f"{noted['entry']}.zarr" if noted else None
        known = noted["version"] if noted and entry and self._is_sound(entry, noted["digests"]) else {}
        with scratch() as folder:
            version = fetch_zip(url, folder / "store.zip", known)
            if version is None and entry is not None:
                return entry
            with open_zip(folder / "store.zip", shown(url)) as origin:
                entry = self.of_source(origin)
                digests = digests_of(origin, self._teachers)
        text = json.dumps({"entry": entry.stem, "version": version, "digests": digests})
        with writing(str(note)):
            write_file(note, text.encode())
        return entry

    def of_source(self, origin: Source) -> Path:
        """The entry of a source, whole and sound."""
        digests = digests_of(origin, self._teachers)
        name = _short_hash((digests, self._num_views))
        entry = self._cache / f"{name}.zarr"
        if not self._is_sound(entry, digests):
            with locked(self._cache / f"{name}.entry"):
                if not self._is_sound(entry, digests):
                    self._fill(origin, entry, digests)
        return entry

    def _fill(self, origin: Source, entry: Path, digests: Mapping[str, str]) -> None:
        old = entry.with_suffix(".old")
        with writing(str(entry)):
            if os.path.lexists(entry):
                remove(old)
                entry.rename(old)
        akin = [old, *(path for path in sorted(self._cache.glob("*.zarr")) if digests[""] in _origins(path))]

        def make(built: Path) -> None:
            for path in akin:
                link_files(path, built)
            fetch_store(origin, built, self._num_views, self._teachers, NUM_THREADS, self._report)

        build(entry, make, request={"operation": "cache", "store": entry.stem}, same=lambda there: True)
        remove(old)

    def _is_sound(self, entry: Path, digests: Mapping[str, str]) -> bool:
        """Whether all files of what is wanted are there, with the documents of the store that it was copied from."""
        try:
            store = open_store(entry)
            teachers = [store.teacher(name) for name in store.teachers]
            found = {"": store.attributes["digest"], **{teacher.name: teacher.digest for teacher in teachers}}
            step = last_step(store.attributes)
            if found != digests:
                of = {"": step.get("digest"), **step.get("teachers", {})}
                if of != digests or {*found} != {*digests} or self._num_views not in (None, store.num_views):
                    return False
            files = [file for teacher in teachers for file in row_files(teacher, store.num_views)]
            statics = all((entry / folder / "c").is_dir() for folder in store.static_arrays)
            return statics and not any(t.uncommitted() for t in teachers) and all((entry / f).is_file() for f in files)
        except (StoreError, OSError, TypeError, AttributeError):
            return False


def _short_hash(value: object) -> str:
    return hashlib.sha256(repr(value).encode()).hexdigest()[:16]


def _lasting(url: str) -> str:
    """What an address says behind the question mark, without a signature that is another one each time."""
    pairs = url.partition("?")[2].split("&")
    return "&".join(pair for pair in pairs if not pair.lower().startswith(("x-amz-", "x-goog-")))


def _read_note(note: Path) -> dict[str, dict[str, str]]:
    """What was noted of a zip file; empty when nothing sensible is there."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(note.read_bytes())
        if isinstance(found["entry"], str) and found["entry"].isalnum():
            return {key: found[key] for key in ("entry", "version", "digests")}
    return {}


def _origins(entry: Path) -> list[object]:
    """Digests of the roots of the store that an entry is, and of the one that it may be a part of."""
    with contextlib.suppress(StoreError):
        attributes = read_document(entry.resolve(), "")["attributes"]
        return [attributes.get("digest"), last_step(attributes).get("digest")]
    return []
