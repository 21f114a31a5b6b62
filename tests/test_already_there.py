"""A finished command that is run again: the same says so, something else is refused, and no byte is touched.

So is a place that holds something else. One law over all commands that write.
"""

from pathlib import Path

import pytest

from tests.sharing import contents
from tests.test_cli_cache_teacher import Terminal, type_in  # noqa: F401  (a fixture)

CACHE = "cache-teacher --data digits?limit=60 --teacher mlp:4 --weights random-init --transform flip-crop --out"

BUDGET = CACHE.replace("=60", "=300") + " {out} --kl-budget"

# what is typed -> what else asks for something else at the same place; {out} is that place
COMMANDS = {
    f"{CACHE} {{out}}": (f"{CACHE} {{out}} --bits 16", f"{CACHE} {{out}} --view-seed 1", f"{CACHE} {{out}} --views 2"),
    f"{CACHE} {{out}} --encoding topk --top-k 3": (f"{CACHE} {{out}} --encoding topk --top-k 3 --predictor-rows 20",),
    f"{BUDGET} 0.01": (f"{BUDGET} 0.02", f"{BUDGET} 0.01 --temperature 1,2"),
    "extend a.zarr --data digits?limit=60 --weights random-init --teacher mlp:4 --views 2 --out {out}": (
        "extend a.zarr --data digits?limit=60 --weights random-init --teacher mlp:4 --views 3 --out {out}",
        "extend same.zarr --data digits?limit=60 --weights random-init --teacher mlp:4 --views 2 --out {out}",
    ),
    "copy a.zarr {out}": ("copy ab.zarr {out}", "copy same.zarr {out}"),
    "copy ab.zarr {out}.zip": ("copy ab.zarr {out}.zip --teacher-name b", "copy a.zarr {out}.zip"),
    "merge a.zarr b.zarr --out {out}": (
        "merge b.zarr a.zarr --out {out}",
        "merge a.zarr b.zarr --teacher-name x,y --out {out}",
        "merge a.zarr ab.zarr --out {out}",
    ),
    "subset ab.zarr --slice 0:30 --out {out}": (
        "subset ab.zarr --slice 0:31 --out {out}",
        "subset ab.zarr --slice 0:30 --teacher-name b --out {out}",
    ),
    "export a.zarr --out {out}.npz": ("export b.zarr --out {out}.npz", "export same.zarr --out {out}.npz"),
    "export ab.zarr --out {out} --format webdataset --teacher-name a": (
        "export ab.zarr --out {out} --format webdataset --teacher-name b",
    ),
    "decode a.zarr --out {out}.npy": ("decode a.zarr --out {out}.npy --temperature 2", "decode b.zarr --out {out}.npy"),
    "card a.zarr --out {out}.md": ("card b.zarr --out {out}.md",),
    "assign-folds --data digits?limit=60 --fold-strategy hash --out {out}": (
        "assign-folds --data digits?limit=60 --fold-strategy hash --fold-seed 1 --out {out}",
    ),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores a and b of one set of examples, both as ab, and a once more, written at another time."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(patch, f"{CACHE} a.zarr --teacher-name a")
        run(patch, f"{CACHE} b.zarr --teacher-name b --encoding topk --top-k 3")
        run(patch, "merge a.zarr b.zarr --out ab.zarr")
        run(patch, "subset a.zarr --slice : --out same.zarr")
    return folder


def run(patch: pytest.MonkeyPatch, command: str) -> None:
    from logitbank import cli

    patch.setattr("sys.argv", ["cli", *command.split()])
    with pytest.raises(SystemExit) as exited:
        cli.main()
    assert not exited.value.code


@pytest.fixture
def at_the_shell(made: Path, type_in: Terminal, tmp_path: Path) -> Terminal:  # noqa: F811
    for path in made.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return type_in


@pytest.mark.parametrize("command", COMMANDS)
def test_run_again(at_the_shell: Terminal, tmp_path: Path, command: str) -> None:
    def outcome() -> dict[str, bytes]:
        return {name: data for name, data in contents(tmp_path).items() if name.startswith("out")}

    assert at_the_shell(command.format(out="out")).startswith("wrote ")
    before = outcome()
    again = at_the_shell(command.format(out="out"))
    assert again.startswith("already there: "), again
    for other in COMMANDS[command]:
        said = at_the_shell(other.format(out="out"), code=2)
        assert said.count("\n") == 1, said
    assert outcome() == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("there", ["a folder", "a file", "a link to nothing", "a link to a folder"])
def test_a_place_that_is_taken(at_the_shell: Terminal, tmp_path: Path, command: str, there: str) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("precious")
    ending = next((end for end in (".zip", ".npz", ".npy", ".md") if f"{{out}}{end}" in command), "")
    out = tmp_path / f"out{ending}"
    if there == "a folder":
        (tmp_path / "precious").rename(out)
    elif there == "a file":
        (tmp_path / "precious" / "file").rename(out)
    else:
        out.symlink_to(tmp_path / ("precious" if there == "a link to a folder" else "none"))
    before, names = contents(tmp_path), sorted(tmp_path.iterdir())
    said = at_the_shell(command.format(out="out"), code=2)
    assert said.count("\n") == 1, said
    assert str(out.name) in said
    assert contents(tmp_path) == before
    assert sorted(tmp_path.iterdir()) == names
