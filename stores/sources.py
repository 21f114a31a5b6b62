"""Places that a store can be read from: a folder, a zip file, a web server, anything fsspec knows.

A source copies single files whose names the store's own documents give: no listing is needed, no path comes from
the other side, and nothing longer than the format allows is taken. Clients with threads of their own are used in
the calling process only, and never by whoever reads rows.
"""

import contextlib
import http.client
import json
import re
import shutil
import stat
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from stores.building import scratch
from stores.files import regular_file
from stores.reader import teacher_names
from stores.schema import StoreError, check_name

TEACHERS_FILE = "teachers.json"  # names of the teachers, for places that cannot list folders; a hint, never trusted
EXTRAS = {"s3": "s3", "gs": "gs", "gcs": "gs", "hf": "hf"}
PROTOCOLS = (*EXTRAS, "memory")
_PIECE = 1 << 20
_TIMEOUT = 60
_MAX_LISTING = 1 << 20
_COLLAPSED = re.compile(r"^(https?|s3|gs|gcs|hf|memory):/(?=[^/])")
_HREF = re.compile(r'href="(?:\./)?([^"/?#]{1,100})/"')


class Source(Protocol):
    """Where a store's files come from."""

    name: str

    @property
    def root(self) -> Path | None:
        """The folder that it is, if it is one on this disk."""
        ...

    def fetch(self, path: str, target: Path, limit: int) -> None:
        """Copies one file; FileNotFoundError when it is not there, StoreError when it is longer than `limit`."""
        ...

    def teachers(self) -> list[str] | None:
        """Names in the folder of teachers; None when the place cannot say."""
        ...


def spelled(place: str | Path) -> str:
    """A place as text; a URL that went through `Path` gets its second slash back."""
    text = str(place)
    return _COLLAPSED.sub(r"\1://", text) if isinstance(place, Path) else text


def is_url(place: str | Path) -> bool:
    """Whether a place is spelled as a URL."""
    return "://" in spelled(place)


def check_folder(path: Path) -> None:
    """Raise StoreError when a folder to write in is spelled as a URL or as a zip file."""
    if is_url(path) or path.suffix.lower() == ".zip":
        raise StoreError(f"{spelled(path)}: stores are written into folders; write one here, then copy it there")


@contextlib.contextmanager
def open_source(place: str | Path) -> Iterator[Source]:
    """The source behind a path or URL, a folder or a single .zip file."""
    text = spelled(place).rstrip("/")
    source: Source
    if not is_url(text):
        if text.endswith(".zip"):
            with _open_zip(Path(text), text) as source:
                yield source
        else:
            yield FolderSource(Path(text))
        return
    web = text.startswith(("http://", "https://"))
    if not text.endswith(".zip"):
        yield WebSource(text) if web else ObjectSource(text)
        return
    folder, _, name = text.rpartition("/")
    with scratch() as place:
        whole = place / "store.zip"
        try:
            (WebSource(folder) if web else ObjectSource(folder)).fetch(name, whole, shutil.disk_usage(place).free)
        except FileNotFoundError as error:
            raise StoreError(f"{text} is not there; check the address") from error
        with _open_zip(whole, text) as source:
            yield source


class FolderSource:
    """A store on a disk."""

    def __init__(self, path: Path) -> None:
        self.name, self.root = str(path), path.resolve()

    def fetch(self, path: str, target: Path, limit: int) -> None:
        status = regular_file(self.root, self.root / path)
        if status is None:
            raise FileNotFoundError(path)
        if status.st_size > limit:
            raise too_long(self.name, path, limit)
        if target != self.root / path:
            shutil.copyfile(self.root / path, target)

    def teachers(self) -> list[str] | None:
        return list(teacher_names(self.root))


class ZipSource:
    """A store in one zip file, at its top or in its only folder. Entries are read by name, never extracted."""

    root = None

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self.name, self._archive = name, archive
        names = [entry for entry in archive.namelist() if entry == "zarr.json" or entry.endswith("/zarr.json")]
        if not names:
            raise StoreError(f"{name} must hold a store, found no zarr.json in it; check the file")
        self._prefix = min(names, key=lambda entry: entry.count("/")).removesuffix("zarr.json")

    def fetch(self, path: str, target: Path, limit: int) -> None:
        try:
            entry = self._archive.getinfo(self._prefix + path)
        except KeyError as error:
            raise FileNotFoundError(path) from error
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
            raise StoreError(f"{self.name}: {path} must be a plain file, found a link or encryption; do not use it")
        if entry.file_size > limit:
            raise too_long(self.name, path, limit)
        try:
            with self._archive.open(entry) as file:
                save(file, target, limit, f"{self.name}: {path}")
        except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as error:
            if isinstance(error, StoreError):
                raise
            raise OSError(f"{path} in the zip file is damaged: {error}") from error

    def teachers(self) -> list[str] | None:
        prefix = f"{self._prefix}teachers/"
        below = {name.removeprefix(prefix) for name in self._archive.namelist() if name.startswith(prefix)}
        return _names(name.partition("/")[0] for name in below if name.endswith("/zarr.json") and name.count("/") == 1)


