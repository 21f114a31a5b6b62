"""Addresses as people get them: signed, with a password, moved, expired, slow. Each works, or says what to do."""

import base64
import http.server
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from logitbank.stores import StoreError, copy_store
from logitbank.stores.format.address import is_zip, shown, web_address
from tests.sharing import contents, make_store, s3_server, web_server
from tests.test_cli import fails

SECRETS = ("S3cr3tSignature", "p%40ss", "p@ss")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    path = make_store(folder / "s.zarr", ("a",))
    copy_store(path, folder / "s.zarr.zip")
    return path


def answers(status: int, headers: dict[str, str], body: bytes = b"") -> Callable[[Any], bool]:
    def answer(handler: http.server.BaseHTTPRequestHandler) -> bool:
        handler.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name, text)
        handler.end_headers()
        handler.wfile.write(body)
        return True

    return answer


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("https://h/x.zarr.zip?X-Amz-Signature=abc&y=1", "https://h/x.zarr.zip?..."),
        ("http://user:password@h:80/x.zarr", "http://h:80/x.zarr"),
        ("https://token@h/x#fragment", "https://h/x"),
        ("s3://key:secret@bucket/x.zarr", "s3://bucket/x.zarr"),
        ("s3://bucket/a@b/x.zarr", "s3://bucket/a@b/x.zarr"),
        ("plain/folder?.zarr", "plain/folder?.zarr"),
    ],
)
def test_what_people_may_see_of_an_address(url: str, text: str) -> None:
    assert shown(url) == text


def test_an_address_is_taken_apart() -> None:
    assert web_address("http://u:p%40ss@h:81/a/s.zarr/?k=1") == (
        "http://h:81/a/s.zarr",
        "?k=1",
        "Basic " + base64.b64encode(b"u:p@ss").decode(),
    )
    assert web_address("https://[::1]:8/x").base == "https://[::1]:8/x"
    assert is_zip("https://h/x.zarr.zip?sig=a/b")
    assert is_zip("https://h/X.ZIP#part")
    assert not is_zip("https://h/x.zarr?file=y.zip")
    for url in ("http://", "http://h:port/x", "https://[::1/x"):
        with pytest.raises(StoreError, match="must be a web address"):
            web_address(url)


@pytest.mark.parametrize("name", ["s.zarr", "s.zarr.zip"])
def test_a_signed_address_works_and_its_signature_is_never_said(store: Path, tmp_path: Path, name: str) -> None:
    seen: list[str] = []

    def signed(handler: http.server.BaseHTTPRequestHandler) -> bool:
        seen.append(handler.path)
        return "X-Amz-Signature=S3cr3tSignature" not in handler.path and answers(403, {})(handler)

    with web_server(store.parent, signed) as (url, _):
        query = "?X-Amz-Expires=9&X-Amz-Signature=S3cr3tSignature"
        copy_store(f"{url}/{name}{query}", tmp_path / "c.zarr")
        assert contents(tmp_path / "c.zarr") == contents(store)
        said = fails("copy", f"{url}/none/{name}{query}", "d.zarr", cwd=tmp_path)
    assert not any(secret in said for secret in SECRETS)
    assert all("/s.zarr" in path for path in seen)


def test_a_user_and_a_password_in_the_address_are_used_and_stay_at_that_host(store: Path, tmp_path: Path) -> None:
    wanted = "Basic " + base64.b64encode(b"me:p@ss").decode()
    leaked: list[str | None] = []

    def other(handler: http.server.BaseHTTPRequestHandler) -> bool:
        leaked.append(handler.headers.get("Authorization"))
        return False

    with web_server(store.parent, other) as (elsewhere, _):

        def guarded(handler: http.server.BaseHTTPRequestHandler) -> bool:
            if handler.headers.get("Authorization") != wanted:
                return answers(401, {"WWW-Authenticate": "Basic"})(handler)
            if "/examples/" in handler.path:
                return answers(302, {"Location": elsewhere + handler.path})(handler)
            if handler.path.startswith("/moved"):
                return answers(302, {"Location": handler.path.removeprefix("/moved")})(handler)
            return False

        with web_server(store.parent, guarded) as (url, _):
            full = url.replace("http://", "http://me:p%40ss@")
            copy_store(f"{full}/s.zarr", tmp_path / "c.zarr")
            copy_store(f"{full}/moved/s.zarr.zip", tmp_path / "d.zarr")
            said = fails("copy", full.replace("p%40ss", "S3cr3tSignature") + "/s.zarr", "e.zarr", cwd=tmp_path)
    assert contents(tmp_path / "c.zarr") == contents(tmp_path / "d.zarr") == contents(store)
    assert re.search("wants a user and password.*HTTP 401", said)
    assert not any(secret in said for secret in SECRETS)
    assert leaked
    assert set(leaked) == {None}


def test_credentials_in_the_address_of_a_bucket_are_refused_in_one_line(tmp_path: Path, store: Path) -> None:
    said = fails("copy", str(store), "s3://key:S3cr3tSignature@bucket/s.zarr", cwd=tmp_path)
    assert "credentials are not read from an address" in said
    assert "S3cr3t" not in said


EXPIRED = b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"


