"""A teacher that has already spoken, to this program: an export becomes a store again, row by content key."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank import cli
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import LimitedTeacher, build_teacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding, decode
from logitbank.pipeline.encoding.tail_predictor import TailPredictor
from logitbank.pipeline.exchange import export_store
from logitbank.pipeline.folds import FoldPlan
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.exchange import FLIPS, C, N, V, make_data, make_store

TOPK16 = Encoding(kind="topk", num_classes=C, top_k=3, bits=16)
DENSE32 = Encoding(kind="dense", num_classes=C, bits=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Split:
    return make_data(tmp_path_factory.mktemp("data") / "d.npz")


@pytest.fixture(scope="module")
def shuffled(tmp_path_factory: pytest.TempPathFactory) -> Split:
    """The same examples in another order, under another name."""
    return make_data(tmp_path_factory.mktemp("data") / "other.npz", np.random.default_rng(1).permutation(N))


@pytest.fixture(scope="module")
def store(data: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("store"), data, TOPK16)


def export(store: Path, out: Path, **options: Any) -> str:
    export_store(store, out, **options)
    return f"export:{out}"


def log_prob_of(store: Store, view: int, tail: str = "predicted") -> dict[int, np.ndarray]:
    """Decoded log-probabilities float64 [C] by content key, of the examples that are there once."""
    teacher = store.teacher()
    arrays = {name: torch.from_numpy(array) for name, array in teacher.slab(view).items()}
    labels = torch.from_numpy(np.asarray(store.labels, dtype=np.int64))
    folds = None if store.folds is None else torch.from_numpy(store.folds.astype(np.int64))
    encoding, predictor = Encoding.from_attributes(teacher.encoding), TailPredictor.from_constants(teacher.constants())
    logits = decode(arrays, labels, encoding, predictor=predictor, folds_B=folds, tail=tail)
    found = torch.log_softmax(logits.double(), 1).numpy()
    keys, counts = np.unique(store.keys, return_counts=True)
    once = set(keys[counts == 1].tolist())
    return {key: row for key, row in zip(store.keys.tolist(), found, strict=True) if key in once}


def assert_close(first: dict[int, np.ndarray], second: dict[int, np.ndarray], rtol: float) -> None:
    assert first.keys() == second.keys()
    assert len(first) == N - 2
    for key, row in first.items():
        np.testing.assert_allclose(second[key], row, rtol=rtol, atol=rtol)


@pytest.mark.parametrize(
    "encoding",
    [
        TOPK16,
        Encoding(kind="topk", num_classes=C, top_k=3, bits=8),
        Encoding(kind="topk+tail", num_classes=C, top_k=3, tail_bits=2),
        Encoding(kind="dense", num_classes=C, bits=8),
        Encoding(kind="dense", num_classes=C, bits=16),
    ],
    ids=lambda encoding: f"{encoding.kind}-{encoding.bits}",
)
def test_there_and_back(encoding: Encoding, data: Split, shuffled: Split, tmp_path: Path) -> None:
    """Store -> export -> store of the same examples in another order: within float16 for every example."""
    first = open_store(make_store(tmp_path, data, encoding))
    teacher = export(first.path, tmp_path / "x.npz")
    kept = TOPK16 if encoding.top_k else Encoding(kind="dense", num_classes=C, bits=16)
    answers = build_teacher(shuffled, teacher, "", FLIPS)
    cache_teacher(answers, tmp_path / "back.zarr", encoding=kept, predictor_rows=0)
    second = open_store(tmp_path / "back.zarr")
    for view in range(V):  # the predicted tail is not exported
        assert_close(log_prob_of(first, view, tail="uniform"), log_prob_of(second, view), rtol=2**-9)
    identity = second.teacher().identity
    assert identity["weights_sha256"] == first.teacher().identity["weights_sha256"]
    assert identity["imported"]["encoding"] == encoding.attributes()
    assert ("assumed" in identity["imported"]) == bool(encoding.top_k)


def test_predicted_tails_go_with_dense(store: Path, shuffled: Split, tmp_path: Path) -> None:
    teacher = export(store, tmp_path / "x.npz", dense=True)
    answers = build_teacher(shuffled, teacher, "", FLIPS)
    cache_teacher(answers, tmp_path / "back.zarr", encoding=Encoding(kind="dense", num_classes=C, bits=16))
    for view in range(V):
        assert_close(log_prob_of(open_store(store), view), log_prob_of(open_store(tmp_path / "back.zarr"), view), 2**-9)


def test_lossless_stores_come_back_bit_for_bit(data: Split, shuffled: Split, tmp_path: Path) -> None:
    first = open_store(make_store(tmp_path, data, DENSE32))
    answers = build_teacher(shuffled, export(first.path, tmp_path / "x.npz"), "", FLIPS)
    cache_teacher(answers, tmp_path / "back.zarr", encoding=DENSE32)
    second = open_store(tmp_path / "back.zarr")
    rows = {key: row for row, key in enumerate(first.keys.tolist())}
    once = [row for row, key in enumerate(second.keys.tolist()) if first.keys.tolist().count(key) == 1]
    places = [rows[second.keys.tolist()[row]] for row in once]
    for view in range(V):
        expected, found = first.teacher().slab(view)["logit"], second.teacher().slab(view)["logit"]
        assert (expected[places] == found[once]).all()
    assert second.teacher().summary["accuracy"] == first.teacher().summary["accuracy"]


def test_examples_that_are_there_twice_keep_their_order(data: Split, tmp_path: Path) -> None:
    first = open_store(make_store(tmp_path, data, DENSE32))
    answers = build_teacher(data, export(first.path, tmp_path / "x.npz"), "", FLIPS)
    assert data.keys[7] == data.keys[17]
    logits = answers(np.array([7, 17]), 1).numpy()
    assert (logits == first.teacher().slab(1)["logit"][[7, 17]]).all()
    assert (logits[0] != logits[1]).any()


def test_a_part_of_the_data_and_of_the_views(store: Path, data: Split, tmp_path: Path) -> None:
    teacher = export(store, tmp_path / "x.npz")
    answers = build_teacher(data, teacher, "", Views(transform="flip-crop", num_views=1, seed=3))
    limited = LimitedTeacher(answers, 40)
    summary = cache_teacher(limited, tmp_path / "s.zarr", encoding=DENSE32)
    assert (open_store(tmp_path / "s.zarr").num_examples, summary["kind"]) == (40, "training rows unknown")


def test_folds_come_with_the_answers(data: Split, shuffled: Split, tmp_path: Path) -> None:
    plan = FoldPlan(num_folds=3, strategy="kfold", seed=4)
    first = open_store(make_store(tmp_path, data, TOPK16, plan=plan))
    teacher = export(first.path, tmp_path / "x.npz")
    answers = build_teacher(shuffled, teacher, "", FLIPS)
    summary = cache_teacher(answers, tmp_path / "back.zarr", encoding=TOPK16, predictor_rows=0)
    second = open_store(tmp_path / "back.zarr")
    assert summary["kind"] == "out-of-fold"
    assert first.folds is not None
    assert second.folds is not None
    own = dict(zip(first.keys.tolist(), first.folds.tolist(), strict=True))
    wrong = [row for row, key in enumerate(second.keys.tolist()) if own[key] != second.folds[row]]
    assert len(wrong) <= 2  # the example that is there twice
    folds = second.teacher().folds
    assert folds is not None
    assert folds["proof"] == "declared, as the export says"
    assert build_teacher(data, teacher, "", FLIPS, plan=plan).folds is not None
    with pytest.raises(ValueError, match="drop --folds"):
        build_teacher(data, teacher, "", FLIPS, plan=FoldPlan(num_folds=3, strategy="kfold", seed=5))


def test_rows_without_an_answer_are_missing(data: Split, tmp_path: Path) -> None:
    """They are no zeros: whoever asks for them is told, and whose images are broken as well is served."""
    broken = replace(data, readable=np.arange(N) % 30 != 4)
    teacher = export(make_store(tmp_path, broken, TOPK16), tmp_path / "x.npz")
    with pytest.raises(ValueError, match="lacks 4 of the 120 examples"):
        build_teacher(data, teacher, "", FLIPS)
    cache_teacher(build_teacher(broken, teacher, "", FLIPS), tmp_path / "back.zarr", encoding=TOPK16, predictor_rows=0)
    first, second = (open_store(tmp_path / name).teacher() for name in ("s.zarr", "back.zarr"))
    assert (second.slab(1)["mask"] == broken.readable).all()
    assert (first.slab(1)["index"][broken.readable] == second.slab(1)["index"][broken.readable]).all()
    assert second.summary["accuracy"] == first.summary["accuracy"]


def test_what_the_teacher_has_seen_stays_known(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    answers = build_teacher(digits, "mlp:32", str(plain_teacher), Views())
    first = cache_teacher(answers, tmp_path / "s.zarr", encoding=Encoding(kind="dense", num_classes=10))
    again = build_teacher(digits, export(tmp_path / "s.zarr", tmp_path / "x.npz"), "", Views())
    second = cache_teacher(again, tmp_path / "t.zarr", encoding=Encoding(kind="dense", num_classes=10))
    assert first["kind"] == second["kind"] == "seen"
    assert second["accuracy"] == first["accuracy"] > 0.9


def changed(split: Split, folder: Path, change: str) -> Split:
    x, y = np.array(split.samples[..., 0], dtype=np.uint8), split.labels.copy()
    if change == "labels":
        y[:3] = (y[:3] + 1) % C
    if change == "examples":
        x[:5, 0, 0] ^= 1
    np.savez(folder / "changed.npz", x=x, y=y)
    return load_split(f"npz:{folder}/changed.npz?classes={11 if change == 'classes' else C}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("labels", "other labels on 3 examples"),
        ("examples", "lacks 5 of the 120 examples"),
        ("classes", "answers 10 classes"),
    ],
)
def test_other_data_is_refused(store: Path, data: Split, tmp_path: Path, change: str, message: str) -> None:
    teacher = export(store, tmp_path / "x.npz")
    with pytest.raises(ValueError, match=message):
        build_teacher(changed(data, tmp_path, change), teacher, "", FLIPS)


@pytest.mark.parametrize(
    "views",
    [
        Views(),
        Views(transform="flip-crop", num_views=V, seed=4),
        Views(transform="rrc", num_views=V, seed=3),
        Views(transform="flip-crop", num_views=V + 1, seed=3),
    ],
)
def test_other_views_are_refused(store: Path, data: Split, tmp_path: Path, views: Views) -> None:
    teacher = export(store, tmp_path / "x.npz")
    with pytest.raises(ValueError, match="pass --views 2 --transform 'flip-crop' --view-seed 3"):
        build_teacher(data, teacher, "", views)


@pytest.mark.parametrize(("change", "message"), [("digest", "replays to other pixels"), ("none", "no proof")])
def test_other_pixels_are_refused(store: Path, data: Split, tmp_path: Path, change: str, message: str) -> None:
    """As if a library on this machine cropped otherwise."""
    teacher = export(store, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        arrays = {name: file[name] for name in file.files}
    said = json.loads(str(arrays["store"]))
    said["probes"] = None if change == "none" else said["probes"]
    if said["probes"]:
        said["probes"]["digest"][1][2] = "0" * 16
    arrays["store"] = np.array(json.dumps(said))
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        build_teacher(data, teacher, "", FLIPS)


def test_folds_must_be_those_of_the_document(data: Split, tmp_path: Path) -> None:
    store = make_store(tmp_path, data, TOPK16, plan=FoldPlan(num_folds=3, strategy="kfold"))
    teacher = export(store, tmp_path / "x.npz")
    with np.load(tmp_path / "x.npz") as file:
        arrays = {name: file[name] for name in file.files}
    np.savez(tmp_path / "x.npz", **{**arrays, "fold": np.roll(arrays["fold"], 1)})
    with pytest.raises(ValueError, match="its folds do not match the checksum"):
        build_teacher(data, teacher, "", FLIPS)
    said = json.loads(str(arrays["store"]))
    del said["folds"]["num_folds"]
    np.savez(tmp_path / "x.npz", **{**arrays, "store": np.array(json.dumps(said))})
    with pytest.raises(ValueError, match="its folds do not match the checksum"):
        build_teacher(data, teacher, "", FLIPS)


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ("fkd:labels", "nothing is unpickled"),
        ("ml-dr:reinforced", "nothing is unpickled"),
        ("distillkit:data.parquet", "unpack them for topk:FILE"),
        ("export:none.npz", "no such file"),
        ("export:s.zarr", "is a store already"),
        ("export:empty", "only an .npz export becomes a store again; run `cli export STORE --out NAME.npz`"),
        ("export:x.tar", "hand over the store itself: `cli copy STORE NAME.zarr.zip`"),
        ("export:x.parquet", "only an .npz export becomes a store again"),
        ("export:d.csv", "unknown ending"),
        ("export:label.pth.tar", "pickle"),
        ("export:d.npz", "not an export"),
    ],
)
def test_what_is_no_export_is_refused_in_one_line(
    teacher: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_data(tmp_path / "d.npz")
    for name in ("s.zarr", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "s.zarr" / "zarr.json").write_text("{}")
    for name in ("d.csv", "label.pth.tar", "x.tar"):
        (tmp_path / name).write_bytes(b"\x50\x4b\x03\x04")
    monkeypatch.chdir(tmp_path)
    command = f"cli cache-teacher --data npz:d.npz?classes=10 --teacher {teacher} --out new"
    monkeypatch.setattr(sys, "argv", command.split())
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(SystemExit) as exited:
        cli.main()
    out, error = capsys.readouterr()
    assert (exited.value.code, out, error.count("\n")) == (2, "", 1)
    assert message in error
    assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_weights_mean_nothing_to_it(data: Split) -> None:
    for teacher in ("export:x.npz", "tinyvit:x?keys=paths&pixels=plain"):
        with pytest.raises(ValueError, match="leave it out"):
            build_teacher(data, teacher, "w.pt", FLIPS)
