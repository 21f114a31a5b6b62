"""For tests of sharing: small stores, and a web server on loopback that can misbehave."""

import contextlib
import functools
import http.server
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores import TeacherWriter, create_store
from tests.golden.make import C, N, V, answers, arrays_of

CONSTANTS = {"tail_matrix": np.arange(C * 2, dtype=np.float16).reshape(1, C, 2)}


def make_store(
    path: Path,
    teachers: tuple[str, ...] = ("a", "b"),
    kind: str = "topk",
    attributes: Mapping[str, Any] | None = None,
    class_names: Sequence[str] = (),
) -> Path:
    """A store with V = 2 views of N = 300 rows in two blocks."""
    keys = np.arange(N, dtype=np.uint64) * np.uint64(11_400_714_819_323_198_485)
    named = {"class_names": list(class_names)} if class_names else {}
    create_store(
        path,
        dataset={"name": "toy", "split": "train", "num_examples": N, "num_classes": C, "fingerprint": "00", **named},
        views={"num_views": V, "transform": "none", "seed": 0, "versions": {}},
        keys=keys,
        labels=np.arange(N) % C,
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
        values = answers(kind, cell.view + ord(name[0]))
        writer.write(cell, {array: rows[writer.rows(cell.block)] for array, rows in values.items()})
    if finish:
        writer.finish(fidelity={"1": 0.01}, summary={"kind": "in-sample", "accuracy": 0.5})


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
def s3_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket on an S3-compatible server on loopback."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
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
