"""Students of examples that are answered at many positions: from a store of a causal teacher to measured weights."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.build import build_teacher
from logitbank.pipeline.cache_teacher.train import train_teachers
from logitbank.pipeline.datasets import Split, load_split, with_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.train_student.losses import objective as objectives
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.positions import encodings, write_files, write_store
from tests.students import train

LENGTH, VOCABULARY = 8, 12
STUDENT: dict[str, Any] = {
    "student": "gpt:16x1",
    "epochs": 6,
    "optimizer": "adamw",
    "lr": 0.02,
    "weight_decay": 0.0,
    "batch_size": 10,
    "val_share": 0.2,
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Split, Split]:
    """A language in which each token is the last but one plus one, mostly."""
    folder, rng, ids = tmp_path_factory.mktemp("texts"), np.random.default_rng(0), [0, 5]
    for _ in range(100 * LENGTH):
        ids.append((ids[-2] + 1) % VOCABULARY if rng.random() < 0.9 else int(rng.integers(VOCABULARY)))
    np.array(ids[: 80 * LENGTH], np.uint16).tofile(folder / "train.bin")
    np.array(ids[80 * LENGTH : 100 * LENGTH], np.uint16).tofile(folder / "test.bin")
    spec = f"tokens:{folder}/train.bin?length={LENGTH}&test={folder}/test.bin"
    return load_split(spec), load_split(with_split(spec, "test"))


@pytest.fixture(scope="module")
def teacher(texts: tuple[Split, Split], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("teacher") / "weights"
    train_teachers(texts[0], "gpt:32x2", Training(epochs=10, optimizer="adamw", lr=0.01, weight_decay=0.0), out)
    return out


@pytest.fixture(scope="module")
def store(texts: tuple[Split, Split], teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Store:
    path = tmp_path_factory.mktemp("store") / "s.zarr"
    answering = build_teacher(texts[0], "gpt:32x2", str(teacher), Views())
    cache_teacher(answering, path, encoding=Encoding(kind="topk+tail", num_classes=VOCABULARY, top_k=4, tail_bits=2))
    return open_store(path)


@pytest.mark.parametrize("tail", ["predicted", "bucket"])
@pytest.mark.parametrize("kind", encodings(12))
def test_a_part_of_a_batch_says_what_the_whole_does(kind: str, tail: str, tmp_path: Path) -> None:
    data, _ = write_files(tmp_path, 30, 7, 12, ragged=True)
    answers = StoredAnswers(open_store(write_store(tmp_path, data, encodings(12)[kind])), tail=tail)
    whole = answers.of(torch.tensor([3, 17, 3, 29]), 0)
    student_PC = torch.randn(4 * 7, 12, generator=torch.Generator().manual_seed(0))
    logits_PC, known_P, served_P = whole.logits(student_PC, 2.0), whole.order_known(student_PC, 2.0), whole.served()
    assert served_P is not None
    for start in range(0, 28, 5):
        some = slice(start, start + 5)
        part = whole.part(some)
        torch.testing.assert_close(part.logits(student_PC[some], 2.0), logits_PC[some])
        assert torch.equal(part.served(), served_P[some])  # type: ignore[arg-type]
        own_P = part.order_known(student_PC[some], 2.0)
        assert (own_P is None) == (known_P is None)
        assert own_P is None or torch.equal(own_P, known_P[some])  # type: ignore[index]
    inner = whole.part(slice(5, 20)).part(slice(2, 6))
    torch.testing.assert_close(inner.logits(student_PC[7:11], 2.0), logits_PC[7:11])


def test_a_student_learns_from_its_teachers_answers(
    store: Store, texts: tuple[Split, Split], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same in chunks of rows; its measures have a classifier's names; what it says is read back."""
    result = train(store, *texts, tmp_path / "kd", **STUDENT)
    assert result["test"]["num_examples"] == 20
    assert result["test"]["num_rows"] == 20 * LENGTH - 1
    assert result["test"]["accuracy"] == result["accuracy"] > 0.4
    assert result["test"]["perplexity"] == pytest.approx(np.exp(result["nll"]))
    assert 0 < result["against_teacher"]["kl"] < 1
    assert result["against_teacher"]["num_rows"] == 16 * LENGTH
    assert result["validation"]["nll"] < np.log(VOCABULARY)
    assert sorted(path.name for path in (tmp_path / "kd").iterdir()) == [
        *("history.csv", "result.json", "run.json", "signature.json", "student.safetensors")
    ]
    monkeypatch.setattr(objectives, "CHUNK", 7 * VOCABULARY)
    parts = train(store, *texts, tmp_path / "chunks", **STUDENT)
    assert parts["nll"] == pytest.approx(result["nll"], abs=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": "ce"},
        {"loss": "kd:1 + ce:0.5", "settings": {"temperature": "2", "kd.row_weight": "paced"}},
        {"settings": {"temperature_rule": "difficulty"}, "accumulate": 2, "select": "best:kl"},
        {"settings": {"row_weight": "inverse_frequency"}, "select": "best:nll", "ema_decay": 0.9},
        {"precision": "bfloat16", "weight_bits": 8, "tail": "bucket"},
    ],
    ids=["labels", "paced", "difficulty", "classes", "rounded"],
)
def test_rules_losses_and_trainings_know_positions(
    settings: dict[str, Any], store: Store, texts: tuple[Split, Split], tmp_path: Path
) -> None:
    result = train(store, *texts, tmp_path / "run", **{**STUDENT, "epochs": 2, **settings})
    assert np.isfinite(result["nll"])


def test_a_stopped_run_goes_on_to_the_same_weights(store: Store, texts: tuple[Split, Split], tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stop(record: Any) -> None:
        if record.epoch == 2:
            raise Stopped

    whole = train(store, *texts, tmp_path / "whole", **{**STUDENT, "epochs": 3})
    with pytest.raises(Stopped):
        train(store, *texts, tmp_path / "parts", on_epoch=stop, **{**STUDENT, "epochs": 3})
    again = train(store, *texts, tmp_path / "parts", **{**STUDENT, "epochs": 3})
    assert again["weights_sha256"] == whole["weights_sha256"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixup": 1.0}, "--mixup does nothing here, because .* holds tokens"),
        ({"random_erasing": 0.5}, "holds no images"),
        ({"select": "best:auc"}, "--select best:auc is measured of one answer an example"),
        ({"mean": "0.5", "std": "0.5"}, "do nothing here, because .* holds tokens"),
        ({"student": "mlp:8"}, "needs images, but .* holds tokens"),
        ({"loss": "kd?starts_at=0.99:1 + ce:1", "epochs": 1}, "kd counts in none of this run's 7 steps"),
    ],
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], message: str, store: Store, texts: tuple[Split, Split], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        train(store, *texts, tmp_path / "run", **{**STUDENT, **settings})
    assert not (tmp_path / "run").exists()
