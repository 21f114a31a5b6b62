"""How places are spelled: paths, URLs, what of a URL may be shown to people, and what it says besides."""

import base64
import re
import urllib.parse
from pathlib import Path
from typing import NamedTuple

from logitbank.stores.format.schema import StoreError

_COLLAPSED = re.compile(r"^(https?|s3|gs|gcs|hf|memory):/(?=[^/])")

_HOST = re.compile(r"(?:\[[^\]]*\]|[^:\[\]]*)(?::[0-9]*)?")


def spelled(place: str | Path) -> str:
    """A place as text; a URL that went through `Path` gets its second slash back."""
    text = str(place)
    return _COLLAPSED.sub(r"\1://", text) if isinstance(place, Path) else text


def is_url(place: str | Path) -> bool:
    """Whether a place is spelled as a URL."""
    return "://" in spelled(place)


def is_web(place: str | Path) -> bool:
    """Whether a place is on a web server."""
    return spelled(place).startswith(("http://", "https://"))


def is_zip(place: str | Path) -> bool:
    """Whether a place is a single .zip file, whatever a URL says behind a question mark."""
    text = spelled(place)
    path = text.partition("?")[0].partition("#")[0] if is_web(text) else text
    return path.rstrip("/").lower().endswith(".zip")


def shown(place: str | Path) -> str:
    """A place as people may see it, in messages, cards and results: no password, no signature."""
    text = spelled(place)
    if not is_url(text):
        return text
    protocol, _, rest = text.partition("://")
    rest, question, _ = rest.partition("?")
    host, slash, path = rest.partition("#")[0].partition("/")
    if is_web(text) and "@" in path and not _HOST.fullmatch(host.rpartition("@")[2]):  # a password with a slash in it
        host, slash, path = path.rpartition("@")[2].partition("/")
    return f"{protocol}://{host.rpartition('@')[2]}{slash}{path}{'?...' if question else ''}"


def check_folder(path: Path) -> None:
    """Raise StoreError when a folder to write in is spelled as a URL or as a zip file."""
    if is_url(path) or path.suffix.lower() == ".zip":
        raise StoreError(f"{shown(path)}: stores are written into folders; write one here, then copy it there")


class WebAddress(NamedTuple):
    """A web address in parts: without credentials, what belongs behind each file's name, and `Authorization`."""

    base: str
    query: str
    authorization: str | None


def web_address(url: str) -> WebAddress:
    """Take a web address apart; StoreError when it is none."""
    try:
        parts = urllib.parse.urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        port = f":{parts.port}" if parts.port is not None else ""
    except ValueError as error:
        raise StoreError(f"{shown(url)} must be a web address, found {error}; check it") from None
    if not host:
        raise StoreError(f"{shown(url)} must be a web address, found no host in it; check it")
    authorization = None
    if parts.username is not None:
        user, password = (urllib.parse.unquote(text or "") for text in (parts.username, parts.password))
        authorization = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    query = f"?{parts.query}" if parts.query else ""
    return WebAddress(f"{parts.scheme}://{host}{port}{parts.path.rstrip('/')}", query, authorization)
