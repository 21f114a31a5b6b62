"""The scripts behind pages with measurements, each from end to end on very little data."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import _label_maps_page, label_maps, scale, views
from bench._marked import part_of
from docs.measurements import semiparametric, students
from logitbank.pipeline.datasets import load_split
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.weights import save_weights
from logitbank.stores import open_store


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """Files as UCI writes them: MAGIC with ten numbers a row, Adult with names, spaces and a dot in the test file."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 10))
    labels = np.where(x[:, 0] + 0.5 * rng.normal(size=400) > 0, "g", "h")
    rows = [",".join([*map(str, row), label]) for row, label in zip(x.round(3), labels, strict=True)]
    (tmp_path / "magic04.data").write_text("\n".join(rows) + "\n\n")
    (tmp_path / "adult.data").write_text("39, State-gov, <=50K\n50, Private, >50K\n\n")
    (tmp_path / "adult.test").write_text("|1x3 Cross validator\n25, ?, >50K.\n")
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, script: Any, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    script.main()


def test_cross_fitting_on_tables_is_measured(
    tables: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {
        depth: tuple(replace(one, training=replace(one.training, epochs=2)) for one in learners)
        for depth, learners in semiparametric.STUDENTS.items()
    }
    monkeypatch.setattr(semiparametric, "STUDENTS", short)
    monkeypatch.setattr(semiparametric, "TREES", 5)
    run(monkeypatch, semiparametric, tables, "--repeats", 2, "--rows", 200, "--tables", "magic04:0.1")
    said = capsys.readouterr().out
    records = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [record["student"] for record in records] == ["mlp:32x2", "mlp:32x2", "mlp:128x2"] * 2
    assert {method for record in records for method in record["found"]} == {"teacher", *semiparametric.SMALL.methods}
    assert all(measures["nll"] > 0 for record in records for measures in record["found"].values())
    assert len([line for line in said.splitlines() if line.startswith("| magic04:0.1, ")]) == 4 + 4 + 2
    found = [record["found"] for record in records if record["student"] == "mlp:128x2"]
    expected = np.mean([one["KD, cross-fitted"]["nll"] - one["KD, seen"]["nll"] for one in found])
    row = next(line for line in said[said.index("NLL\n") :].splitlines() if "mlp:128x2, KD" in line)
    assert f"| {expected:+.4f} ± " in row


def test_an_overfit_forest_answers_seen_rows_better(tables: Path) -> None:
    """The labels here are noisy: only answers that were learned from them can be nearly as sure as they are."""
    x, y = semiparametric.read_table(tables, "magic04")
    semiparametric.write_repeat(tables / "t.npz", x, y, rows=300, tests=100, flip=0.3, seed=0)
    split = load_split(f"npz:{tables}/t.npz")
    semiparametric.cache(tables, split, None, seed=0)
    agree = {
        name: (np.load(tables / f"{name}.npy").argmax(axis=1) == split.labels).mean() for name in ("plain", "crossfit")
    }
    assert agree["plain"] > 0.95
    assert agree["crossfit"] < 0.8


def test_labels_are_flipped_in_training_alone(tables: Path) -> None:
    x, y = semiparametric.read_table(tables, "magic04")
    for flip in (0.0, 0.25):
        semiparametric.write_repeat(tables / f"{flip}.npz", x, y, rows=300, tests=100, flip=flip, seed=3)
    clean, noisy = np.load(tables / "0.0.npz"), np.load(tables / "0.25.npz")
    for name in ("x", "x_test", "y_test"):
        np.testing.assert_array_equal(clean[name], noisy[name])
    assert (clean["y"] != noisy["y"]).mean() == pytest.approx(0.25, abs=0.08)
    both = np.concatenate([clean["x"], clean["x_test"]])
    assert len(np.unique(both, axis=0)) == len(both) == 400


def test_categories_become_columns(tables: Path) -> None:
    x, y = semiparametric.read_table(tables, "adult")
    np.testing.assert_array_equal(x, [[39, 0, 0, 1], [50, 0, 1, 0], [25, 1, 0, 0]])
    np.testing.assert_array_equal(y, [0, 1, 1])


def test_students_of_stores_and_of_the_online_teacher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (48, 32, 32, 3), dtype=np.uint8), np.arange(48) % 10
    np.savez(tmp_path / "cifar.npz", x=x, y=y, x_test=x[:20], y_test=y[:20])
    torch.manual_seed(0)
    teacher = build_model("resnet20", load_split(f"npz:{tmp_path}/cifar.npz"))
    save_weights(tmp_path / "resnet20.safetensors", teacher, {})
    arguments = ["--data", f"npz:{tmp_path}/cifar.npz", "--weights", tmp_path / "resnet20.safetensors"]
    arguments += ["--rows", 40, "--test-rows", 20, "--seeds", 2, "--online-seeds", 2, "--epochs", 3]
    monkeypatch.setattr(students, "TRAINING", replace(students.TRAINING, batch_size=16))
    run(monkeypatch, students, tmp_path / "out", *arguments)
    said = capsys.readouterr().out
    weights = re.findall(r"\| (\d) \| `(\w+)` \| `(\w+)` \| yes \|", said)
    assert [seed for seed, _, _ in weights] == ["0", "1"]
    assert all(stored == online for _, stored, online in weights)
    assert weights[0][1] != weights[1][1]
    methods = [
        "kd store=dense_32",
        "kd teacher online",
        "ce",
        "kd store=dense_8",
        "kd store=topk",
        "kd store=topk_tail",
    ]
    assert [line.split("  ")[0] for line in said.splitlines() if re.match(r"(kd|ce) ", line)] == methods
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    run(monkeypatch, students, tmp_path / "out", *arguments)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")} == results
    table = said[said.index("method ") :]
    assert capsys.readouterr().out == table, "what is finished is not done again"


