"""One teacher of a store in a bucket, while machines that share no folder write it.

Nothing counts there before the document beside it, which is created last and once: that of a group (the store, a
teacher) for all below it, a cell's commit for the cell. Until a group's document is there, it has beside it

    unfinished.txt      the digest of what was begun: whoever created this file decided for all
    begun/<digest>/     documents, keys and constants of it, and of what others began in vain
    claims/             cells that somebody began, created once each; they save work, and no more
"""

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from logitbank.stores.files import write_file
from logitbank.stores.format.address import shown
from logitbank.stores.format.documents import read_document
from logitbank.stores.format.layout import file_name
from logitbank.stores.format.schema import CELL_ARRAYS, ROW_ARRAYS, Cell, StoreError, check_name
from logitbank.stores.read.reader import open_store
from logitbank.stores.share.bucket import MARK, Bucket
from logitbank.stores.share.fetch import Fetcher, NotThereError
from logitbank.stores.share.push import check_writable
from logitbank.stores.share.refusals import client_errors
from logitbank.stores.share.sources import ATTEMPTS, PAUSE, ObjectSource
from logitbank.stores.share.widen import remove

_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGREED = ".begun"  # file of a folder: the digest of the teacher that was begun there
_ROUNDS = 5  # of a beginning that others come before
_THREADS = 16


class Address:
    """A teacher at an address, for writing it.

    Args:
        url: The address of the store.
        name: The teacher's name.
    """

    def __init__(self, url: str, name: str) -> None:
        check_writable(url)
        self.name, self._url, self._group = check_name(name, "teacher"), url, f"teachers/{name}"
        self._bucket = Bucket(url)
        if self._bucket.is_repository:
            raise StoreError(
                f"{shown(url)}: a repository takes whole stores; write to a folder, then cli copy it there"
            )

    def is_finished(self) -> bool:
        """Whether the teacher is there."""
        with self._asking():
            return self._digest(self._group) is not None

    def agrees(self, folder: Path) -> bool:
        """Whether a folder is what `begin` would make."""
        try:
            mine = read_document(folder.resolve(), "")["attributes"]["digest"]
            begun = (folder / _AGREED).read_text()
        except (OSError, StoreError):
            return False
        with self._asking():
            return self._digest("") == mine and (
                self._digest(self._group) is not None or self._begun(self._group) == begun
            )

    def begin(self, folder: Path, begin: Callable[[Path], object]) -> None:
        """Fill a folder with what is begun, or finished, there: documents, keys and constants.

        Args:
            folder: That is not there, or holds what a killed process made of it.
            begin: Begins the store and its teacher in a folder that may hold the store; called when nobody has.
        """
        for attempt in range(_ROUNDS):
            remove(folder)
            try:
                with self._asking():
                    self._begin(folder, begin)
                return
            except NotThereError:  # somebody has finished meanwhile what was begun
                if attempt + 1 == _ROUNDS:
                    raise

    def _begin(self, folder: Path, begin: Callable[[Path], object]) -> None:
        if self._digest("") is None:
            if self._begun("") is None:
                begin(folder)
                self._offer(folder, "")
            self._publish_root(folder)
        if self._digest(self._group) is None and self._begun(self._group) is None:
            self._bring(folder, [])
            begin(folder)
            self._offer(folder, self._group)
        self._bring(folder, [self.name])

    def _offer(self, folder: Path, group: str) -> None:
        """Put what was begun here beside what others have begun; whoever makes the mark has decided."""
        digest = _digest_here(folder, group)
        for path in _small_files(folder, group):
            inside = path.removeprefix(f"{group}/")
            self._put(folder / path, _below(group, f"begun/{digest}/{inside}"))
        self._bucket.create(_below(group, MARK), str(digest).encode())
        if self._digest(group) is not None:  # it was finished meanwhile, and its mark taken away
            self._tidy(group)

    def _publish_root(self, folder: Path) -> None:
        """Make what was begun of the root the store's, whoever began it."""
        self._bring(folder, [])
        self._bucket.look()
        for path in _small_files(folder, ""):
            if path != "zarr.json":
                self._bucket.put(folder / path, path)
        self._bucket.create("zarr.json", (folder / "zarr.json").read_bytes())
        self._bucket.check("", str(_digest_here(folder, "")))
        self._tidy("")

    def _bring(self, folder: Path, teachers: Sequence[str]) -> None:
        """Fetch documents, keys and constants, finished or begun, unless they are here."""
        groups = ["", *(f"teachers/{name}" for name in teachers)]
        begun = {group: self._begun(group) for group in groups if self._digest(group) is None}
        there = {group: begun.get(group) or self._digest(group) for group in groups}
        if any(_digest_here(folder, group) != digest for group, digest in there.items()):
            remove(folder)
            folder.mkdir(parents=True)
            fetcher = Fetcher(_Begun(self._url, begun), folder, num_threads=_THREADS)
            store, names, _ = fetcher.documents(teachers, unfinished=True)
            fetcher.statics(store, [store.teacher(name) for name in names])
        if teachers:
            write_file(folder / _AGREED, str(there[self._group]).encode())

    def committed(self) -> set[Cell]:
        """The cells that are there."""
        with self._asking():
            found = [path.split("/") for path in self._bucket.below(f"{self._group}/committed/c")]
        return {Cell(int(at[0]), int(at[1])) for at in found if len(at) == 2 and "".join(at).isdecimal()}

    def is_committed(self, cell: Cell) -> bool:
        """Whether a cell is there."""
        with self._asking():
            return self._bucket.read(f"{self._group}/committed/{file_name(cell)}") is not None

    def claim(self, what: str) -> bool:
        """Take a name that nobody has; it stays taken."""
        own, path = secrets.token_hex(16).encode(), f"{self._group}/claims/{what}"
        with self._asking():
            self._bucket.create(path, own)
            return self._bucket.read(path) == own

    def send(self, folder: Path, cell: Cell, files: Sequence[Path]) -> None:
        """Send a cell.

        Args:
            folder: Of the store here.
            cell: View and block.
            files: Its own, the commit last.

        Raises:
            StoreError: Other rows are there, or were sent at the same time: then the cell is nobody's.
        """
        for attempt in range(ATTEMPTS):
            try:
                with self._asking():
                    self._send(folder, cell, files)
                return
            except OSError as error:
                if attempt + 1 == ATTEMPTS:
                    raise StoreError(f"cannot write {shown(self._url)}: {error}; run the same command again") from error
                time.sleep(PAUSE * 2**attempt)

    def _send(self, folder: Path, cell: Cell, files: Sequence[Path]) -> None:
        paths = [file.relative_to(folder).as_posix() for file in files]
        commit = files[-1].read_bytes()
        found = self._bucket.read(paths[-1])
        if found is None:
            for file, path in zip(files[:-1], paths[:-1], strict=True):
                self._put(file, path)
            self._bucket.create(paths[-1], commit)
            found = self._bucket.read(paths[-1])
            if found != commit:
                self._bucket.remove(paths[-1])  # nobody knows whose rows lie there now
        if found != commit:
            raise StoreError(
                f"{shown(self._url)}: view {cell.view} block {cell.block} was given other rows than those to be sent:"
                " two writers disagree; use one teacher on one kind of machine, or another name; then run again"
            )

    def gather(self, folder: Path) -> None:
        """Bring all commits, and the rows that are not here, each compared with its checksum."""
        with self._asking():
            fetcher = Fetcher(ObjectSource(self._url), folder, num_threads=_THREADS)
            store = open_store(folder, allow_incomplete=True)
            fetcher.rows([fetcher.cells(store, self.name)], store.num_views)

    def bring_finished(self, folder: Path) -> None:
        """Replace the teacher's unfinished document here by the one that is there."""
        with self._asking():
            data = self._bucket.read(f"{self._group}/zarr.json")
        if data is not None:
            write_file(folder / self._group / "zarr.json", data)

    def finish(self, folder: Path) -> None:
        """Make a teacher that is finished here, and whose cells are all there, finished there; unless it is."""
        top = f"{self._group}/zarr.json"
        with self._asking():
            if self._digest(self._group) is None:
                self._bucket.look()
                for path in _small_files(folder, self._group):
                    if path != top:
                        self._bucket.put(folder / path, path)
                self._bucket.create(top, (folder / top).read_bytes())
            self._bucket.write_names()
            self._tidy(self._group)

    def _tidy(self, group: str) -> None:
        """Remove what means nothing beside a finished group; the mark last, so that this is gone on with."""
        for name in ("begun", "claims"):
            top = _below(group, name)
            for path in self._bucket.below(top):
                self._bucket.remove(f"{top}/{path}")
        self._bucket.remove(_below(group, MARK))

    def _digest(self, group: str) -> str | None:
        """Of a finished group."""
        found = self._bucket.attributes(group)
        return None if found is None else str(found.get("digest"))

    def _begun(self, group: str) -> str | None:
        """The digest of what was begun of a group."""
        mark = self._bucket.read(_below(group, MARK))
        if mark is None:
            return None
        digest = mark.decode("ascii", "replace")
        if _DIGEST.fullmatch(digest) and self._bucket.read(_below(group, f"begun/{digest}/zarr.json")) is not None:
            return digest
        if self._digest(group) is not None:
            return None
        raise StoreError(
            f"{shown(self._url)} holds an unfinished copy, which may be under way; wait for it or finish it, choose"
            " another address, or remove it first"
        )

    def _put(self, file: Path, path: str) -> None:
        self._bucket.fs.put_file(str(file), f"{self._bucket.root}/{path}")

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        with client_errors(shown(self._url)):
            yield


