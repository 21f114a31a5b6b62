"""Sending a store to a bucket, or to a repository of a hub, file by file: no copy of the whole is made on the way.

Rows go first, then what makes a teacher a teacher, and the store's own document last. What is there already is left
alone, so that an interrupted push goes on; a store that is there and is the same gets the teachers that it lacks.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from logitbank.stores.format.address import is_web, is_zip, shown
from logitbank.stores.format.documents import Document, examples_sha256
from logitbank.stores.format.schema import CELL_ARRAYS, StoreError
from logitbank.stores.read.teacher import Teacher
from logitbank.stores.share.bucket import Bucket
from logitbank.stores.share.fetch import Fetcher, row_files
from logitbank.stores.share.refusals import client_errors
from logitbank.stores.share.sources import file_system
from logitbank.stores.share.web import TEACHERS_FILE

_ROUNDS = 5  # of a commit that others come before


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """What is sent: the store as its documents say it, and the rows they vouch for."""

    documents: Mapping[str, Document]  # by folder, of the root and of every teacher
    teachers: Sequence[Teacher]
    num_views: int

    @property
    def groups(self) -> list[str]:
        """Folders that become one thing at once: the teachers, and the root last."""
        return [*(f"teachers/{teacher.name}" for teacher in self.teachers), ""]

    def digest(self, group: str) -> str:
        """What the document of a group vouches for."""
        return str(self.documents[group]["attributes"]["digest"])

    @property
    def examples(self) -> str:
        """What all its teachers must name."""
        return examples_sha256({f: d for f, d in self.documents.items() if not f.startswith("teachers/")})

    def others(self) -> Iterable[str]:
        """Folders of all documents that are not a group's own."""
        return sorted(set(self.documents) - set(self.groups))


def check_writable(url: str) -> None:
    """Raise StoreError when stores cannot be put at a URL."""
    if is_web(url):
        raise StoreError(f"{shown(url)}: a web server is read only; copy to a folder, .zarr.zip, s3://, gs:// or hf://")
    if is_zip(url):
        raise StoreError(f"{shown(url)}: expected a folder's address; copy to a local .zarr.zip and upload that file")
    file_system(url)


def push(fetcher: Fetcher, parcel: Parcel, url: str, *, num_threads: int) -> None:
    """Send a store whose documents, keys, constants and commits the fetcher has brought already.

    Args:
        fetcher: Brings the rows, one file after the other, each compared with its checksum.
        parcel: What to send.
        url: Where to.
        num_threads: Files under way at a time.

    Raises:
        StoreError: Another store is there, or another push is under way; a row is damaged; the place refuses.
    """
    try:
        with client_errors(shown(url)):
            bucket = Bucket(url)
            if bucket.is_repository:
                fetcher.rows(parcel.teachers, parcel.num_views)
                _commit(bucket, fetcher, parcel)
            else:
                _upload(bucket, fetcher, parcel, num_threads)
    except OSError as error:
        raise StoreError(f"cannot write {shown(url)}: {error}; run the same command again") from error


def _upload(bucket: Bucket, fetcher: Fetcher, parcel: Parcel, num_threads: int) -> None:
    _claim(bucket, parcel)

    def send_on(path: str) -> None:
        with client_errors(bucket.name):
            bucket.put(fetcher.folder / path, path)
        fetcher.let_go(path)

    jobs = [partial(bucket.put, fetcher.folder / path, path) for path in _small_files(fetcher, parcel)]
    jobs += [partial(bucket.put_bytes, _text(fetcher, parcel, f), f"{f}/zarr.json") for f in parcel.others()]
    with ThreadPoolExecutor(num_threads) as pool:
        for _ in pool.map(lambda job: job(), jobs):
            pass
    fetcher.rows(parcel.teachers, parcel.num_views, arrived=send_on)
    for group in parcel.groups:
        if not group:
            bucket.write_names()
        bucket.publish(group, parcel.digest(group), _text(fetcher, parcel, group))


