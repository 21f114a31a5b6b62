"""Putting a store, whole and checked, into one zip file or into a bucket."""

import hashlib
import json
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

from stores.reader import Store, open_store
from stores.schema import StoreError
from stores.sources import TEACHERS_FILE, client_errors, file_system

_OF_A_TEACHER = ("teachers", "zarr.json")  # with its name between
_EPOCH = (1980, 1, 1, 0, 0, 0)


def write_zip(folder: Path, path: Path) -> None:
    """Write all files below `folder` into one zip file, not compressed again; equal stores give equal files."""
    with path.open("xb") as handle, zipfile.ZipFile(handle, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
            entry.external_attr = 0o100644 << 16
            entry.file_size = file.stat().st_size
            with file.open("rb") as data, archive.open(entry, "w") as out:
                while piece := data.read(1 << 20):
                    out.write(piece)


def check_writable(url: str) -> None:
    """Raise StoreError when stores cannot be put at a URL."""
    if url.startswith(("http://", "https://")):
        raise StoreError(f"{url}: a web server is read only; copy to a folder, .zarr.zip, s3://, gs:// or hf://")
    if url.endswith(".zip"):
        raise StoreError(f"{url}: expected a folder's address; copy to a local .zarr.zip first and upload that file")
    file_system(url)


def send(folder: Path, url: str, *, num_threads: int) -> None:
    """Upload a store: rows first, then what makes a teacher a teacher, and the store's own document last.

    Objects that are there with the same size and MD5 are left alone, so that an interrupted upload goes on; a store
    that is there and has the same examples and views gets the teachers that it lacks. In a repository of the Hugging
    Face Hub all of it is one commit.
    """
    fs, root = file_system(url)
    store = open_store(folder, allow_incomplete=True)
    names = store.teachers
    try:
        with client_errors(url):
            there = {str(name): info for name, info in fs.find(root, detail=True).items()}
            _check_target(fs, root, url, there, store)
            documents = ["zarr.json", *(f"teachers/{name}/zarr.json" for name in names)]
            files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
            listed = (PurePosixPath(name.removeprefix(f"{root}/")).parts for name in there)
            others = {parts[1] for parts in listed if len(parts) == 3 and (parts[0], parts[2]) == _OF_A_TEACHER}
            every = sorted({*names, *others})
            teachers_file = json.dumps(every).encode()
            if url.startswith("hf://") and hasattr(fs.resolve_path(root), "repo_id"):
                whole: dict[str, Path | bytes] = {TEACHERS_FILE: teachers_file, **{f: folder / f for f in files}}
                _commit(fs, root, {f: c for f, c in whole.items() if not _is_there(c, there.get(f"{root}/{f}"))})
                return
            jobs = [partial(_put, fs, folder / f, f"{root}/{f}", there) for f in files if f not in documents]
            with ThreadPoolExecutor(num_threads) as pool:
                for _ in pool.map(lambda job: job(), jobs):
                    pass
            for document in reversed(documents[1:]):
                _put(fs, folder / document, f"{root}/{document}", there)
            fs.pipe_file(f"{root}/{TEACHERS_FILE}", teachers_file)
            _put(fs, folder / "zarr.json", f"{root}/zarr.json", there)
    except OSError as error:
        raise StoreError(f"cannot write {url}: {error}; run the same command again") from error


def _check_target(fs: Any, root: str, url: str, there: Mapping[str, Any], store: Store) -> None:
    """Raise StoreError when the URL holds another store, or another teacher of the same name."""
    expected = {"zarr.json": store.attributes["digest"]}
    expected |= {f"teachers/{name}/zarr.json": store.teacher(name).digest for name in store.teachers}
    for path, wanted in expected.items():
        if f"{root}/{path}" not in there:
            continue
        try:
            found = json.loads(fs.cat_file(f"{root}/{path}"))["attributes"]["digest"]
        except (ValueError, KeyError, TypeError):
            found = None
        if found != wanted:
            raise StoreError(f"{url}/{path} is there and is another; copy to another address, or remove it first")


def _put(fs: Any, file: Path, path: str, there: Mapping[str, Any]) -> None:
    if not _is_there(file, there.get(path)):
        fs.put_file(str(file), path)


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


def _commit(fs: Any, root: str, files: Mapping[str, Path | bytes]) -> None:
    """Put files into a repository of the Hub at once; one by one, each would be a commit that waits for the others."""
    if not files:
        return
    from huggingface_hub import CommitOperationAdd, HfApi

    where = fs.resolve_path(root)
    prefix = f"{where.path_in_repo}/" if where.path_in_repo else ""
    operations = [
        CommitOperationAdd(path_in_repo=prefix + name, path_or_fileobj=str(data) if isinstance(data, Path) else data)
        for name, data in files.items()
    ]
    HfApi(endpoint=fs.endpoint, token=fs.token).create_commit(
        where.repo_id,
        operations,
        commit_message=f"Add {prefix.rstrip('/') or 'a store'} with cli copy",
        repo_type=where.repo_type,
        revision=where.revision,
    )
    fs.invalidate_cache()
