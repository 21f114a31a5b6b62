"""A store on a web server. Single files need no more than Python's own client, whose only threads are its clocks."""

import contextlib
import http.client
import re
import socket
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from logitbank.stores.format.address import shown, web_address
from logitbank.stores.format.plain_json import parse_json
from logitbank.stores.format.schema import StoreError, safe_names
from logitbank.stores.share.refusals import Refused
from logitbank.stores.share.streams import pieces, save

TEACHERS_FILE = "teachers.json"  # names of the teachers, for places that cannot list folders; a hint, never trusted
_TIMEOUT = 60
_MAX_LISTING = 1 << 20
_HREF = re.compile(r'href="(?:\./)?([^"/?#]{1,100})/"')
_REFUSED = {
    401: "wants a user and password, or refuses these; spell it https://user:password@..., or get another link",
    403: "refuses access; a signed link expires: get a new one, or ask the owner for permission",
    407: "is behind a proxy that wants a password; set https_proxy",
}
_CODE = re.compile(rb"<Code>([A-Za-z]{1,60})</Code>")


class WebSource:
    """A store whose files a web server gives, one by one.

    Args:
        url: The address; what is behind a question mark goes behind each file's name, `user:password@` into a header
            that redirects to other hosts do not get.
    """

    root = None

    def __init__(self, url: str) -> None:
        self.name = shown(url)
        self._address = web_address(url)
        handlers: tuple[urllib.request.BaseHandler, ...] = (
            _Http(),
            _Https(),
            _Redirects(),
            urllib.request.ProxyHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
        )
        self._opener = urllib.request.OpenerDirector()
        for handler in handlers:
            self._opener.add_handler(handler)

    def fetch(self, path: str, target: Path, limit: int) -> None:
        with self._open(f"/{urllib.parse.quote(path)}") as answer:
            _save(answer, target, limit, f"{self.name}: {path}")

    def fetch_whole(self, target: Path, limit: int, known: Mapping[str, str]) -> dict[str, str] | None:
        """Copy the file that the address itself is.

        Args:
            target: Where it goes.
            limit: The most bytes of it.
            known: What the server said of the version that is here already; empty when there is none.

        Returns:
            What the server says of this version; None, and nothing copied, when that is `known`.
        """
        headers = {"If-None-Match": known["ETag"]} if "ETag" in known else {}
        if not headers and "Last-Modified" in known:
            headers = {"If-Modified-Since": known["Last-Modified"]}
        with self._open("", headers) as answer:
            said = {name: answer.headers[name] for name in ("ETag", "Last-Modified", "Content-Length")}
            version = {name: text for name, text in said.items() if text is not None}
            if answer.status == 304 or (known == version and len(version) > 1):
                return None
            _save(answer, target, limit, self.name)
            return version

    def teachers(self) -> list[str] | None:
        with contextlib.suppress(FileNotFoundError, Refused, ValueError), self._open(f"/{TEACHERS_FILE}") as answer:
            return safe_names(parse_json(self._listing(answer), self.name))
        with contextlib.suppress(FileNotFoundError, Refused), self._open("/teachers/") as answer:
            return safe_names(_HREF.findall(self._listing(answer).decode(errors="replace"))) or None
        return None

    def _listing(self, answer: Any) -> bytes:
        return b"".join(pieces(answer.read1, _MAX_LISTING, f"{self.name}: list of teachers"))

    @contextlib.contextmanager
    def _open(self, below: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        request = urllib.request.Request(
            f"{self._address.base}{below}{self._address.query}", headers=dict(headers or {})
        )
        if self._address.authorization is not None:
            request.add_unredirected_header("Authorization", self._address.authorization)
        where = f"{self.name}{below}" if below else self.name
        try:
            with self._opener.open(request, timeout=_TIMEOUT) as answer:
                yield answer
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 304:
                    yield error
                    return
                raise _explained(where, error) from None
        except http.client.HTTPException as error:
            raise OSError(f"{where}: the answer broke off ({type(error).__name__})") from error
        except ValueError as error:
            if isinstance(error, StoreError):
                raise
            raise StoreError(f"{where} must be a web address, found {error}; check it") from None


def _save(answer: Any, target: Path, limit: int, what: str) -> None:
    """Write a whole answer to a file."""
    found, promised = save(answer.read1, target, limit, what), answer.headers["Content-Length"]
    if promised is not None and str(found) != promised.strip():
        raise OSError(f"{what}: the answer broke off after {found} of {promised} bytes")


def _explained(where: str, error: urllib.error.HTTPError) -> Exception:
    """What an answer that is not the file means."""
    if 300 <= error.code < 400:
        return _astray(where, str(error.headers.get("Location")))
    if error.code in (404, 410):
        return FileNotFoundError(f"{where} (HTTP {error.code})")
    if error.code in _REFUSED:
        code = _CODE.search(error.read(2000))
        said = f"HTTP {error.code}{', ' + code[1].decode() if code else ''}"
        return Refused(f"{where} {_REFUSED[error.code]} ({said})")
    return OSError(f"{where}: HTTP {error.code} {error.reason}")


def _astray(where: str, target: str) -> StoreError:
    return StoreError(
        f"{where} leads to {shown(target)[:200]}, expected a web address as safe as it that ends somewhere; do not use"
        " this store"
    )


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the web only, never from https to http, and takes a password to the same host only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme != "http" or req.type == "https"):
            fp.close()
            raise _astray(shown(req.full_url), newurl)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        authorization = req.unredirected_hdrs.get("Authorization")
        if following is not None and authorization and (following.type, following.host) == (req.type, req.host):
            following.add_unredirected_header("Authorization", authorization)
        return following


class _Timed(http.client.HTTPConnection):
    """A connection whose answer must begin in time, also when its first lines come byte by byte."""

    def getresponse(self) -> http.client.HTTPResponse:
        late = threading.Event()
        clock = threading.Timer(_TIMEOUT, _hang_up, (self.sock, late))
        clock.daemon = True
        clock.start()
        try:
            answer = super().getresponse()
        finally:
            clock.cancel()
        if late.is_set():  # what came until then looks like a whole answer
            answer.close()
            raise TimeoutError(f"no answer began in {_TIMEOUT} s")
        return answer


def _hang_up(sock: socket.socket, late: threading.Event) -> None:
    late.set()
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class _TimedTls(_Timed, http.client.HTTPSConnection):
    pass


class _Http(urllib.request.HTTPHandler):
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_Timed, req)


class _Https(urllib.request.HTTPSHandler):
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_TimedTls, req)