class _Begun(ObjectSource):
    """A store of which some groups, by the digests given, are only begun."""

    def __init__(self, url: str, begun: Mapping[str, str | None]) -> None:
        super().__init__(url)
        self._below = {group: f"begun/{digest}/" for group, digest in begun.items() if digest is not None}

    def fetch(self, path: str, target: Path, limit: int) -> None:
        parts = path.split("/")
        group = "/".join(parts[:2]) if parts[0] == "teachers" and len(parts) > 2 else ""
        inside = path.removeprefix(f"{group}/")
        super().fetch(_below(group, self._below.get(group, "") + inside), target, limit)


def _digest_here(folder: Path, group: str) -> str | None:
    """Of a group in a folder, finished or not."""
    with contextlib.suppress(StoreError):
        return str(read_document(folder.resolve(), group)["attributes"]["digest"])
    return None


def _small_files(folder: Path, group: str) -> list[str]:
    """Paths of a group's documents, keys and constants: all of its files but cells."""
    found = []
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        own = parts[:2] == tuple(group.split("/")) if group else parts[0] != "teachers" or len(parts) == 2
        is_cell = group and len(parts) > 4 and parts[2] in {*ROW_ARRAYS, *CELL_ARRAYS}
        if own and not is_cell and file.is_file() and not any(part.startswith(".") for part in parts):
            found.append("/".join(parts))
    return found


def _below(group: str, name: str) -> str:
    return f"{group}/{name}".lstrip("/")