def _claim(bucket: Bucket, parcel: Parcel) -> None:
    """Mark the address as this push's, and see what is there; StoreError when it cannot become this store."""
    fresh = []
    try:
        for group in reversed(parcel.groups):
            if bucket.claim(group, parcel.digest(group)):
                fresh.append(group)
        bucket.look()
        _check_others(bucket, parcel)
    except StoreError:
        for group in fresh:
            bucket.withdraw(group, parcel.digest(group))
        raise


def _check_others(bucket: Bucket, parcel: Parcel) -> None:
    """Raise StoreError when a teacher is there that answers other examples; an old one beside its root is believed."""
    is_there = bucket.check("", parcel.digest(""))
    for name in bucket.others([teacher.name for teacher in parcel.teachers]):
        found = (bucket.attributes(f"teachers/{name}") or {}).get("examples_sha256")
        if found != parcel.examples and (found is not None or not is_there):
            raise StoreError(
                f"{bucket.name} holds a teacher {name!r} of other examples or views, left by another copy; finish that"
                f" one, copy to another address, or remove {bucket.name}/teachers/{name} first"
            )


def _small_files(fetcher: Fetcher, parcel: Parcel) -> list[str]:
    """All files but documents and rows: keys, labels, constants, and the cells of the views that are sent."""
    left_out = {
        f"teachers/{teacher.name}/{kind}/c/{view}/"
        for teacher in parcel.teachers
        for kind in CELL_ARRAYS
        for view in range(parcel.num_views, teacher.num_views)
    }
    files = (path for path in fetcher.wanted if not path.endswith("zarr.json"))
    return sorted(path for path in files if not path.startswith(tuple(left_out)))


def _text(fetcher: Fetcher, parcel: Parcel, folder: str) -> bytes:
    """A document as it is sent: as it came, when it is that one."""
    document = parcel.documents[folder]
    came = (fetcher.folder / folder / "zarr.json").read_bytes()
    return came if json.loads(came) == document else json.dumps(document, indent=2, allow_nan=False).encode()


def _commit(bucket: Bucket, fetcher: Fetcher, parcel: Parcel) -> None:
    """Put all files into a repository of the Hub at once; one by one, each would be a commit that waits for the others.

    A commit names the one it was made after; when others were faster, what is there is looked at again.
    """
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import HfHubHTTPError

    where = bucket.fs.resolve_path(bucket.root)
    prefix = f"{where.path_in_repo}/" if where.path_in_repo else ""
    hub = HfApi(endpoint=bucket.fs.endpoint, token=bucket.fs.token)
    for attempt in range(_ROUNDS):
        parent = hub.repo_info(where.repo_id, repo_type=where.repo_type, revision=where.revision).sha
        bucket.look()
        for group in parcel.groups:
            bucket.check(group, parcel.digest(group))
        _check_others(bucket, parcel)
        operations = [
            CommitOperationAdd(
                path_in_repo=prefix + path, path_or_fileobj=data if isinstance(data, bytes) else str(data)
            )
            for path, data in _contents(bucket, fetcher, parcel).items()
            if not bucket.has(data, path)
        ]
        message = f"Add {prefix.rstrip('/') or 'a store'} with cli copy"
        whole = {"repo_type": where.repo_type, "revision": where.revision, "parent_commit": parent}
        try:
            if operations:
                hub.create_commit(where.repo_id, operations, commit_message=message, **whole)
            break
        except HfHubHTTPError as error:
            if error.response.status_code not in (409, 412) or attempt + 1 == _ROUNDS:
                raise
    bucket.fs.invalidate_cache()


def _contents(bucket: Bucket, fetcher: Fetcher, parcel: Parcel) -> dict[str, Path | bytes]:
    """All files of a store by path, where they lie or as they are."""
    names = [teacher.name for teacher in parcel.teachers]
    rows = [path for teacher in parcel.teachers for path in row_files(teacher, parcel.num_views)]
    contents: dict[str, Path | bytes] = {
        path: fetcher.folder / path for path in [*_small_files(fetcher, parcel), *rows]
    }
    contents |= {f"{folder}/zarr.json".lstrip("/"): _text(fetcher, parcel, folder) for folder in parcel.documents}
    return {**contents, TEACHERS_FILE: json.dumps(sorted({*names, *bucket.others(names)})).encode()}