@pytest.mark.parametrize(
    ("status", "headers", "body", "message"),
    [
        (403, {}, EXPIRED, r"refuses access; a signed link expires: get a new one.*HTTP 403, ExpiredToken"),
        (401, {}, b"", "wants a user and password.*HTTP 401"),
        (404, {}, b"", "is not there; check the address"),
        (503, {}, b"", "HTTP 503.*run the command again"),
        (301, {"Location": "ftp://user:p%40ss@h/x?sig=S3cr3tSignature"}, b"", r"leads to ftp://h/x\?\.\.\., expected"),
        (302, {}, b"", "leads to None, expected a web address"),
    ],
)
@pytest.mark.parametrize("name", ["s.zarr", "s.zarr.zip"])
def test_a_web_server_that_refuses(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    status: int,
    headers: dict[str, str],
    body: bytes,
    message: str,
) -> None:
    monkeypatch.setattr("logitbank.stores.share.fetch.PAUSE", 0.0)
    monkeypatch.setattr("logitbank.stores.share.sources.PAUSE", 0.0)
    with web_server(tmp_path, answers(status, headers, body)) as (url, _), pytest.raises(StoreError) as raised:
        copy_store(f"{url}/{name}?sig=S3cr3tSignature", tmp_path / "c.zarr")
    said = str(raised.value)
    assert re.search(message, said), said
    assert "\n" not in said
    assert not any(secret in said for secret in SECRETS)
    assert (status in (404, 503)) == ("again" in said or "check" in said), said


class Refusal:
    """A WSGI application that answers with an error of S3 while it has one, and asks the other otherwise."""

    def __init__(self) -> None:
        self.status, self.code, self.within = "", "", ""

    def wrapped(self, application: Callable[..., Any]) -> Callable[..., Any]:
        def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
            if not self.status or self.within not in environ["PATH_INFO"]:
                return application(environ, start_response)
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response(self.status, [("Content-Type", "application/xml")])
            if environ["REQUEST_METHOD"] == "HEAD":
                return []
            return [f"<Error><Code>{self.code}</Code><Message>m</Message></Error>".encode()]

        return answer


@pytest.fixture
def refusal() -> Refusal:
    return Refusal()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, refusal: Refusal) -> Iterator[str]:
    with s3_server(monkeypatch, refusal.wrapped) as url:
        yield url


def test_a_bucket_that_refuses_says_what_to_do(bucket: str, store: Path, tmp_path: Path, refusal: Refusal) -> None:
    def said(source: str | Path, target: str | Path) -> str:
        with pytest.raises(StoreError) as raised:
            copy_store(source, target)
        assert "\n" not in str(raised.value)
        return str(raised.value)

    missing = "there is no such bucket; check its name, or make it first"
    assert missing in said(store, "s3://there-is-none/s.zarr")
    assert missing in said("s3://there-is-none/s.zarr", tmp_path / "c.zarr")
    assert "is not there; check the address" in said(f"{bucket}/none.zarr", tmp_path / "c.zarr")
    refusal.within = "s.zarr"
    for status, code, what in (
        ("400 Bad Request", "ExpiredToken", "the credentials have expired; log in again"),
        ("403 Forbidden", "InvalidAccessKeyId", "the credentials are not accepted; check the key"),
        ("403 Forbidden", "AccessDenied", "access is refused; check that these credentials"),
        ("301 Moved Permanently", "PermanentRedirect", "in another region or at another endpoint; set AWS_"),
    ):
        refusal.status, refusal.code = status, code
        for one, two in ((store, f"{bucket}/s.zarr"), (f"{bucket}/s.zarr", tmp_path / "c.zarr")):
            told = said(one, two)
            assert what in told, told
            assert "run the" not in told, told


def trickle(handler: http.server.BaseHTTPRequestHandler) -> None:
    """A byte now and then, for as long as somebody listens."""
    for _ in range(600):
        handler.wfile.write(b" ")
        handler.wfile.flush()
        time.sleep(0.05)


@pytest.mark.parametrize("part", ["headers", "zarr.json", "/c/", "teachers.json"])
def test_a_server_that_trickles_does_not_hold_a_copy(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr("logitbank.stores.share.streams.WINDOW", 0.2)
    monkeypatch.setattr("logitbank.stores.share.web._TIMEOUT", 0.3)
    monkeypatch.setattr("logitbank.stores.share.fetch.PAUSE", 0.0)

    def slow(handler: http.server.BaseHTTPRequestHandler) -> bool:
        if part == "headers":
            handler.wfile.write(b"HTTP/1.0 200 OK\r\nX-Slow: ")
        elif part in handler.path:
            handler.send_response(200)
            handler.end_headers()
        else:
            return False
        trickle(handler)
        return True

    started = time.monotonic()
    with web_server(store.parent, slow) as (url, _), pytest.raises(StoreError) as raised:
        copy_store(f"{url}/s.zarr", tmp_path / "c.zarr", num_threads=2)
    assert re.search("only .* bytes came|no answer began|broke off", str(raised.value))
    assert time.monotonic() - started < 20


def test_an_answer_that_is_too_short_is_asked_for_again(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logitbank.stores.share.sources.PAUSE", 0.0)
    asked: list[str] = []

    def short(handler: http.server.BaseHTTPRequestHandler) -> bool:
        asked.append(handler.path)
        return len(asked) == 1 and answers(200, {"Content-Length": "1000000"}, b"PK")(handler)

    with web_server(store.parent, short) as (url, _):
        copy_store(f"{url}/s.zarr.zip", tmp_path / "c.zarr")
    assert len(asked) == 2
    assert contents(tmp_path / "c.zarr") == contents(store)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("http://u:p/SECRET@h:80/s.zip?k=SECRET", "http://h:80/s.zip?..."),
        ("http://u:SECRET@h/@scope/s.zip#SECRET", "http://h/@scope/s.zip"),
        ("http://[::1]:80/@a/s.zip", "http://[::1]:80/@a/s.zip"),
        ("hf://datasets/a/b@main/s.zarr", "hf://datasets/a/b@main/s.zarr"),
    ],
)
def test_what_of_an_address_is_shown(url: str, text: str) -> None:
    assert shown(url) == text
