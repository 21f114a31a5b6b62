"""Stores from strangers: nothing leaves its folder, nothing endless is taken, and every refusal is one line."""

import http.server
import json
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from logitbank.stores import StoreError, open_store, verify_store
from logitbank.stores.format.documents import sealed
from logitbank.stores.share.copy import copy_store
from tests.sharing import contents, make_store, web_server


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("source") / "s.zarr", ("a",))


def zipped(
    store: Path, path: Path, *, change: dict[str, bytes | None], extra: tuple[zipfile.ZipInfo, ...] = ()
) -> Path:
    """A store in a zip file with some files replaced or removed, and more entries behind."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (contents(store) | change).items():
            if data is not None:
                archive.writestr(name, data)
        for entry in extra:
            archive.writestr(entry, b"/etc/passwd")
    return path


def entry(name: str, mode: int) -> zipfile.ZipInfo:
    made = zipfile.ZipInfo(name)
    made.external_attr = mode << 16
    return made


def refused(source: Path | str, tmp_path: Path) -> str:
    before = set(contents(tmp_path))
    with pytest.raises(StoreError) as raised:
        copy_store(source, tmp_path / "out" / "c.zarr")
    assert not (tmp_path / "out" / "c.zarr").exists()
    after = {name for name in contents(tmp_path) if not name.startswith("out/.c.zarr.")}
    assert after == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_names_in_a_zip_file_never_lead_out(store: Path, tmp_path: Path) -> None:
    """Entries are read by the names that the store implies; others are not looked at."""
    escapes = (entry("../escaped", stat.S_IFREG), entry("/tmp/escaped", stat.S_IFREG), entry("a/../../b", stat.S_IFREG))
    path = zipped(store, tmp_path / "s.zip", change={}, extra=escapes)
    copy_store(path, tmp_path / "out" / "c.zarr")
    assert contents(tmp_path / "out" / "c.zarr") == contents(store)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "s.zip"]


def test_links_in_a_zip_file_are_refused(store: Path, tmp_path: Path) -> None:
    link = entry("examples/key/c/0", stat.S_IFLNK | 0o777)
    path = zipped(store, tmp_path / "s.zip", change={"examples/key/c/0": None}, extra=(link,))
    assert "plain file" in refused(path, tmp_path)


def test_a_zip_bomb_is_refused_by_its_declared_size(store: Path, tmp_path: Path) -> None:
    bomb = zipped(store, tmp_path / "s.zip", change={"teachers/a/log_prob_code/c/0/0/0": bytes(1 << 24)})
    assert bomb.stat().st_size < 1 << 18
    assert "longer than" in refused(bomb, tmp_path)


def test_a_zip_file_that_lies_about_sizes_is_refused(store: Path, tmp_path: Path) -> None:
    path = zipped(store, tmp_path / "s.zip", change={"teachers/a/log_prob_code/c/0/0/0": b"\x07" * 5000})
    data = path.read_bytes()
    assert (5000).to_bytes(4, "little") in data
    path.write_bytes(data.replace((5000).to_bytes(4, "little"), (100).to_bytes(4, "little")))
    refused(path, tmp_path)


@pytest.mark.parametrize("data", [b"", b"PK\x05\x06" + bytes(18), b"not a zip file", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_store_in_a_zip_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.zip").write_bytes(data)
    refused(tmp_path / "s.zip", tmp_path)


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "data:,x", "gopher://x/"])
def test_redirects_lead_to_the_web_only(store: Path, tmp_path: Path, target: str) -> None:
    def redirect(handler: http.server.BaseHTTPRequestHandler) -> bool:
        handler.send_response(302)
        handler.send_header("Location", target)
        handler.end_headers()
        return True

    with web_server(store.parent, redirect) as (url, _):
        assert "web address" in refused(f"{url}/s.zarr", tmp_path)


def test_a_long_answer_is_cut(store: Path, tmp_path: Path) -> None:
    """A file of rows may be a little longer than what it decodes to; no more is read, whatever is sent."""

    def long(handler: http.server.BaseHTTPRequestHandler) -> bool:
        if not handler.path.endswith("/label_rank/c/0/0"):
            return False
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(bytes(1 << 17))
        return True

    with web_server(store.parent, long) as (url, _):
        assert "longer than the 4368 bytes" in refused(f"{url}/s.zarr", tmp_path)


@pytest.mark.parametrize("name", ["../../escaped", "/etc", "examples/../../x", "a//b", ".", "x" * 300, "a\\b"])
def test_names_in_documents_never_lead_out(store: Path, tmp_path: Path, name: str) -> None:
    hostile = tmp_path / "hostile.zarr"
    shutil.copytree(store, hostile)
    document = json.loads((hostile / "zarr.json").read_text())
    documents: dict[str, Any] = {"": document, name: {"attributes": {}, "zarr_format": 3, "node_type": "group"}}
    for folder in document["attributes"].pop("documents"):
        documents[folder] = json.loads((hostile / folder / "zarr.json").read_text())
    document["attributes"].pop("digest")
    (hostile / "zarr.json").write_text(json.dumps(sealed(documents)[""]))
    assert "name must be" in refused(hostile, tmp_path)


def test_teachers_of_a_listing_are_names(store: Path, tmp_path: Path) -> None:
    def listing(handler: http.server.BaseHTTPRequestHandler) -> bool:
        if not handler.path.endswith("teachers.json"):
            return False
        body = json.dumps(["../../x", "a", 7, "/etc", "b" * 200]).encode()
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
        return True

    with web_server(store.parent, listing) as (url, _):
        assert copy_store(f"{url}/s.zarr", tmp_path / "c.zarr").teachers == ("a",)


def test_links_out_of_a_folder_are_refused(store: Path, tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.zarr"
    shutil.copytree(store, hostile)
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    for name in ("examples/key/c/0", "teachers/a/logsumexp/c/0/0"):
        (hostile / name).unlink()
        (hostile / name).symlink_to(secret)
        refused(hostile, tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything in a JSON value."""
    below = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [at, *(place for key, inner in below for place in places(inner, (*at, key)))][:400]


