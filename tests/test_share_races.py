"""Pushes that meet at one address, are killed, or lose their permission half-way, against a real S3 server on loopback.

Whatever happens, the address holds one store or none: never rows of one data set beside examples of another, never a
teacher that the list does not name, and nothing that belongs to no store.
"""

import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from logitbank.stores import StoreError, copy_store, verify_store
from tests.sharing import add_teacher, contents, make_store, s3_server

PUSHERS = multiprocessing.get_context("forkserver")
PUSHERS.set_forkserver_preload(["s3fs", "logitbank.stores.share.push", "tests.test_share_races"])


@dataclass
class Bucket:
    """The server's bucket, and which client it refuses after how many of its requests."""

    url: str
    refuse: dict[str, int] = field(default_factory=dict)

    def objects(self) -> dict[str, bytes]:
        import s3fs

        fs = s3fs.S3FileSystem(skip_instance_cache=True)
        top = self.url.removeprefix("s3://")
        return {path.removeprefix(f"{top}/"): fs.cat_file(path) for path in fs.find(top)}


def refusing(application: Callable[..., Any], refuse: dict[str, int]) -> Callable[..., Any]:
    """A WSGI application that answers a client whose requests are used up as S3 does when its token has expired."""

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Any:
        for client in refuse:
            if f"Credential={client}/" in environ.get("HTTP_AUTHORIZATION", ""):
                refuse[client] -= 1
                if refuse[client] < 0:
                    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
                    start_response("403 Forbidden", [("Content-Type", "application/xml")])
                    return [
                        b"<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>"
                    ]
        return application(environ, start_response)

    return answer


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    found = Bucket("")
    with s3_server(monkeypatch, lambda application: refusing(application, found.refuse)) as url:
        found.url = url
        yield found


def push(store: str, url: str, client: str, temporary: str, environment: dict[str, str]) -> None:
    """In a process of its own: exit code 0, or 3 for a refusal in one line."""
    os.environ.update(environment, AWS_ACCESS_KEY_ID=client, TMPDIR=temporary)
    tempfile.tempdir = None
    try:
        copy_store(store, url, num_threads=4)
    except StoreError as error:
        Path(temporary, "refusal").write_text(str(error))
        sys.exit(3)


class Pushes:
    """Starts pushes of stores to one address and waits for them, killing some."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        self.bucket, self.temporary = bucket, folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self._environment = {name: text for name, text in os.environ.items() if name.startswith("AWS_")}

    def start(self, store: Path) -> Any:
        where = self.temporary / store.stem
        where.mkdir(exist_ok=True)
        arguments = (str(store), self.bucket.url, store.stem, str(where), self._environment)
        process = PUSHERS.Process(target=push, args=arguments)
        process.start()
        return process

    def finish(self, store: Path) -> int:
        process = self.start(store)
        process.join()
        return int(process.exitcode or 0)

    def leftovers(self) -> list[str]:
        return [path.name for path in self.temporary.glob("*/*") if path.name != "refusal"]


def other_examples(folder: Path) -> tuple[Path, Path]:
    """Two stores that nothing but their examples tells apart: the same counts, and a teacher each."""
    one = make_store(folder / "one.zarr", ("a",))
    two = make_store(folder / "two.zarr", ("b",), labels=np.zeros(300, dtype=np.int64))
    return one, two


def one_trial(pushes: Pushes, stores: tuple[Path, Path], rng: random.Random) -> str:
    """Both push at once; some are killed, some refused half-way. Then both try again until they are answered."""
    bucket = pushes.bucket
    running = []
    for store in stores:
        if rng.random() < 0.3:
            bucket.refuse[store.stem] = rng.randrange(120)
        running.append(pushes.start(store))
        time.sleep(rng.choice((0.0, 0.0, 0.1, 0.4)))
    for process in running:
        if rng.random() < 0.5:
            time.sleep(rng.random() * 0.8)
            process.kill()
    for process in running:
        process.join()
    bucket.refuse.clear()
    codes = {store: pushes.finish(store) for store in rng.sample(stores, 2)}
    assert sorted(codes.values()) == [0, 3], codes
    (loser,) = (store for store, code in codes.items() if code)
    refusal = (pushes.temporary / loser.stem / "refusal").read_text()
    assert "\n" not in refusal
    assert "is another" in refusal or "unfinished copy of another" in refusal, refusal
    (winner,) = (store for store, code in codes.items() if not code)
    return winner.name


def check_trial(bucket: Bucket, winner: Path, folder: Path) -> None:
    found = bucket.objects()
    assert found == {**contents(winner), "teachers.json": found["teachers.json"]}
    back = folder / "back.zarr"
    copy_store(bucket.url, back)
    assert verify_store(back) == []
    assert contents(back) == contents(winner)
    shutil.rmtree(back)


def trials(bucket: Bucket, folder: Path, number: int, seed: int) -> None:
    rng = random.Random(seed)
    stores = other_examples(folder)
    top = bucket.url
    won: dict[str, int] = {}
    pushes = Pushes(bucket, folder)
    for trial in range(number):
        bucket.url = f"{top}/{trial}/s.zarr"
        winner = one_trial(pushes, stores, rng)
        check_trial(bucket, folder / winner, folder)
        assert pushes.leftovers() == []
        won[winner] = won.get(winner, 0) + 1
    print(f"{number} trials: 0 mixes, 0 leftovers; ended with {won}")


def test_two_data_sets_at_one_address_never_mix(bucket: Bucket, tmp_path: Path) -> None:
    trials(bucket, tmp_path, 2, seed=0)


@pytest.mark.slow
def test_two_data_sets_at_one_address_never_mix_in_many_trials(bucket: Bucket, tmp_path: Path) -> None:
    trials(bucket, tmp_path, 100, seed=1)


def add_at_once(bucket: Bucket, folder: Path, number: int, seed: int) -> None:
    """Three people add a teacher each to a store that is there; then each makes sure that it is there."""
    rng = random.Random(seed)
    start = make_store(folder / "start.zarr", ("a",))
    stores = []
    for name in "bcd":
        shutil.copytree(start, folder / f"{name}.zarr")
        add_teacher(folder / f"{name}.zarr", name)
        stores.append(folder / f"{name}.zarr")
    top = bucket.url
    pushes = Pushes(bucket, folder)
    for trial in range(number):
        bucket.url = f"{top}/{trial}/s.zarr"
        copy_store(start, bucket.url)
        running = [pushes.start(store) for store in stores]
        killed = rng.random() < 0.5
        if killed:
            time.sleep(rng.random())
            running[rng.randrange(3)].kill()
        for process in running:
            process.join()
        if killed:
            assert [pushes.finish(store) for store in stores] == [0, 0, 0]
        found = bucket.objects()
        assert json.loads(found["teachers.json"]) == ["a", "b", "c", "d"]
        assert found == {
            **{path: data for store in stores for path, data in contents(store).items()},
            "teachers.json": found["teachers.json"],
        }
        assert pushes.leftovers() == []


def test_teachers_added_at_once_are_all_there(bucket: Bucket, tmp_path: Path) -> None:
    add_at_once(bucket, tmp_path, 1, seed=0)


@pytest.mark.slow
def test_teachers_added_at_once_are_all_there_in_many_trials(bucket: Bucket, tmp_path: Path) -> None:
    add_at_once(bucket, tmp_path, 30, seed=1)