def pictures_and_page(folder: Path, script: str) -> tuple[Path, Path]:
    """``cifar.npz`` of noise; the weights of an untrained ResNet-20, and a page with a part that the script writes."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (60, 32, 32, 3), dtype=np.uint8), np.arange(60) % 10
    np.savez(folder / "cifar.npz", x=x, y=y, x_test=x[:20], y_test=y[:20])
    split = load_split(f"npz:{folder}/cifar.npz")
    weights = folder / "resnet20.safetensors"
    save_weights(weights, build_model("resnet20", split), {"architecture": "resnet20", "num_classes": 10}, split.keys)
    page = folder / "docs" / "explanation" / "views.md"
    page.parent.mkdir(parents=True)
    page.write_text(f"before\n\n<!-- written by {script} -->\nold\n<!-- to here -->\n\nafter\n")
    return weights, page


def test_what_stored_views_are_worth_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each number of views with the same steps; what is finished is not done again; the page around stays."""
    weights, page = pictures_and_page(tmp_path, views.SCRIPT)
    arguments = [tmp_path / "out", "--data", f"npz:{tmp_path}/cifar.npz", "--weights", weights, "--rows", 30]
    arguments += ["--views", "1,2", "--epochs", "3", "--losses", "kd,ce", "--seeds", 2, "--page", tmp_path / "docs"]
    run(monkeypatch, views, *arguments)
    said = capsys.readouterr().out
    runs = {
        f"{loss}-epochs3-views{count}-seed{seed}" for loss in ("kd", "ce") for count in (1, 2, 3) for seed in (0, 1)
    }
    assert {path.name for path in (tmp_path / "out" / "runs").iterdir() if path.is_dir()} == runs
    assert [line.count("|") for line in said.splitlines() if line.startswith("| `")] == [9] * 6
    assert {open_store(tmp_path / "out" / f"views-{count}.zarr").num_views for count in (1, 2, 3)} == {1, 2, 3}
    results = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("result.json")}
    steps = {len((path.parent / "history.csv").read_text().splitlines()) for path in results}
    assert steps == {1 + 3}
    text = page.read_text()
    assert text.startswith("before\n\n")
    assert text.endswith("\n\nafter\n")
    assert "old" not in text
    assert "| `kd` | 3 | 3 | 1 | 2 |" in text
    assert page.with_name("views.png").stat().st_size > 1000
    run(monkeypatch, views, *arguments)
    assert {path: path.stat().st_mtime_ns for path in results} == results
    assert page.read_text() == text


