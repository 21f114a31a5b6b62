"""For tests of sharing: small stores, and a web server on loopback that can misbehave."""

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.stores import TeacherWriter, create_store, open_store
from tests.golden.make import KINDS, C, N, V, arrays_of

CONSTANTS = {"tail_matrix": np.arange(C * 2, dtype=np.float16).reshape(1, C, 2)}


def make_store(
    path: Path,
    teachers: tuple[str, ...] = ("a", "b"),
    kind: str = "topk",
    attributes: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
    labels: np.ndarray | None = None,
) -> Path:
    """A store with V = 2 views of N = 300 rows in two blocks."""
    keys = np.arange(N, dtype=np.uint64) * np.uint64(11_400_714_819_323_198_485)
    named = {"class_names": list(class_names)} if class_names else {}
    create_store(
        path,
        dataset={"name": "toy", "split": "train", "num_examples": N, "num_classes": C, "fingerprint": "00", **named},
        views={"num_views": V, "transform": "none", "seed": 0, "versions": {}},
        keys=keys,
        labels=np.arange(N) % C if labels is None else labels,
        probes={"row": np.arange(4, dtype=np.uint32), "digest": keys[:8].reshape(V, 4)},
        attributes={"license": "CC0-1.0", **(attributes or {})},
    )
    for name in teachers:
        add_teacher(path, name, kind)
    return path


def add_teacher(path: Path, name: str, kind: str = "topk", *, finish: bool = True) -> None:
    """A teacher whose answers depend on its name."""
    writer = TeacherWriter(
        path,
        name,
        identity={"architecture": name},
        encoding={"num_classes": C, "kind": kind, "top_k": 3, "bits": 8},
        arrays=arrays_of(kind),
        constants=CONSTANTS,
        block_rows=256,
    )
    for cell in writer.pending():
        values = answers(kind, cell.view + ord(name[0]), open_store(path, allow_incomplete=True).labels)
        writer.write(cell, {array: rows[writer.rows(cell.block)] for array, rows in values.items()})
    if finish:
        writer.finish(fidelity={"1": 0.01}, summary={"kind": "in-sample", "accuracy": 0.5})