@contextlib.contextmanager
def _open_zip(path: Path, name: str) -> Iterator[ZipSource]:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise StoreError(f"{name} is not there; check the path") from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise StoreError(f"{name} must be a zip file, found {error}; fetch it again") from error
    with archive:
        yield ZipSource(archive, name)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the web only, and never from https to http."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            fp.close()
            raise _astray(req.full_url, newurl[:200])
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class WebSource:
    """A store on a web server. Reading single files needs no more than Python's own client, which has no threads."""

    root = None

    def __init__(self, url: str) -> None:
        self.name = url
        self._url, question, query = url.partition("?")
        self._query = question + query
        handlers = (urllib.request.HTTPHandler(), urllib.request.HTTPSHandler(), _Redirects())
        self._opener = urllib.request.OpenerDirector()
        for handler in (*handlers, urllib.request.ProxyHandler(), *_error_handlers()):
            self._opener.add_handler(handler)

    def fetch(self, path: str, target: Path, limit: int) -> None:
        try:
            with self._open(path) as answer:
                save(answer, target, limit, f"{self.name}: {path}")
        except http.client.HTTPException as error:
            raise OSError(f"{self.name}/{path}: the answer broke off ({type(error).__name__})") from error

    def teachers(self) -> list[str] | None:
        with contextlib.suppress(FileNotFoundError, ValueError), self._open(TEACHERS_FILE) as answer:
            return _names(json.loads(answer.read(_MAX_LISTING)))
        with contextlib.suppress(FileNotFoundError), self._open("teachers/") as answer:
            return _names(_HREF.findall(answer.read(_MAX_LISTING).decode(errors="replace"))) or None
        return None

    def _open(self, path: str) -> Any:
        try:
            return self._opener.open(f"{self._url}/{urllib.parse.quote(path)}{self._query}", timeout=_TIMEOUT)
        except urllib.error.HTTPError as error:
            error.close()
            if 300 <= error.code < 400:
                where = str(error.headers.get("Location"))[:200]
                raise _astray(f"{self.name}/{path}", where) from None
            if error.code in (403, 404, 410):
                raise FileNotFoundError(f"{self.name}/{path} (HTTP {error.code})") from None
            raise OSError(f"{self.name}/{path}: HTTP {error.code} {error.reason}") from error


def _astray(address: str, target: str) -> StoreError:
    return StoreError(f"{address} leads to {target}, expected a web address as safe as it; do not use this store")


def _error_handlers() -> tuple[urllib.request.BaseHandler, ...]:
    return urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor()


class ObjectSource:
    """The source of a store in a bucket or on a hub, through fsspec."""

    root = None

    def __init__(self, url: str) -> None:
        self.name = url
        self.fs, self.top = file_system(url)

    def fetch(self, path: str, target: Path, limit: int) -> None:
        whole = f"{self.top}/{path}"
        with client_errors(self.name):
            if int(self.fs.info(whole)["size"]) > limit:
                raise too_long(self.name, path, limit)
            self.fs.get_file(whole, str(target))

    def teachers(self) -> list[str] | None:
        try:
            with client_errors(self.name):
                entries = self.fs.ls(f"{self.top}/teachers", detail=False, refresh=True)
        except FileNotFoundError:
            return []
        found = _names(str(entry).rstrip("/").rpartition("/")[2] for entry in entries)
        with client_errors(self.name):
            return [name for name in found if self.fs.exists(f"{self.top}/teachers/{name}/zarr.json")]


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system and the path in it; only the protocols of `PROTOCOLS`, and no chains of them."""
    protocol = url.partition("://")[0]
    if protocol not in PROTOCOLS or "::" in url:
        raise StoreError(
            f"{url}: stores are copied from and to folders, .zarr.zip files, s3://, gs:// and hf://, and from http(s)://;"
            " choose one of these"
        )
    import fsspec

    try:
        fs, root = fsspec.url_to_fs(url)
    except ImportError as error:
        wanted = EXTRAS.get(protocol, protocol)
        raise StoreError(f"{url} needs another package: pip install 'logitbank[{wanted}]'") from error
    return fs, str(root).rstrip("/")


@contextlib.contextmanager
def client_errors(name: str) -> Iterator[None]:
    """Whatever a client raises, as an OSError that can be tried again; what is not there stays FileNotFoundError."""
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except Exception as error:
        raise OSError(f"{name}: {type(error).__name__}: {error}") from error


def save(file: IO[bytes], target: Path, limit: int, what: str) -> None:
    """Write a stream to a file, at most `limit` bytes of it."""
    left = limit
    with target.open("wb") as out:
        while piece := file.read(min(_PIECE, left + 1)):
            left -= len(piece)
            if left < 0:
                raise too_long(what, "", limit)
            out.write(piece)


def too_long(name: str, path: str, limit: int) -> StoreError:
    """The refusal of a file that is longer than what it can hold."""
    return StoreError(f"{name}: {path or 'file'} is longer than the {limit} bytes it may have; do not use this store")


def _names(found: Any) -> list[str]:
    """The safe names among `found`, sorted."""
    names = set()
    for name in found if not isinstance(found, dict) else found.keys():
        with contextlib.suppress(StoreError):
            names.add(check_name(name, "teacher"))
    return sorted(names)