@pytest.mark.slow
def test_what_commands_cost_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, scale, "--rows", "300,600", "--only", "subset-half", "--table")
    said = capsys.readouterr().out
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert [line["name"] for line in lines] == [
        *(f"scale/{name}, {rows} rows: peak MB" for rows in (300, 600) for name in (scale.PASS, "subset-half")),
        *(f"scale/{name}: us a row" for name in (scale.PASS, "subset-half")),
    ]
    for line in lines[:4]:
        assert line["value"] > 50
        assert line["cpu_s"] > 0.1
        assert line["files"] > 10
    assert lines[3]["bytes"] < lines[2]["bytes"], "half of the rows"
    assert len([line for line in said.splitlines() if line.startswith("| `subset-half` |")]) == 3


def test_growth_leaves_out_what_a_start_costs() -> None:
    def costs(power: float) -> list[scale.Cost]:
        return [
            scale.Cost(
                rows=rows, seconds=3 + (rows / 1000) ** power, peak_mb=200 + rows / 1e4, files=9, written=8 * rows
            )
            for rows in (10**4, 10**5, 10**6)
        ]

    for power in (1.0, 1.5):
        assert scale.growth(costs(power)).exponent == pytest.approx(power)
    found = scale.growth(costs(1))
    assert (found.us_a_row, found.memory_a_row, found.written_a_row) == pytest.approx((1000, 100, 8))
    assert scale.growth(costs(1)[1:]).exponent is None
    paper = scale.on_paper(costs(1))
    assert (paper.rows, paper.files) == (10**9, 9)
    assert (paper.seconds, paper.peak_mb) == pytest.approx((3 + 10**6, 200 + 10**5))


def test_what_label_maps_are_worth_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds have rows of their own; what is a line is not done again; the page comes of the lines alone."""
    weights, page = pictures_and_page(tmp_path, _label_maps_page.SCRIPT)
    out, lines = tmp_path / "out", tmp_path / "out" / "students.jsonl"
    arguments = [out, "--data", f"npz:{tmp_path}/cifar.npz", "--weights", weights, "--rows", 30, "--epochs", 1]
    arguments += ["--views", 1, "--transforms", "rrc?scale=0.5"]
    run(monkeypatch, label_maps, *arguments, "--grids", 1, "--first", 1, "--seeds", 1)
    first = lines.read_text()
    run(monkeypatch, label_maps, *arguments, "--grids", "1,2", "--seeds", 2)
    assert lines.read_text().startswith(first)
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    methods = ["views-1", "map-1", "map-2", "labels"]
    assert sorted((one["seed"], one["method"]) for one in records) == sorted((s, m) for s in (0, 1) for m in methods)
    assert {one["method"]: one["passes"] for one in records} == dict(zip(methods, (1, 1, 1, 0), strict=True))
    capsys.readouterr()
    run(monkeypatch, label_maps, out, "--page", tmp_path / "docs")
    assert part_of(page, _label_maps_page.SCRIPT) == capsys.readouterr().out.strip()
    assert page.read_text().startswith("before\n\n")
    assert page.read_text().endswith("\n\nafter\n")
    assert len(json.loads(page.with_name("label-maps.json").read_text())) == 8
    with pytest.raises(ValueError, match="has students of epochs 1, not 3"):
        run(monkeypatch, label_maps, *arguments, "--epochs", 3)
