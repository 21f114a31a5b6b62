"""The measurements of unreliable teachers and of cross-fitting on images: end to end on very little data, and their
pages, whose tables are those of the figures beside them."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bench import (
    _crossfit_page,
    _label_maps_page,
    _unreliable_page,
    crossfit_images,
    text_students,
    unreliable_teachers,
)
from bench._marked import part_of, rewrite
from bench._unreliable import CORRUPTIONS, METHODS, PAIRS, Corruption
from logitbank import build_model, load_split, parse_objective
from logitbank.pipeline.models.weights import save_weights

ROOT = Path(__file__).parents[1]


@pytest.fixture
def images(tmp_path: Path) -> str:
    """A hundred pictures of noise, and the two teachers, untrained, with answers of an ordinary size."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (100, 32, 32, 3), dtype=np.uint8), np.arange(100) % 10
    np.savez(tmp_path / "cifar.npz", x=x, y=y)
    torch.manual_seed(0)
    for depth in (20, 56):
        teacher: Any = build_model(f"resnet{depth}", load_split(f"npz:{tmp_path}/cifar.npz"))
        teacher.linear.weight.data.mul_(1e-4)
        save_weights(tmp_path / f"resnet{depth}.safetensors", teacher, {})
    return f"npz:{tmp_path}/cifar.npz"


def run(monkeypatch: pytest.MonkeyPatch, script: Any, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", [script.__name__, *map(str, arguments)])
    assert script.main() == 0


def empty_page(folder: Path, name: str, script: str) -> Path:
    page = folder / "docs" / "explanation" / f"{name}.md"
    page.parent.mkdir(parents=True)
    page.write_text(f"before\n<!-- written by {script} -->\n<!-- to here -->\nafter\n")
    return page


def test_students_of_unreliable_teachers_are_measured(
    images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = empty_page(tmp_path, "unreliable-teachers", _unreliable_page.SCRIPT)
    arguments = [tmp_path / "out", "--data", images, "--weights", tmp_path / "resnet{}.safetensors", "--tiny"]
    only = ["--pairs", "features", "--corruptions", "as it is", "--seeds", 1]
    run(monkeypatch, unreliable_teachers, *arguments, *only)
    kept = (tmp_path / "out" / "students.jsonl").read_text()
    run(monkeypatch, unreliable_teachers, *arguments, "--seeds", 2, "--page", tmp_path / "docs")
    lines = (tmp_path / "out" / "students.jsonl").read_text()
    assert lines.startswith(kept), "what stands there is not trained again"
    records = [json.loads(line) for line in lines.splitlines()]
    assert len(records) == 2 * len(PAIRS) * 3  # hard labels once, KD under two corruptions
    assert all(one["label"] + one["repeats"] <= 1 for one in records)
    document = json.loads(page.with_suffix(".json").read_text())
    assert part_of(page, _unreliable_page.SCRIPT) == _unreliable_page.tables(document)
    accuracies = [one["accuracy"] for one in records if (one["pair"], one["method"]) == ("pixels", "ce")]
    assert f"| `ce` | {100 * np.mean(accuracies):.2f}, " in page.read_text()
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith("after\n")
    assert page.with_suffix(".png").stat().st_size > 10_000


def test_cross_fitting_on_images_is_measured(images: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = empty_page(tmp_path, "cross-fitting", _crossfit_page.SCRIPT)
    run(
        monkeypatch,
        crossfit_images,
        tmp_path / "out",
        "--data",
        images,
        "--tiny",
        "--seeds",
        2,
        "--page",
        tmp_path / "docs",
    )
    document = json.loads(page.with_suffix(".json").read_text())
    assert [record["seed"] for record in document["seeds"]] == [0, 1]
    for record in document["seeds"]:
        assert record["students"]["overfit"].keys() == crossfit_images.METHODS.keys()
    seen, crossfit = (
        np.array([record["students"]["overfit"][name]["nll"] for record in document["seeds"]])
        for name in ("kd, seen", "kd, cross-fitted")
    )
    assert f" | {(crossfit - seen).mean():+.3f} ± " in page.read_text()


LANGUAGE_MODEL = """
from torch import nn

def model():
    return nn.Sequential(nn.Embedding(1024, 8), nn.Linear(8, 1024))
"""


def test_students_of_a_text_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.py").write_text(LANGUAGE_MODEL)
    teacher = nn.Sequential(nn.Embedding(1024, 8), nn.Linear(8, 1024))
    save_weights(tmp_path / "gpt.safetensors", teacher, {})
    for name in ("train", "test"):
        tokens = np.random.default_rng(0).integers(0, 1024, 2 * 128 + 1)
        np.save(tmp_path / f"{name}_tokens.npy", tokens.astype(np.uint16))
    options = ["--sequences", 2, "--test-sequences", 1, "--epochs", 1, "--seeds", 1]
    monkeypatch.setattr(sys, "argv", ["text_students", str(tmp_path), *map(str, options)])
    text_students.main()
    lines, table = capsys.readouterr().out.split("\n\n")
    found = [json.loads(line) for line in lines.splitlines()]
    assert [one["method"] for one in found] == list(text_students.METHODS)
    assert f"| labels |  | 1 | {found[0]['nll']:.3f} |" in table


@pytest.mark.parametrize("corruption", CORRUPTIONS.values(), ids=CORRUPTIONS)
def test_a_corruption_changes_what_it_says(corruption: Corruption) -> None:
    logits_NC = np.random.default_rng(0).normal(size=(50, 10)).astype(np.float32)
    found_NC = corruption.of(logits_NC, 3) * np.float32(corruption.temperature)
    changed_N = (found_NC != logits_NC).any(axis=1)
    assert changed_N.sum() == round(50 * corruption.swapped)
    assert ((found_NC != logits_NC).sum(axis=1)[changed_N] == 2).all()
    assert (found_NC.argmax(1) != logits_NC.argmax(1))[changed_N].all()
    np.testing.assert_array_equal(np.sort(found_NC), np.sort(logits_NC))
    more_NC = Corruption(swapped=0.6).of(logits_NC, 3)
    np.testing.assert_array_equal(more_NC[changed_N], found_NC[changed_N])


def test_every_loss_is_read_and_no_two_are_the_same() -> None:
    settings = [json.dumps(parse_objective(loss, own).settings) for loss, own in METHODS.values()]
    assert len(set(settings)) == len(METHODS)


def test_the_pages_are_those_of_their_figures() -> None:
    page = ROOT / "docs" / "explanation" / "unreliable-teachers.md"
    document = json.loads(page.with_suffix(".json").read_text())
    assert part_of(page, _unreliable_page.SCRIPT) == _unreliable_page.tables(document)
    assert _unreliable_page.readme_table(document) in (ROOT / "README.md").read_text()
    page = ROOT / "docs" / "explanation" / "cross-fitting.md"
    document = json.loads(page.with_suffix(".json").read_text())
    assert part_of(page, _crossfit_page.SCRIPT) == _crossfit_page.table(document["seeds"])
    page = ROOT / "docs" / "explanation" / "views.md"
    records = json.loads(page.with_name("label-maps.json").read_text())
    assert part_of(page, _label_maps_page.SCRIPT) == _label_maps_page.table(_label_maps_page.in_order(records))


def test_a_page_without_the_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing\n")
    with pytest.raises(ValueError, match="has no part between"):
        rewrite(tmp_path / "page.md", "bench.x", "text")
    assert (tmp_path / "page.md").read_text() == "nothing\n"