ALL_CHECKS = list(HealthCheck)


@settings(max_examples=12, deadline=None, suppress_health_check=ALL_CHECKS)
@given(data=st.data())
def test_any_change_of_metadata_is_refused_in_one_line_or_harmless(
    store: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """The digests are made to match again, as a hostile author would: what is left are the checks behind them."""
    copy_with_one_change(store, tmp_path_factory.mktemp("fuzz"), data)


@pytest.mark.slow
@settings(max_examples=400, deadline=None, suppress_health_check=ALL_CHECKS)
@given(data=st.data())
def test_any_of_many_changes_of_metadata_is_refused_in_one_line_or_harmless(
    store: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    copy_with_one_change(store, tmp_path_factory.mktemp("fuzz"), data)


def copy_with_one_change(store: Path, folder: Path, data: st.DataObject) -> None:
    hostile = folder / "s.zarr"
    shutil.copytree(store, hostile)
    top = data.draw(st.sampled_from(["", "teachers/a"]))
    document = json.loads((hostile / top / "zarr.json").read_text())
    documents = {"": document}
    for name in document["attributes"]["documents"]:
        documents[name] = json.loads((hostile / top / name / "zarr.json").read_text())
    changed = data.draw(st.sampled_from(sorted(documents)))
    place = data.draw(st.sampled_from(places(documents[changed])))
    value = data.draw(JSON)
    if place:
        inner: Any = documents[changed]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
    else:
        documents[changed] = value
    try:
        for own in documents.values():
            own.get("attributes", {}).pop("digest", None)
        documents[""]["attributes"].pop("documents", None)
        written = sealed(documents)
    except (AttributeError, TypeError, ValueError, KeyError):
        written = documents
    for name, own in written.items():
        (hostile / top / name / "zarr.json").write_text(json.dumps(own))
    before = contents(folder)
    try:
        copy_store(hostile, folder / "c.zarr", num_threads=2)
        open_store(folder / "c.zarr")
        assert verify_store(folder / "c.zarr") == []
    except StoreError as error:
        message = str(error)
        assert "\n" not in message
    outside = {n for n in contents(folder) if not n.startswith(("c.zarr/", ".c.zarr."))}
    assert outside == set(before)
    shutil.rmtree(folder)
