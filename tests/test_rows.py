"""Sound bytes that make no sense: every reader refuses them in one line, and `verify` names them."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.views import Views, probe
from logitbank.stores import StoreError, TeacherWriter, create_store, open_store, verify_store
from logitbank.stores.read.rows import broken_rows
from tests.test_stores_hostile import edit

N, C = 240, 12
ENCODINGS = {
    "topk": Encoding(kind="topk", num_classes=C, top_k=4),
    "topk-16": Encoding(kind="topk", num_classes=C, top_k=4, bits=16),
    "dense-8": Encoding(kind="dense", num_classes=C, bits=8),
    "dense-16": Encoding(kind="dense", num_classes=C, bits=16),
    "dense-32": Encoding(kind="dense", num_classes=C, bits=32),
}
Arrays = dict[str, np.ndarray]


def answers(encoding: Encoding, seed: int = 0, *, masked: bool = False) -> tuple[Arrays, np.ndarray]:
    """Rows of a teacher that is mostly right, and the labels, some of them missing."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(-1, C, (N,), generator=generator)
    labels[7] = 3
    logits = torch.randn(N, C, generator=generator)
    logits[torch.arange(N), labels.clamp(min=0)] += 4
    if masked:
        logits[100, 5] = -torch.inf
    return encode(logits, labels, encoding), labels.numpy()


def blamed(arrays: Arrays, labels: np.ndarray) -> dict[str, list[int]]:
    return {words: rows.tolist() for words, rows in broken_rows(arrays, labels, C)}


