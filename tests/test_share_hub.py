"""Copies to and from a repository of the Hugging Face Hub: its own client, and a server on loopback that answers it.

The server knows small files only. What the Hub does with large ones is between it and its client.
"""

from pathlib import Path

import pytest

from tests.sharing import add_teacher, contents, hub_server, make_store
from tests.test_cli import fails, run


@pytest.mark.parametrize("folder", ["", pytest.param("/below/s.zarr", marks=pytest.mark.slow)])
def test_a_store_is_one_commit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: str) -> None:
    store = make_store(tmp_path / "s.zarr", ("a",))

    def copy(source: str, target: str, *options: str) -> None:
        done = run("copy", source, target, *options, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, ""), (source, target)

    with hub_server(monkeypatch) as (repository, commits):
        place = repository + folder
        copy("s.zarr", place)
        copy(place, "back.zarr")
        assert contents(tmp_path / "back.zarr") == contents(store)
        copy("s.zarr", place)
        add_teacher(store, "b")
        copy("s.zarr", place)
        prefix = folder.strip("/") + "/" if folder else ""
        assert commits[0] == sorted(prefix + name for name in [*contents(tmp_path / "back.zarr"), "teachers.json"])
        assert len(commits) == 2, commits[1]  # none for the second copy, which had nothing new
        assert all("/teachers/b/" in f"/{name}" or name.endswith("teachers.json") for name in commits[1])
        copy(place, "part.zarr", "--teacher-name", "b", "--views", "1")
        make_store(tmp_path / "other.zarr", ("c",))
        assert "another" in fails("copy", "other.zarr", place, cwd=tmp_path)
    assert len(list((tmp_path / "part.zarr" / "teachers").iterdir())) == 2  # b and the group's own document
