"""Every command, given examples that are answered at L positions, does its work or says in one line why it does not."""

import json
from pathlib import Path

import numpy as np
import pytest
import typer

from logitbank import cli
from logitbank.stores import open_store, verify_store
from tests.pages import run_command
from tests.positions import write_files

L, N, C = 7, 24, 12
COMMANDS = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
CACHE = "cache-teacher --data DATA --teacher TEACHER --encoding topk --top-k 4 --predictor-rows 60 --out "
STUDENT = "--data DATA --store D/s.zarr --student linear --epochs 1"
# command -> what is run, in this order, and whether the last must succeed; None: as its owner has it
LINES: dict[str, tuple[list[str], bool | None]] = {
    "cache-teacher": (
        [
            CACHE + "D/one.zarr",
            CACHE + "D/one.zarr",
            CACHE + "D/dry.zarr --dry-run",
            CACHE + "D/few.zarr --limit 12",
            "cache-teacher --data DATA --teacher TEACHER --kl-budget 0.5 --out D/budget.zarr",
        ],
        True,
    ),
    "train-teacher": (["train-teacher --data DATA --teacher linear --epochs 1 --out D/teacher"], None),
    "assign-folds": (
        [
            "assign-folds --data DATA --folds 2 --fold-strategy group --out D/folds",
            "assign-folds --data DATA --folds 2 --fold-strategy hash --out D/hash",
        ],
        True,
    ),
    "embedding": (
        ["cache-teacher --data DATA --teacher D/net.py:make --weights random-init --embedding 1 --out D/features.zarr"],
        False,
    ),
    "extend": (["extend D/s.zarr --views 2 --data DATA --weights D/none.pt --out D/more.zarr"], False),
    "train-student": (
        [
            "train-student --data DATA --store D/s.zarr --student sklearn:RandomForestClassifier --out D/forest",
            "train-student STUDENT --out D/student",
            "train-student --data DATA --store D/s.zarr --student D/net.py:make --epochs 1 --out D/own",
            "train-student --data DATA --store D/s.zarr --student D/net.py:make --epochs 1 --out D/share"
            " --set target_transform=label_mix?alpha=auto",
        ],
        None,
    ),
    "mixed": (
        [
            "train-student --data DATA --store D/s.zarr --student D/net.py:make --epochs 1 --out D/mixed --mixup 0.8"
            " --set ce_weight=0 --set target_transform=mix_targets"
        ],
        True,
    ),
    "sweep": (["sweep STUDENT --loss kd,hard --seeds 1 --out D/sweep"], None),
    "compare": (["compare D/s.zarr"], False),
    "generations": (
        [
            "generations --data DATA --store D/f.zarr --student D/net.py:make --epochs 1 --rounds 1 --label-weight auto"
            " --out D/rounds"
        ],
        True,
    ),
    "predict": (["predict D/student --data DATA --out D/p.csv"], None),
    "export-student": (["export-student D/student --format onnx --out D/e"], None),
    "nest": (
        ["merge D/s.zarr D/t.zarr --teacher-name a,b --out D/both.zarr", "nest D/both.zarr --small a --large b"],
        None,
    ),
    "rank-students": (["rank-students D/s.zarr --data DATA --student linear,mlp:8 --seeds 1"], None),
    "inspect": (["inspect D/s.zarr --json", "inspect D/s.zarr"], True),
    "verify": (
        [
            "verify D/s.zarr",
            "verify D/s.zarr --data DATA",
            "cache-teacher --data DATA --teacher D/net.py:make --weights random-init --out D/n.zarr",
            "verify D/n.zarr --data DATA --recompute 20 --weights random-init --teacher D/net.py:make",
        ],
        True,
    ),
    "diff": (["diff D/s.zarr D/t.zarr", "diff D/s.zarr D/s.zarr --json"], True),
    "card": (["card D/s.zarr --out D/card.md", "card D/f.zarr --out D/README.md"], True),
    "copy": (["copy D/s.zarr D/c.zarr", "copy D/s.zarr D/c.zarr.zip", "copy D/s.zarr D/v.zarr --views 1"], True),
    "merge": (["merge D/s.zarr D/t.zarr --teacher-name a,b --out D/m.zarr"], True),
    "subset": (
        ["subset D/s.zarr --slice 0:9 --out D/part.zarr", "subset D/s.zarr --slice 9:24 --out D/rest.zarr"],
        True,
    ),
    "decode": (
        ["decode D/s.zarr --out D/all.npy", "decode D/s.zarr --out D/some.npy --slice 3:9"],
        True,
    ),
    "export": (
        [f"export D/s.zarr --out D/{out}" for out in ("e.npz", "d.npz --dense")] + ["export D/t.zarr --out D/t.npz"],
        True,
    ),
    "export to others": ([f"export D/s.zarr --out D/e.{ending}" for ending in ("parquet", "tar")], False),
    "demo": ([], None),  # brings its own data
    "datasets": (["datasets"], True),
    "models": (["models"], True),
    "losses": (["losses"], True),
    "recipes": (["recipes"], True),
}


