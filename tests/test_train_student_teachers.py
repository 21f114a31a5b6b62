"""Several teachers in one store, rows that a teacher does not serve, rows without a label."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from logitbank.pipeline.answers.opening import open_answers, parse_teachers
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.encoding.encode import encode
from logitbank.pipeline.train_student.distillation import DistillationLoss
from logitbank.pipeline.train_student.losses import LOSSES, ExactAnswer, Objective, Step, parse_objective
from logitbank.pipeline.train_student.needs import check_needs
from logitbank.pipeline.views import Views, probe
from logitbank.stores import RowArray, Store, TeacherWriter, create_store, open_store
from tests.students import train

ROWS = 120
ENCODING = Encoding(kind="dense", num_classes=10, bits=32)


@pytest.fixture(scope="module")
def split(digits: Split) -> Split:
    """120 digits, every fifth without a label."""
    labels = digits.labels[:ROWS].copy()
    labels[::5] = -1
    return replace(digits, samples=digits.samples[:ROWS], labels=labels)


LOGITS = {name: torch.randn(ROWS, 10, generator=torch.Generator().manual_seed(seed)) for seed, name in enumerate("ab")}


@pytest.fixture(scope="module")
def store(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Teacher a serves every row but the first 40, teacher b every row but the last 40 (and so both 40 to 80)."""
    path = tmp_path_factory.mktemp("several") / "s.zarr"
    views = Views()
    create_store(
        path,
        dataset=split.describe(),
        views={**views.attributes(), "versions": {}},
        keys=split.keys,
        labels=split.labels,
        folds=(np.arange(ROWS) % 2).astype(np.uint16),
        probes=probe(split, views),
    )
    for name, logits in LOGITS.items():
        writer = TeacherWriter(
            path,
            name,
            identity={"architecture": name, "weights_sha256": [name * 64]},
            encoding=ENCODING.attributes(),
            arrays={**ENCODING.row_arrays(), "mask": RowArray(dtype="bool")},
            folds={"num_folds": 2},
        )
        mask = np.arange(ROWS) >= 40 if name == "a" else np.arange(ROWS) < 80
        for cell in writer.pending():
            rows = writer.rows(cell.block)
            arrays = encode(logits[rows], torch.from_numpy(split.labels[rows]), ENCODING)
            writer.write(cell, {**arrays, "mask": mask[rows]})
        writer.finish(fidelity={})
    return open_store(path)


def test_weights_are_read_in_the_order_written() -> None:
    assert parse_teachers("b:2, a") == {"b": 2.0, "a": 1.0}
    for wrong in ("a,a", "a:0", "a:x", "a:inf", "a:nan", ","):
        with pytest.raises(ValueError, match="expected names once each"):
            parse_teachers(wrong)


def test_a_weight_of_one_teacher_does_nothing(store: Store) -> None:
    for text in ("a:2", "a:1"):
        with pytest.raises(ValueError, match=f"--teacher-name is '{text}', but a weight does nothing with one teacher"):
            open_answers(store, teacher=text)


