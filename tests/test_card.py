"""The card of a store, and two teachers side by side."""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from PIL import Image

from logitbank.pipeline.alignment import describe_examples
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.look.card import store_card, write_card
from logitbank.pipeline.look.diff import diff_teachers, format_diff
from logitbank.pipeline.look.figures import answer_figures
from logitbank.pipeline.look.plot_answers import draw_folds, plot_answers
from logitbank.pipeline.views import Views
from logitbank.stores import StoreError, copy_store, open_store
from logitbank.stores.write.merge import subset_store
from tests.pages import blocks
from tests.sharing import make_store


@pytest.fixture(scope="module")
def store(digits: Split, fold_teachers: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("card") / "digits.zarr"
    plan = FoldPlan(num_folds=3)
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(fold_teachers), plan=plan), Views())
    cache_teacher(answers, out, encoding=Encoding(kind="dense", num_classes=10, bits=8), name="dense")
    return out


@pytest.fixture(scope="module")
def plain(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("plain") / "plain.zarr"
    answers = NetworkTeacher(digits, load_teachers(digits, "mlp:32", str(plain_teacher)), Views())
    cache_teacher(answers, out, encoding=Encoding(kind="topk", num_classes=10, top_k=3, bits=8), name="topk")
    return out


def test_a_card_says_what_the_store_says(store: Path) -> None:
    card = store_card(store)
    _, front, body = card.split("---\n", 2)
    assert "size_categories:\n- 1K<n<10K\n" in front
    for text in ("# digits.zarr", "1,437", "Teacher `dense`", "out-of-fold", "3 folds", "8 bits a class", "KL T²"):
        assert text in body, text
    assert open_store(store).dataset["fingerprint"] in body
    assert "licence | not said" in body


def test_the_program_on_a_card_runs(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(store.parent)
    (program,) = (block.text for block in blocks(store_card(store)) if block.kind == "python")
    names: dict[str, Any] = {}
    exec(program, names)
    assert {len(values) for values in names["arrays"].values()} == {names["store"].num_examples}


def test_the_pictures_lie_beside_the_card(store: Path, plain: Path, tmp_path: Path) -> None:
    for path, name in ((store, "dense"), (plain, "topk")):
        out = tmp_path / name / "README.md"
        out.parent.mkdir()
        paths, written = write_card(path, out)
        assert written
        assert [file.name for file in paths] == [f"README-{name}.png", "README.md"]
        card = out.read_text()
        (picture,) = re.findall(r"!\[Teacher [^]]*\]\(([^)]*)\)", card)
        with Image.open(out.parent / picture) as image:
            assert image.size == (616, 330 * 4)  # four panels, one below the other
        assert sorted(out.parent.iterdir()) == sorted(paths)
    assert "![" not in store_card(store)  # without a file there is nothing to show


def test_a_card_is_there_already_or_is_another(store: Path, plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "README.md"
    assert write_card(store, out)[1]
    assert not write_card(store, out)[1]
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(StoreError, match=r"README.md is there and is something else"):
        write_card(plain, out)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}
    out.unlink()  # a killed run left only the picture
    assert write_card(store, out)[1]
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_what_the_pictures_show(store: Path, plain: Path) -> None:
    """Folds and classes add up to the accuracy that stage one measured."""
    opened = open_store(store)
    said = opened.teacher().summary
    figures = answer_figures(opened, opened.teacher())
    assert [accuracy for accuracy, _ in figures.fold_accuracy] == [f["accuracy"] for f in said["per_fold"]]
    assert figures.class_accuracy_C is not None
    counts = np.bincount(opened.labels)
    assert (figures.class_accuracy_C * counts).sum() / counts.sum() == pytest.approx(said["accuracy"])
    assert figures.correct_R is not None
    assert figures.correct_R.mean() == pytest.approx(said["accuracy"], abs=0.05)
    assert list(figures.fidelity) == [1.0, 2.0, 4.0]
    assert figures.outside == {}
    plain_figures = answer_figures(open_store(plain), open_store(plain).teacher())
    assert list(plain_figures.outside) == [1.0, 2.0, 4.0]
    assert plain_figures.fold_accuracy == []


def test_pictures_of_little(tmp_path: Path) -> None:
    """No labels, and class names and fidelity that a stranger made up."""
    classes = ["$\\frac{", "a" * 1000, "\n\n", *map(str, range(9))]
    path = make_store(tmp_path / "s.zarr", ("a",), class_names=classes)
    write_card(path, tmp_path / "README.md")
    opened = open_store(path)
    figures = answer_figures(opened, opened.teacher())
    for fidelity in ({}, {1.0: 0.0}):
        odd = replace(figures, fidelity=fidelity, correct_R=None, class_accuracy_C=None, fold_accuracy=[])
        plot_answers(odd, tmp_path / "odd.png")
    opened = open_store(make_store(tmp_path / "unlabelled.zarr", ("a",), labels=np.full(300, -1)))
    unlabelled = answer_figures(opened, opened.teacher())
    assert unlabelled.correct_R is None
    assert unlabelled.class_accuracy_C is None


def test_no_interval_of_a_fold_ends_above_100_percent(store: Path) -> None:
    opened = open_store(store)
    sure = replace(answer_figures(opened, opened.teacher()), fold_accuracy=[(1.0, 40), (0.98, 50), (0.0, 3)])
    figure = Figure()
    axis = figure.subplots()
    draw_folds(axis, sure)
    (bars,) = [found for found in axis.collections if isinstance(found, LineCollection)]
    ends = np.concatenate([segment[:, 1] for segment in bars.get_segments()])
    assert ends.min() >= 0
    assert ends.max() <= 100
    assert all(np.ptp(segment[:, 1]) > 3 for segment in bars.get_segments())


def test_a_store_of_folds_has_no_card(store: Path, tmp_path: Path) -> None:
    copy_store(store, tmp_path / "folds.zarr", folds_only=True)
    with pytest.raises(StoreError, match="has no teacher to write about"):
        write_card(tmp_path / "folds.zarr", tmp_path / "README.md")
    for place in (tmp_path, tmp_path / "none" / "README.md"):
        with pytest.raises(ValueError, match="pass another --out"):
            write_card(store, place)
    assert [path.name for path in tmp_path.iterdir()] == ["folds.zarr"]


def test_a_stranger_s_words_are_quoted(tmp_path: Path) -> None:
    path = make_store(tmp_path / "s.zarr", ("a",))
    target = path.rename(tmp_path / "<script>x|.zarr")
    card = store_card(target)
    assert "<script>" not in card
    assert "license: cc0-1.0" in card


def test_a_store_whose_name_is_no_text_has_a_card(tmp_path: Path) -> None:
    path = make_store(tmp_path / os.fsdecode(b"\xff.zarr"), ("a",))
    write_card(path, tmp_path / "README.md")
    assert "# ?.zarr" in (tmp_path / "README.md").read_text(encoding="utf-8")


def test_a_teacher_does_not_differ_from_itself(store: Path, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).permutation(1437)[:1000]
    subset_store(store, tmp_path / "part.zarr", rows, describe=describe_examples)
    diff = diff_teachers((open_store(store), None), (open_store(tmp_path / "part.zarr"), None), temperature=4.0)
    assert diff["num_rows"] == 1000
    assert diff["agreement"] == 1
    assert diff["kl"] == pytest.approx(0, abs=1e-12)
    assert not diff["identity"]
    assert not diff["same_order"]
    assert "matched by content key" in format_diff(diff)


def test_two_teachers_side_by_side(store: Path, plain: Path) -> None:
    diff = diff_teachers((open_store(store), "dense"), (open_store(plain), "topk"))
    assert "weights_sha256" in diff["identity"]
    assert diff["encoding"]["kind"] == ["dense", "topk"]
    assert 0.7 < diff["agreement"] < 1
    assert diff["kl"] > 0
    assert diff["kl_reverse"] > 0
    per_class = diff["per_class"]
    assert [row["class"] for row in per_class] == list(range(10))
    assert sum(row["num_rows"] for row in per_class) == diff["num_rows"] == 1437
    assert sum(row["num_rows"] * row["kl"] for row in per_class) / 1437 == pytest.approx(diff["kl"])
    assert diff["accuracy"][0] == pytest.approx(open_store(store).teacher().summary["accuracy"])
    assert "agree on" in format_diff(diff)


def test_mistakes(store: Path, tmp_path: Path) -> None:
    other = open_store(make_store(tmp_path / "s.zarr", ("a",)))
    with pytest.raises(ValueError, match="10 and 12 classes"):
        diff_teachers((open_store(store), None), (other, None))
    with pytest.raises(ValueError, match="--view is 3"):
        diff_teachers((open_store(store), None), (open_store(store), None), view=3)
    with pytest.raises(ValueError, match="--temperature"):
        diff_teachers((open_store(store), None), (open_store(store), None), temperature=0)