NETWORK = f"""
from torch import nn

def make(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(3, {L} * num_classes), nn.Unflatten(1, ({L}, num_classes)))
"""


def run(folder: Path, line: str) -> tuple[int, str]:
    data, teacher = f"npz:{folder}/data.npz?positions={L}&classes={C}", f"array:{folder}/logits.npy"
    line = line.replace("STUDENT", STUDENT).replace("DATA", data).replace("TEACHER", teacher)
    return run_command(["cli", *line.replace("D/", f"{folder}/").split()])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of a top-k teacher, a dense one, and one with folds."""
    folder = tmp_path_factory.mktemp("commands")
    write_files(folder, N, L, C, ragged=True)
    (folder / "net.py").write_text(NETWORK)
    dense = "cache-teacher --data DATA --teacher TEACHER --encoding dense --out D/t.zarr"
    for line in (CACHE + "D/s.zarr", dense, CACHE + "D/f.zarr --folds 2 --fold-strategy group"):
        code, text = run(folder, line)
        assert code == 0, text
    return folder


def test_every_command_stands_here() -> None:
    assert set(COMMANDS) == set(LINES) - {"embedding", "mixed", "export to others"}


@pytest.mark.parametrize("command", LINES)
def test_a_command_works_or_says_why_not(command: str, folder: Path) -> None:
    lines, succeeds = LINES[command]
    for line in lines:
        code, text = run(folder, line)
        assert code in (0, 2), text
        assert "Traceback" not in text
        assert "No such option" not in text
        assert "Missing" not in text
        if code == 2:
            said = [part for part in text.splitlines() if part.startswith("error: ")]
            assert len(said) == 1, text
            assert text.rstrip().endswith(said[0]), text
        assert succeeds is None or (code == 0) == succeeds, text


def test_what_the_commands_wrote(folder: Path) -> None:
    """Stores that were made of the first hold the same answers; what was decoded is what the teacher said."""
    for command in ("copy", "merge", "subset", "decode", "inspect"):
        for line in LINES[command][0]:
            run(folder, line)
    first = open_store(folder / "s.zarr")
    slab = first.teacher().slab(0)
    for name, teacher, rows in (
        ("c.zarr", "teacher", slice(None)),
        ("m.zarr", "a", slice(None)),
        ("part.zarr", "teacher", slice(9)),
        ("rest.zarr", "teacher", slice(9, None)),
    ):
        other = open_store(folder / name)
        assert verify_store(folder / name) == []
        assert other.positions == L
        assert (other.labels == first.labels[rows]).all()
        for array, values in other.teacher(teacher).slab(0).items():
            np.testing.assert_array_equal(values, slab[array][rows])
    logits = np.load(folder / "logits.npy")
    decoded, some = np.load(folder / "all.npy"), np.load(folder / "some.npy")
    assert decoded.shape == (N, L, C)
    assert some.shape == (6, L, C)
    assert (np.isnan(decoded) == np.isnan(logits)).all()
    there = ~np.isnan(logits[..., 0])
    assert (decoded.argmax(-1) == np.nan_to_num(logits).argmax(-1))[there].all()
    code, text = run(folder, "inspect D/s.zarr --json")
    said = json.loads(text)
    assert code == 0
    assert said["num_positions"] == L
    answers = said["teachers"]["teacher"]["answers"]
    assert answers["num_rows"] == int((first.labels >= 0).sum())
    right = (np.nan_to_num(logits).argmax(-1) == first.labels)[first.labels >= 0].mean()
    assert answers["accuracy"] == pytest.approx(right)


def test_parts_become_the_whole_again(folder: Path) -> None:
    for line in (*LINES["subset"][0], "merge D/part.zarr D/rest.zarr --out D/whole.zarr"):
        assert run(folder, line)[0] == 0
    whole, first = open_store(folder / "whole.zarr"), open_store(folder / "s.zarr")
    assert verify_store(folder / "whole.zarr") == []
    assert (whole.keys == first.keys).all()
    for name, values in whole.teacher().slab(0).items():
        np.testing.assert_array_equal(values, first.teacher().slab(0)[name])