@pytest.mark.parametrize("combine", ["mean-prob", "mean-logit"])
def test_several_teachers_are_a_weighted_mean_over_those_that_serve_a_row(store: Store, combine: str) -> None:
    answers = open_answers(store, teacher="a:3,b:1", combine=combine)
    rows = torch.arange(ROWS)
    share = torch.where(rows < 40, 0.0, torch.where(rows < 80, 0.75, 1.0))[:, None]
    a, b = (LOGITS[name].double() for name in "ab")
    if combine == "mean-prob":
        expected = (share * a.softmax(1) + (1 - share) * b.softmax(1)).log()
    else:
        expected = share * a + (1 - share) * b
    torch.testing.assert_close(answers.logits(rows, 0).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("teacher", ["a", "a,b"])
def test_every_loss_takes_unlabelled_and_unserved_rows(store: Store, split: Split, loss: str, teacher: str) -> None:
    """Rows that nobody serves teach their label alone; all gradients are finite."""
    answers = open_answers(store, teacher=teacher)
    objective = parse_objective(loss, {"warmup": "0"})
    check_needs(objective, store, answers)
    batch = DistillationLoss(objective, answers, split, epochs=2)
    rows = torch.arange(20, 100, 3)
    student = torch.randn(len(rows), 10, requires_grad=True, generator=torch.Generator().manual_seed(2))
    loss_B = batch(student, rows, view=0, step=1, steps_per_epoch=1)
    loss_B.mean().backward()  # type: ignore[no-untyped-call]
    assert loss_B.shape == (len(rows),)
    assert student.grad is not None
    assert student.grad.isfinite().all()
    unserved = (rows < 40) if teacher == "a" else torch.zeros(len(rows), dtype=torch.bool)
    of_labels = Objective("labels", tuple(term for term in objective.terms if not term.fits_teacher))
    step, labels_B = Step(step=1, steps_per_epoch=1, num_epochs=2), torch.from_numpy(split.labels)[rows]
    alone_B = of_labels(student, ExactAnswer(student.detach()), labels_B, step)
    torch.testing.assert_close(loss_B[unserved], alone_B[unserved])
    if of_labels.terms != objective.terms:
        assert (student.grad[~unserved] != 0).any()
    unlabelled = torch.from_numpy(split.labels)[rows] < 0
    if objective.needs >= {"labels"} and len(objective.terms) == 1:
        assert (student.grad[unlabelled] == 0).all()


def test_out_of_fold_is_asked_of_the_teacher_that_is_heard(split: Split, tmp_path: Path) -> None:
    """A store may hold a cross-fitted teacher and a plain one, which has seen every row."""
    create_store(
        tmp_path / "s.zarr",
        dataset=split.describe(),
        views={**Views().attributes(), "versions": {}},
        keys=split.keys,
        labels=split.labels,
        folds=(np.arange(ROWS) % 2).astype(np.uint16),
        probes=probe(split, Views()),
    )
    for name, folds in (("folded", {"num_folds": 2}), ("plain", None)):
        writer = TeacherWriter(
            tmp_path / "s.zarr",
            name,
            identity={"architecture": name, "weights_sha256": [name]},
            encoding=ENCODING.attributes(),
            arrays=ENCODING.row_arrays(),
            folds=folds,
        )
        writer.write(writer.pending()[0], encode(LOGITS["a"], torch.from_numpy(split.labels), ENCODING))
        writer.finish(fidelity={})
    store = open_store(tmp_path / "s.zarr")
    assert store.teacher("plain").row_folds is None
    needs = parse_objective("kd", {"row_weight": "label_noise"})
    prefers = parse_objective("sel_corrected", {})
    assert check_needs(needs, store, open_answers(store, teacher="folded")) == []
    assert check_needs(prefers, store, open_answers(store, teacher="folded")) == []
    for teacher in ("plain", "folded,plain"):
        with pytest.raises(ValueError, match="not those of teacher .*plain.*: it is not cross-fitted"):
            check_needs(needs, store, open_answers(store, teacher=teacher))
        assert "plain" in check_needs(prefers, store, open_answers(store, teacher=teacher))[0]
    asked = {"settings": {"row_weight": "label_noise"}, "teacher": "plain"}
    with pytest.raises(ValueError, match="needs out-of-fold"):
        train(store, split, None, tmp_path / "run", student="mlp:4", epochs=1, asked=asked)
    assert not (tmp_path / "run").exists()


def test_two_teachers_train_one_student(store: Store, split: Split, tmp_path: Path) -> None:
    asked = {"epochs": 2, "teacher": "a:3,b:1", "combine": "mean-logit", "val_share": 0.2}
    result = train(store, split, None, tmp_path / "ab", asked=asked)
    assert result["store"]["teacher"] == "a,b"
    assert {name: found["weight"] for name, found in result["store"]["teachers"].items()} == {"a": 3.0, "b": 1.0}
    assert [fold["fold"] for fold in result["against_teacher"]["per_fold"]] == [0, 1]
    with pytest.raises(ValueError, match="mean-logits.*did you mean 'mean-logit'"):
        train(store, split, None, tmp_path / "no", teacher="a,b", combine="mean-logits")
    assert [path.name for path in tmp_path.iterdir()] == ["ab"]
