"""One address in a bucket: what lies there, and the marks by which pushes at the same time, or killed, do not mix.

A group of a store (the root, a teacher) belongs there to the push whose digest its document names. Until that document
is there, `unfinished.txt` beside it says whose files these are. Both are created, never replaced, by the service's own
condition where it has one, and read again afterwards in any case.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from logitbank.stores.format.documents import MAX_DOCUMENT_BYTES
from logitbank.stores.format.plain_json import parse_json
from logitbank.stores.format.schema import StoreError
from logitbank.stores.share.sources import ObjectSource
from logitbank.stores.share.web import TEACHERS_FILE

MARK = "unfinished.txt"
_TRIES = 20  # to write a list of teachers that others write too
_PAUSE = 0.05


class Bucket:
    """The folder behind an address, for writing.

    Args:
        url: The address.
    """

    def __init__(self, url: str) -> None:
        self._source = ObjectSource(url)
        self.name, self.fs, self.root = self._source.name, self._source.fs, self._source.top
        self._there: dict[str, Any] = {}

    @property
    def is_repository(self) -> bool:
        """Whether it lies in a repository of the Hugging Face Hub, which takes commits of many files."""
        return self.name.startswith("hf://") and hasattr(self.fs.resolve_path(self.root), "repo_id")

    def look(self) -> None:
        """List what is there now."""
        self.fs.invalidate_cache()
        found = self.fs.find(self.root, detail=True)
        self._there = {str(path).removeprefix(f"{self.root}/"): info for path, info in found.items()}

    def put(self, file: Path, path: str) -> None:
        """Upload a file, unless the listing says that this very file is there."""
        if not self.has(file, path):
            self.fs.put_file(str(file), f"{self.root}/{path}")

    def put_bytes(self, data: bytes, path: str) -> None:
        """As `put`."""
        if not self.has(data, path):
            self.fs.pipe_file(f"{self.root}/{path}", data)

    def has(self, content: Path | bytes, path: str) -> bool:
        """Whether the listing says that this very file is there."""
        return _is_there(content, self._there.get(path))

    def others(self, names: Sequence[str]) -> list[str]:
        """Teachers that are there and not among `names`."""
        listed = (path.split("/") for path in self._there)
        found = {parts[1] for parts in listed if len(parts) == 3 and parts[0] == "teachers" and parts[2] == "zarr.json"}
        return sorted(found - set(names))

    def attributes(self, group: str) -> dict[str, Any] | None:
        """Attributes of a group's document; empty when nobody can read it, None when it is not there."""
        data = self.read(_below(group, "zarr.json"))
        if data is None:
            return None
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return dict(parse_json(data, self.name)["attributes"])
        return {}

    def check(self, group: str, digest: str) -> bool:
        """Whether a group is there; StoreError when another one is."""
        found = self.attributes(group)
        if found is not None and found.get("digest") != digest:
            where = f"{self.name}/{_below(group, 'zarr.json')}"
            raise StoreError(f"{where} is there and is another; copy to another address, or remove it first")
        return found is not None

    def claim(self, group: str, digest: str) -> bool:
        """Take the place of a group for the push of this digest; StoreError when it is another's.

        Returns:
            Whether there was neither the group nor a mark of an earlier push of the same.
        """
        mark, own = _below(group, MARK), digest.encode()
        if self.check(group, digest):
            self.remove(mark)  # whatever it says, it means nothing any more
            return False
        earlier = self.read(mark) == own
        if not earlier:
            self.create(mark, own)
            if self.read(mark) != own:
                raise self._unfinished(group)
        try:
            self.check(group, digest)  # another push may have ended just before the mark was made
        except StoreError:
            self.remove(mark)
            raise
        return not earlier

    def withdraw(self, group: str, digest: str) -> None:
        """Take back what `claim` has just marked, before any file was sent."""
        if self.read(_below(group, MARK)) == digest.encode():
            self.remove(_below(group, MARK))

    def publish(self, group: str, digest: str, document: bytes) -> None:
        """Write the document that makes a group one, last of its files, and take the mark away."""
        if not self.check(group, digest):
            self.claim(group, digest)
            self.create(_below(group, "zarr.json"), document)
            if not self.check(group, digest):
                raise OSError(f"{_below(group, 'zarr.json')} was written and is not there")
        self.remove(_below(group, MARK))

    def write_names(self) -> None:
        """Write the list of teachers for places that cannot list folders, whoever else is adding some.

        The list is replaced only while it is what was read before the folder was listed, where the service knows that
        condition; and the folder is listed again afterwards.
        """
        path = f"{self.root}/{TEACHERS_FILE}"
        for attempt in range(_TRIES):
            self.fs.invalidate_cache()
            try:
                found, tag = self.read(TEACHERS_FILE), self.fs.info(path).get("ETag")
            except FileNotFoundError:
                found, tag = None, None
            names = json.dumps(self._source.teachers()).encode()
            if found == names:
                return
            condition: dict[str, Any] = {"mode": "create"} if found is None else {}
            if found is not None and tag and "s3" in self.fs.protocol and attempt + 1 < _TRIES:
                condition = {"IfMatch": tag}
            try:
                self.fs.pipe_file(path, names, **condition)
            except OSError:  # another one was faster
                if attempt + 1 == _TRIES:
                    raise
                time.sleep(_PAUSE)

    def create(self, path: str, data: bytes) -> None:
        """Write a file if nobody has; whoever calls looks at what lies there then."""
        try:
            self.fs.pipe_file(f"{self.root}/{path}", data, mode="create")
        except FileExistsError:  # it was there, and may be gone again: a mark goes when what it marks is finished
            return
        except Exception:
            if self.read(path) is None:
                raise

    def read(self, path: str) -> bytes | None:
        """A small file as it is now; None when it is not there."""
        try:
            return bytes(self.fs.cat_file(f"{self.root}/{path}", start=0, end=MAX_DOCUMENT_BYTES))
        except FileNotFoundError:
            return None

    def remove(self, path: str) -> None:
        """Remove a file, if it is there and may be removed."""
        with contextlib.suppress(FileNotFoundError, PermissionError):  # who may write may not always remove
            self.fs.rm_file(f"{self.root}/{path}")

    def below(self, folder: str) -> list[str]:
        """Paths of all files that are below a folder now, as seen from it."""
        top = f"{self.root}/{folder}"
        self.fs.invalidate_cache()
        return [str(path).removeprefix(f"{top}/") for path in self.fs.find(top)]

    def _unfinished(self, group: str) -> StoreError:
        what = f"teacher {group.removeprefix('teachers/')!r}" if group else "store"
        return StoreError(
            f"{self.name} holds an unfinished copy of another {what}, which may be under way; wait for it or finish it,"
            " copy to another address, or remove it first"
        )


def _below(group: str, name: str) -> str:
    return f"{group}/{name}".lstrip("/")


def _is_there(content: Path | bytes, found: Mapping[str, Any] | None) -> bool:
    """Whether a listing says that this very file is there, by any of the sums that object stores and hubs list."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if found is None or found.get("size") != size:
        return False
    sums = {str(found.get(key, "")).strip('"') for key in ("ETag", "md5", "md5Hash", "blob_id")}
    lfs = found.get("lfs")
    if isinstance(lfs, Mapping):
        sums.add(str(lfs.get("sha256")))
    data = content if isinstance(content, bytes) else content.read_bytes()
    git = hashlib.sha1(b"blob %d\0" % len(data), usedforsecurity=False)
    git.update(data)
    own = {hashlib.md5(data, usedforsecurity=False).hexdigest(), git.hexdigest(), hashlib.sha256(data).hexdigest()}
    return bool(own & sums)