@pytest.mark.parametrize("kind", ENCODINGS)
@given(
    seed=st.integers(0, 10_000),
    scale=st.sampled_from([0.0, 1e-3, 0.3, 3.0, 50.0, 1e4]),
    offset=st.sampled_from([0.0, 300.0, -1e5]),
    masked=st.sampled_from([0.0, 0.4]),
    rounded=st.booleans(),
)
def test_no_row_of_our_own_is_blamed(
    kind: str, seed: int, scale: float, offset: float, masked: float, rounded: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(64, C, generator=generator) * scale + offset
    logits = logits.round() if rounded else logits
    logits[:, 1:][torch.rand(64, C - 1, generator=generator) < masked] = -torch.inf
    labels = torch.randint(-1, C, (64,), generator=generator)
    assert blamed(encode(logits, labels, ENCODINGS[kind]), labels.numpy()) == {}


def at(row: int, value: object) -> Callable[[np.ndarray], None]:
    def change(array: np.ndarray) -> None:
        array[row] = value

    return change


BROKEN: dict[str, tuple[tuple[str, ...], str, Callable[[np.ndarray], None], str]] = {
    "a class beyond": (("topk", "topk-16"), "index", at(7, [0, 1, 2, C]), "class that the data does not have"),
    "a class twice": (("topk", "topk-16"), "index", at(7, [0, 1, 2, 1]), "class twice"),
    "no sum": (("topk", "topk-16", "dense-8", "dense-16"), "logsumexp", at(7, np.nan), "NaN or infinity"),
    "an endless sum": (("topk", "dense-8"), "logsumexp", at(7, np.inf), "NaN or infinity"),
    "an answer that is none": (("topk-16", "dense-16"), "log_prob", at(7, np.nan), "NaN or infinity"),
    "a logit that is none": (("dense-32",), "logit", at(7, np.nan), "NaN or infinity"),
    "an endless logit": (("dense-32",), "logit", at(7, np.inf), "NaN or infinity"),
    "nothing but masked classes": (("dense-32",), "logit", at(7, -np.inf), "NaN or infinity"),
    "no scale": (("dense-8",), "log_prob_scale", at(7, 0), "probability above 1"),
    "a high floor": (("dense-8",), "log_prob_floor", at(7, 5), "probability above 1"),
    "a tail of everything": (("topk", "topk-16"), "log_tail_mass", at(7, 0), "probability above 1"),
    "not best first": (("topk-16",), "log_prob", at(7, [-3, -2, -4, -5]), "best class first"),
    "too much mass": (("topk-16",), "log_prob", at(7, [-0.1, -0.1, -0.1, -9]), "add to more than 1"),
    "all of everything": (("dense-16",), "log_prob", at(7, -0.5), "add to more than 1"),
    "codes of everything": (("dense-8",), "log_prob_code", at(7, 255), "add to more than 1"),
    "a rank beyond": (tuple(ENCODINGS), "label_rank", at(7, C + 1), "a label where"),
    "no rank": (tuple(ENCODINGS), "label_rank", at(7, 0), "a label where"),
    "another rank": (tuple(ENCODINGS), "label_rank", at(7, C), "has the rank"),
    "no label": (tuple(ENCODINGS), "label_log_prob", at(7, np.nan), "a label where"),
    "another probability": (tuple(ENCODINGS), "label_log_prob", at(7, -60.0), "has the probability"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_row_is_blamed(case: str) -> None:
    kinds, name, change, words = BROKEN[case]
    for kind in kinds:
        arrays, labels = answers(ENCODINGS[kind])
        assert labels[7] >= 0
        assert arrays["label_rank"][7] == 1
        change(arrays[name])
        found = blamed(arrays, labels)
        assert list(found.values()) == [[7]], kind
        assert words in next(iter(found)), kind
        hidden = {**arrays, "mask": np.arange(N) != 7}
        assert blamed(hidden, labels) == {}, kind


@pytest.mark.parametrize("kind", ENCODINGS)
def test_shuffled_rows_contradict_their_labels(kind: str) -> None:
    arrays, labels = answers(ENCODINGS[kind])
    order = np.random.default_rng(0).permutation(N)
    found = blamed({name: array[order] for name, array in arrays.items()}, labels)
    assert sum(map(len, found.values())) > 0.75 * N
    shifted = blamed({name: np.roll(array, 1, axis=0) for name, array in arrays.items()}, labels)
    assert sum(map(len, shifted.values())) > 0.75 * N


def make(path: Path, arrays: Arrays, labels: np.ndarray, encoding: Encoding, mask: np.ndarray | None = None) -> Path:
    """A store with these very rows under sound checksums."""
    create_store(
        path,
        dataset={"name": "toy", "split": "train", "num_examples": N, "num_classes": C, "fingerprint": "0"},
        views={"num_views": 1, "transform": "none", "seed": 0},
        keys=np.arange(N, dtype=np.uint64),
        labels=labels,
    )
    writer = TeacherWriter(
        path,
        "t",
        identity={"architecture": "toy", "weights_sha256": ["0"]},
        encoding=encoding.attributes(),
        arrays=encoding.row_arrays(),
        block_rows=100,
    )
    for cell in writer.pending():
        writer.write(cell, {name: array[writer.rows(cell.block)] for name, array in arrays.items()})
    writer.finish(fidelity={}, summary={})
    return path


def test_verify_names_rows_and_readers_refuse_them(tmp_path: Path) -> None:
    encoding = ENCODINGS["topk"]
    arrays, labels = answers(encoding)
    assert verify_store(make(tmp_path / "sound.zarr", arrays, labels, encoding)) == []
    arrays["index"][[150, 190], 0] = 200
    path = make(tmp_path / "s.zarr", arrays, labels, encoding)
    (problem,) = verify_store(path)
    assert (problem.array, problem.view, problem.block) == ("teachers/t", 0, 1)
    assert problem.message.startswith("view 0 row 150 (and 1 more of its 100 rows) names a class that the data")
    assert verify_store(path, rows=False) == []
    teacher = open_store(path).teacher()
    teacher.answers(0, 0)
    with pytest.raises(StoreError, match=r"teachers/t: view 0 row 150 names a class .*; do not use this store"):
        teacher.answers(0, 1)


def test_every_command_refuses_such_rows(tmp_path: Path) -> None:
    from cli import app

    encoding = ENCODINGS["topk"]
    arrays, labels = answers(encoding)
    arrays["index"][150, 0] = 200
    path = str(make(tmp_path / "s.zarr", arrays, labels, encoding))
    sound, _ = answers(encoding)
    other = str(make(tmp_path / "sound.zarr", sound, labels, encoding))
    out = str(tmp_path / "out")
    commands: list[list[str]] = [
        ["verify", path],
        ["decode", path, "--out", f"{out}.npy"],
        ["diff", path, other],
        ["export", path, "--out", f"{out}.npz"],
        ["card", path, "--out", f"{out}.md"],
    ]
    for command in commands:
        result = CliRunner().invoke(app, command)
        assert isinstance(result.exception, ValueError), command
        assert "row 150" in str(result.exception) + result.stderr, command
    assert sorted(file.name for file in tmp_path.iterdir()) == ["s.zarr", "sound.zarr"]


def test_labels_are_compared_and_not_only_the_fingerprint(digits: Split, tmp_path: Path) -> None:
    """Somebody may have changed the labels of a store, and left the fingerprint as it was."""
    labels = np.roll(digits.labels, 1)
    create_store(
        tmp_path / "s.zarr",
        dataset=digits.describe(),
        views={**Views().attributes(), "versions": {}},
        keys=digits.keys,
        labels=labels,
        probes=probe(digits, Views()),
    )
    with pytest.raises(ValueError, match="are not those that its fingerprint"):
        check_data(open_store(tmp_path / "s.zarr", allow_incomplete=True), digits)


def test_labels_beyond_the_classes_are_refused(tmp_path: Path) -> None:
    arrays, labels = answers(ENCODINGS["topk"])
    path = make(tmp_path / "s.zarr", arrays, labels, ENCODINGS["topk"])
    edit(path, lambda document: document["attributes"]["dataset"].update(num_classes=5))
    (problem, *_) = verify_store(path)
    assert problem.array == "examples/label"
    with pytest.raises(StoreError, match="labels must be -1 to 4, found -1 to 11"):
        open_store(path).labels.sum()