def answers(kind: str, seed: int, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Rows as a teacher of the examples of `make_store` would answer them."""
    logits = np.random.default_rng(seed).normal(0, 3, (N, C)).astype(np.float32)
    encoding = Encoding.from_attributes({"num_classes": C, **KINDS[kind][0]})
    return encode(torch.from_numpy(logits), torch.from_numpy(labels), encoding)


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


Answer = Callable[[http.server.BaseHTTPRequestHandler], bool]  # True when it has answered by itself


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files, counts requests, and asks `answer` first."""

    def __init__(self, *args: Any, requests: list[str], answer: Answer, **kwargs: Any) -> None:
        self.requests, self.answer = requests, answer
        super().__init__(*args, **kwargs)

    def do_GET(self) -> None:
        self.requests.append(self.path)
        with contextlib.suppress(ConnectionError):  # whoever asked may be gone
            if not self.answer(self):
                super().do_GET()

    def log_message(self, format: str, *args: object) -> None:
        pass


class Server(http.server.ThreadingHTTPServer):
    """Waits for its threads when it closes."""

    daemon_threads = False
    request_queue_size = 128  # with the default of 5, connections that come at once wait a second


@contextlib.contextmanager
def web_server(folder: Path, answer: Answer = lambda handler: False) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of `folder`, and the list of paths asked for, which grows."""
    requests: list[str] = []
    handler = functools.partial(Handler, directory=str(folder), requests=requests, answer=answer)
    with Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", requests
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def s3_server(
    monkeypatch: pytest.MonkeyPatch, wrapped: Callable[[Any], Any] = lambda application: application
) -> Iterator[str]:
    """The address of an empty bucket on an S3-compatible server on loopback, whose WSGI application may be wrapped."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    server._server.app = wrapped(server._server.app)  # type: ignore[union-attr]
    address = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in (("ENDPOINT_URL", address), ("ACCESS_KEY_ID", "x"), ("SECRET_ACCESS_KEY", "x")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        name = f"team-{uuid.uuid4().hex[:8]}"  # the server's buckets outlive it
        s3fs.S3FileSystem().mkdir(name)
        yield f"s3://{name}"
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


class HubHandler(http.server.BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as its client needs for small files in one repository, `team/mine`."""

    protocol_version = "HTTP/1.1"
    api = "/api/datasets/team/mine"

    def __init__(self, *args: Any, files: dict[str, bytes], commits: list[list[str]], **kwargs: Any) -> None:
        self.files, self.commits = files, commits
        super().__init__(*args, **kwargs)

    def do_POST(self) -> None:
        """Listings, and commits: JSON lines with the files in base64."""
        path, body = self.path.partition("?")[0], self.rfile.read(int(self.headers["Content-Length"]))
        if path == f"{self.api}/paths-info/main":
            found = [self._entry(path) for path in urllib.parse.parse_qs(body.decode())["paths"]]
            self._answer([entry for entry in found if entry is not None])
        elif path == f"{self.api}/preupload/main":
            asked = [file["path"] for file in json.loads(body)["files"]]
            self._answer({"files": [{"path": p, "uploadMode": "regular", "shouldIgnore": False} for p in asked]})
        elif path == f"{self.api}/commit/main":
            lines = [json.loads(line) for line in body.splitlines()]
            new = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
            self.files.update({path: base64.b64decode(value["content"]) for path, value in new.items()})
            self.commits.append(sorted(new))
            url = f"http://{self.headers['Host']}/datasets/team/mine/commit/{_COMMIT}"
            self._answer({"commitUrl": url, "commitOid": _COMMIT, "success": True})
        else:
            self._answer({"error": "unknown"}, 404)

    def do_GET(self) -> None:
        """The repository, listings of its folders, and its files."""
        path, _, query = urllib.parse.unquote(self.path).partition("?")
        if path in (self.api, f"{self.api}/revision/main"):
            self._answer({"id": "team/mine", "sha": _COMMIT, "siblings": []})
            return
        if path.startswith(f"{self.api}/tree/main"):
            self._list(path.removeprefix(f"{self.api}/tree/main").strip("/"), "recursive=true" in query.lower())
            return
        file = re.fullmatch(rf"/datasets/team/mine/resolve/(?:main|{_COMMIT})/(.*)", path)
        if file is None or file[1] not in self.files:
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})
        else:
            data = self.files[file[1]]
            self._answer(data, 200, {"ETag": f'"{_blob_id(data)}"', "X-Repo-Commit": _COMMIT})

    do_HEAD = do_GET

    def _list(self, top: str, recursive: bool) -> None:
        prefix = f"{top}/" if top else ""
        parts = [path.removeprefix(prefix).split("/") for path in self.files if path.startswith(prefix)]
        depth = 100 if recursive else 1
        found = {prefix + "/".join(names[:stop]) for names in parts for stop in range(1, min(len(names), depth) + 1)}
        if found:
            self._answer([self._entry(path) for path in sorted(found)])
        else:
            self._answer({"error": "Entry not found"}, 404, {"X-Error-Code": "EntryNotFound"})

    def _entry(self, path: str) -> dict[str, Any] | None:
        if path in self.files:
            data = self.files[path]
            return {"type": "file", "path": path, "size": len(data), "oid": _blob_id(data)}
        if any(file.startswith(f"{path}/") for file in self.files):
            return {"type": "directory", "path": path, "oid": _COMMIT}
        return None

    def _answer(self, value: Any, code: int = 200, headers: Mapping[str, str] | None = None) -> None:
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


_COMMIT = "a" * 40


def _blob_id(data: bytes) -> str:
    """What git calls a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextlib.contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[list[str]]]]:
    """The address of an empty repository for processes started meanwhile, and its commits' files, which grow."""
    commits: list[list[str]] = []
    handler = functools.partial(HubHandler, files={}, commits=commits)
    with Server(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True  # the client keeps its connections open
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
        for name, value in (("HF_TOKEN", "x"), ("HF_HUB_DISABLE_XET", "1"), ("HF_HUB_DISABLE_TELEMETRY", "1")):
            monkeypatch.setenv(name, value)
        try:
            yield "hf://datasets/team/mine", commits
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def memory_bucket() -> Iterator[str]:
    """The address of an empty object store in this process, with fsspec's own semantics."""
    import fsspec

    name = f"/{uuid.uuid4().hex}"
    try:
        yield f"memory:/{name}"
    finally:
        with contextlib.suppress(FileNotFoundError):
            fsspec.filesystem("memory").rm(name, recursive=True)
