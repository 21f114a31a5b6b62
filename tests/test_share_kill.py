"""A copy that is killed outright goes on, and shows nothing before it is whole."""

import http.server
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sharing import contents, make_store, web_server

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_killed_copy_fetches_nothing_twice_that_arrived_sound(tmp_path: Path) -> None:
    store = make_store(tmp_path / "s.zarr")

    def slow(handler: http.server.BaseHTTPRequestHandler) -> bool:
        time.sleep(0.02)
        return False

    def files(requests: list[str]) -> int:
        return sum("/c/" in path for path in requests)

    with web_server(tmp_path, slow) as (url, requests):
        places = f"{url + '/s.zarr'!r}, {str(tmp_path / 'c.zarr')!r}"
        code = f"from logitbank.stores import copy_store; copy_store({places}, num_threads=1)"
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
        while files(requests) < 45 and process.poll() is None:
            time.sleep(0.005)
        process.kill()
        process.wait()
        before = files(requests)
        assert not (tmp_path / "c.zarr").exists()
        requests.clear()
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
        assert before + files(requests) <= sum("/c/" in name for name in contents(store)) + 2
    assert contents(tmp_path / "c.zarr") == contents(store)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.zarr", "s.zarr"]
