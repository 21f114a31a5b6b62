"""Stage two: repeatable to the bit, equal to the online teacher, and unwilling to train on the wrong rows."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from logitbank.cli import app
from logitbank.pipeline.alignment import check_data
from logitbank.pipeline.answers.opening import open_answers
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.cache_teacher.teachers.load import load_teachers
from logitbank.pipeline.cache_teacher.teachers.running import NetworkTeacher
from logitbank.pipeline.datasets import Split, take
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.exchange.decode import decode_to_file
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.loop import BatchLoss, fit
from logitbank.pipeline.models import build_model
from logitbank.pipeline.models.preprocessing import fit_preprocessing
from logitbank.pipeline.models.signature import SIGNATURE
from logitbank.pipeline.models.weights import load_state, read_metadata, weights_digest
from logitbank.pipeline.train_student.folder import CLASSES, CONFUSION, HISTORY, RESULT, SETTINGS, WEIGHTS
from logitbank.pipeline.train_student.losses import ExactAnswer, Step, parse_objective
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

VIEWS = Views(transform="flip-crop", num_views=3, seed=1)
ENCODINGS = {
    "dense32": Encoding(kind="dense", num_classes=10, bits=32),
    "dense8": Encoding(kind="dense", num_classes=10, bits=8),
    "topk": Encoding(kind="topk", num_classes=10, top_k=3),
}


@pytest.fixture(scope="module")
def stores(digits: Split, plain_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("stores")
    teachers = load_teachers(digits, "mlp:32", str(plain_teacher))
    for name, encoding in ENCODINGS.items():
        cache_teacher(NetworkTeacher(digits, teachers, VIEWS), folder / f"{name}.zarr", encoding=encoding)
    return {name: open_store(folder / f"{name}.zarr") for name in ENCODINGS}


def digest(folder: Path) -> str:
    return weights_digest(load_state(folder / WEIGHTS))


def test_a_run_writes_result_weights_and_history(
    stores: dict[str, Store], digits: Split, digits_test: Split, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    result = train(stores["dense32"], digits, digits_test, out, epochs=4, seed=2)
    names = {path.name for path in out.iterdir()}
    assert names == {CLASSES, CONFUSION, SETTINGS, RESULT, WEIGHTS, HISTORY, SIGNATURE}
    written = json.loads((out / RESULT).read_text())
    assert written["accuracy"] == result["accuracy"] > 0.8
    assert {"accuracy", "nll", "ece", "seconds", "settings", "versions", "store", "test"} <= written.keys()
    assert written["store"]["dataset_fingerprint"] == digits.fingerprint
    assert read_metadata(out / WEIGHTS)["architecture"] == "mlp:16"
    with (out / HISTORY).open() as file:
        assert [int(row["epoch"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]


@pytest.mark.parametrize("store", ENCODINGS)
@pytest.mark.parametrize("loss", ["kd", "redistill", "rld"])
def test_same_seed_same_weights_bit_for_bit(
    stores: dict[str, Store], digits: Split, tmp_path: Path, store: str, loss: str
) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(stores[store], digits, None, tmp_path / name, loss=loss, epochs=2, seed=seed)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_batches_of_an_evaluation_decide_nothing(
    stores: dict[str, Store], digits: Split, digits_test: Split, tmp_path: Path
) -> None:
    """Measured in other batches, the student is the same one; and so is the run."""
    settings: dict[str, Any] = {"epochs": 2, "val_share": 0.1, "select": "best:nll"}
    one = train(stores["dense8"], digits, digits_test, tmp_path / "a", **settings)
    other = train(stores["dense8"], digits, digits_test, tmp_path / "b", **settings, eval_batch_size=50, workers=2)
    assert other["weights_sha256"] == one["weights_sha256"]
    assert other["test"]["nll"] == pytest.approx(one["test"]["nll"], rel=1e-5)
    assert train(stores["dense8"], digits, digits_test, tmp_path / "a", **settings, eval_batch_size=50) == one


def test_patience_ends_a_run_and_its_result_says_by_what(
    stores: dict[str, Store], digits: Split, tmp_path: Path
) -> None:
    """At a rate that makes later epochs worse."""
    asked = {"epochs": 9, "val_share": 0.2, "select": "best:brier", "patience": 1, "lr": 2.0, "schedule": "constant"}
    result = train(stores["dense8"], digits, None, tmp_path / "r", asked=asked)
    with (tmp_path / "r" / HISTORY).open() as file:
        measured = [float(row["val_selected"]) for row in csv.DictReader(file)]
    assert len(measured) < 9
    assert measured[-1] >= min(measured) == measured[-2] == result["validation"]["brier"]
    assert result["validation"]["epoch"] == len(measured) - 1


class OnlineLoss(BatchLoss):
    """The same objective, with the teacher run on the very pixels of the epoch's view instead of read from a store."""

    def __init__(self, split: Split, teacher_folder: Path, epochs: int) -> None:
        teacher = load_teachers(split, "mlp:32", str(teacher_folder)).teachers[0]
        self.model, self.scaling = teacher.model, teacher.preprocessing
        self.split, self.epochs = split, epochs
        self.objective, self.labels = parse_objective("kd", {}), torch.from_numpy(split.labels)

    def order(
        self, rows: Tensor, generator: torch.Generator, *, view: int, next_view: int | None, shown: int = 0
    ) -> Tensor:
        answers = []
        with torch.inference_mode():
            for start in range(0, len(self.split), 256):  # stage one's batches
                some = np.arange(start, min(start + 256, len(self.split)))
                samples = VIEWS.samples(self.split, some, view)
                answers.append(self.model(self.scaling(torch.from_numpy(samples))))
        self.answers = torch.cat(answers).clone()
        return super().order(rows, generator, view=view, next_view=next_view, shown=shown)

    def __call__(self, logits_BC: Tensor, rows_B: Tensor, *, view: int, step: int, steps_per_epoch: int) -> Tensor:
        now = Step(step=step, steps_per_epoch=steps_per_epoch, num_epochs=self.epochs)
        return self.objective(logits_BC, ExactAnswer(self.answers[rows_B]), self.labels[rows_B], now)


def test_a_lossless_store_teaches_exactly_what_the_online_teacher_does(
    stores: dict[str, Store], digits: Split, plain_teacher: Path, tmp_path: Path
) -> None:
    training = Training(epochs=3, seed=4)
    train(stores["dense32"], digits, None, tmp_path / "run", epochs=3, seed=4)
    torch.manual_seed(training.seed)
    online = build_model("mlp:16", digits)
    loss = OnlineLoss(digits, plain_teacher, training.epochs)
    fit(online, digits, loss, training, views=VIEWS, preprocessing=fit_preprocessing(digits))
    assert weights_digest(online.state_dict()) == digest(tmp_path / "run")


def test_an_epoch_hears_its_own_view(stores: dict[str, Store], digits: Split, plain_teacher: Path) -> None:
    teacher = load_teachers(digits, "mlp:32", str(plain_teacher)).teachers[0]
    answers = StoredAnswers(stores["dense32"])
    rows = torch.tensor([3, 1, 700])
    for view in (2, 0, 1):
        samples = torch.from_numpy(VIEWS.samples(digits, rows.numpy(), view))
        with torch.inference_mode():
            expected = teacher.model(teacher.preprocessing(samples))
        torch.testing.assert_close(answers.logits(rows, view), expected, rtol=1e-5, atol=1e-5)


def test_the_order_of_labels_and_head_is_known(stores: dict[str, Store]) -> None:
    rows = torch.arange(stores["topk"].num_examples)
    dense, topk = StoredAnswers(stores["dense32"]), StoredAnswers(stores["topk"])
    best = dense.logits(rows, 0).topk(3).indices
    expected = (best == dense.labels[rows][:, None]).any(dim=1)
    nobody = torch.zeros(len(rows), 10)
    assert dense.of(rows, 0).order_known(nobody, 1.0) is None
    known = topk.of(rows, 0).order_known(nobody, 1.0)
    assert known is not None
    assert (known == expected).all()


@pytest.mark.parametrize("tail", ["predicted", "bucket", "uniform", "renormalise"])
def test_every_tail_rule_trains(
    stores: dict[str, Store], digits: Split, digits_test: Split, tmp_path: Path, tail: str
) -> None:
    settings = {"settings": {"temperature": "2"}, "epochs": 2, "tail": tail}
    result = train(stores["topk"], digits, digits_test, tmp_path / "r", asked=settings)
    assert result["accuracy"] > 0.3  # chance is 0.1; the teacher is weak on these views


def test_rules_that_would_change_nothing_are_refused(stores: dict[str, Store], tmp_path: Path) -> None:
    for rule in ("uniform", "predicted"):  # the usual one, when it is asked for
        with pytest.raises(ValueError, match=f"--tail {rule} does nothing here, because the store keeps every class"):
            open_answers(stores["dense8"], tail=rule)
    with pytest.raises(ValueError, match="--tail renormalise does nothing here"):
        decode_to_file(stores["dense8"], tmp_path / "p.npy", tail="renormalise")
    with pytest.raises(ValueError, match="--combine mean-logit does nothing with one teacher"):
        open_answers(stores["topk"], combine="mean-logit")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["train-student", "sweep"])
def test_every_command_refuses_a_tail_rule_that_does_nothing(
    stores: dict[str, Store], tmp_path: Path, command: str
) -> None:
    asked = ["--store", str(stores["dense8"].path), "--student", "mlp:4", "--epochs", "1", "--out", str(tmp_path / "r")]
    few = ["--seeds", "1", "--loss", "kd"] if command == "sweep" else []
    result = CliRunner().invoke(app, [command, *asked, *few, "--tail", "predicted"])
    assert "--tail predicted does nothing here, because the store keeps every class; leave it out" in str(
        result.exception
    )
    assert not list(tmp_path.rglob("student.safetensors"))


@pytest.mark.parametrize("rows", ["1400:1438", "5:5", "-3:", "9:2", "1437:", "a:b", "7"])
def test_rows_that_are_not_in_the_store_are_refused(stores: dict[str, Store], tmp_path: Path, rows: str) -> None:
    with pytest.raises(ValueError, match=f"--slice is '{rows}'; expected a:b within 0:1437"):
        decode_to_file(stores["dense8"], tmp_path / "p.npy", rows=rows)
    assert not list(tmp_path.iterdir())


def reordered(split: Split) -> Split:
    return replace(split, samples=split.samples[::-1].copy(), labels=split.labels[::-1].copy())


def relabelled(split: Split) -> Split:
    labels = split.labels.copy()
    labels[:3] = (labels[:3] + 1) % 10
    return replace(split, labels=labels)


def other_pixels(split: Split) -> Split:
    samples = split.samples.copy()
    samples[5, 0, 0] += 1
    return replace(split, samples=samples)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (reordered, "the same examples in another order"),
        (relabelled, "other labels on 3 examples"),
        (other_pixels, "pass the data that the store was written for"),
    ],
)
def test_rows_that_are_not_the_stores_are_refused(
    stores: dict[str, Store], digits: Split, tmp_path: Path, change: object, message: str
) -> None:
    assert callable(change)
    with pytest.raises(ValueError, match=message) as caught:
        train(stores["dense32"], change(digits), None, tmp_path / "run", epochs=1)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_the_whole_data_of_a_trial_is_refused(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    few = take(digits, 300)
    teachers = load_teachers(few, "mlp:32", str(plain_teacher))
    cache_teacher(NetworkTeacher(few, teachers, Views()), tmp_path / "few.zarr", encoding=ENCODINGS["dense8"])
    with pytest.raises(ValueError, match="of a trial; add limit=300 to the data"):
        check_data(open_store(tmp_path / "few.zarr"), digits)


def test_added_examples_are_counted(digits: Split, plain_teacher: Path, tmp_path: Path) -> None:
    few = replace(digits, samples=digits.samples[20:320].copy(), labels=digits.labels[20:320].copy())
    teachers = load_teachers(few, "mlp:32", str(plain_teacher))
    cache_teacher(NetworkTeacher(few, teachers, Views()), tmp_path / "few.zarr", encoding=ENCODINGS["dense8"])
    with pytest.raises(ValueError, match="with 1137 more: take those out"):
        check_data(open_store(tmp_path / "few.zarr"), digits)


def test_another_split_is_refused(stores: dict[str, Store], digits_test: Split) -> None:
    with pytest.raises(ValueError, match=r"written for digits train .* this data is digits\?split=test"):
        check_data(stores["dense32"], digits_test)


def test_a_loss_that_needs_every_class_refuses_a_top_k_store(
    stores: dict[str, Store], digits: Split, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="needs every class's logit, but .* keeps the top 3 of 10"):
        train(stores["topk"], digits, None, tmp_path / "run", loss="sel_corrected", epochs=1)
    assert list(tmp_path.iterdir()) == []


def test_warnings_say_what_the_loss_would_rather_have(stores: dict[str, Store], digits: Split, tmp_path: Path) -> None:
    result = train(stores["dense8"], digits, None, tmp_path / "a", loss="sel_corrected", epochs=1)
    assert "made for out-of-fold answers" in result["warnings"][0]
    result = train(stores["topk"], digits, None, tmp_path / "b", settings={"temperature": "50"}, epochs=1)
    assert "100% of the rows have most of their mass outside the stored top 3" in result["warnings"][0]
    result = train(stores["topk"], digits, None, tmp_path / "c", settings={"temperature": "0.1"}, epochs=1)
    assert result["warnings"] == []


def test_test_rows_that_the_student_learns_from_are_counted(
    stores: dict[str, Store], digits: Split, digits_test: Split, tmp_path: Path
) -> None:
    def warned(test: Split, val_share: float = 0.0) -> list[str]:
        out = tmp_path / f"{test.split}{val_share}"
        found = train(stores["dense32"], digits, test, out, student="mlp:4", epochs=1, val_share=val_share)
        return list(found["warnings"])

    assert warned(digits_test) == []
    assert f"{len(digits)} of the {len(digits)} rows" in warned(digits)[0]
    held = len(digits) - round(0.25 * len(digits))
    assert f"{held} of the {len(digits)} rows" in warned(digits, 0.25)[0]


def test_a_run_never_overwrites(stores: dict[str, Store], digits: Split, tmp_path: Path) -> None:
    arguments = (stores["dense32"], digits, None)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists already and is not a run"):
        train(*arguments, tmp_path / "other", epochs=1)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    train(*arguments, tmp_path / "empty", epochs=1)
    before = {path: path.read_bytes() for path in (tmp_path / "empty").iterdir()}
    again = train(*arguments, tmp_path / "empty", epochs=1)  # already there
    assert again == json.loads(before[tmp_path / "empty" / RESULT])
    with pytest.raises(ValueError, match=r"is a finished run with other settings \(training.epochs 1, here 2\)"):
        train(*arguments, tmp_path / "empty", epochs=2)
    assert {path: path.read_bytes() for path in (tmp_path / "empty").iterdir()} == before


def test_a_store_written_anew_under_the_same_path_is_another_store(digits: Split, tmp_path: Path) -> None:
    path, generator = tmp_path / "s.zarr", np.random.default_rng(0)

    def run() -> dict[str, Any]:
        store = open_store(path)
        assert not store.teacher().digest.startswith("none")
        return train(store, digits, None, tmp_path / "r", student="linear", epochs=1)

    for again in (False, True):
        np.save(tmp_path / "logits.npy", generator.normal(size=(len(digits), 10)).astype(np.float32))
        shutil.rmtree(path, ignore_errors=True)
        answers = ArrayTeacher(tmp_path / "logits.npy", digits, Views())
        cache_teacher(answers, path, encoding=Encoding(kind="dense", num_classes=10, bits=8))
        if not again:
            assert run()["store"]["digest"] == open_store(path).teacher().digest
    with pytest.raises(ValueError, match=r"finished run with other settings \(store.digest"):
        run()


class Overflows(torch.nn.Module):
    """Finite in training; in evaluation as a student whose weights have run away."""

    def __init__(self, num_classes: int, num_pixels: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(num_pixels, num_classes)

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.layer(inputs.flatten(1))
        return logits if self.training or len(inputs) <= 2 else logits * 1e38 * 1e38


@pytest.mark.parametrize("val_share", [0.0, 0.2])
def test_a_student_whose_answers_are_not_finite_is_no_result(
    stores: dict[str, Store], digits: Split, digits_test: Split, tmp_path: Path, val_share: float
) -> None:
    (tmp_path / "net.py").write_text(
        "from tests.test_train_student import Overflows\n"
        "def net(num_classes, input_shape): return Overflows(num_classes, 64)\n"
    )
    settings = {"student": f"{tmp_path / 'net.py'}:net", "epochs": 1, "val_share": val_share}
    with pytest.raises(ValueError, match="answers are not finite on .* lower --lr"):
        train(stores["dense32"], digits, digits_test, tmp_path / "run", asked=settings)
    assert not (tmp_path / "run" / RESULT).exists()


def test_a_loss_that_explodes_says_so_and_leaves_nothing(
    stores: dict[str, Store], digits: Split, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="lower --lr"):
        train(stores["dense32"], digits, None, tmp_path / "run", loss="mse", epochs=2, lr=1e12)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("measure", ["agreement", "kl"])
def test_the_best_epoch_may_be_the_one_nearest_to_the_teacher(
    measure: str, stores: dict[str, Store], digits: Split, tmp_path: Path
) -> None:
    """What the best epoch measured is what the student that was kept measures in the end."""
    asked = {"select": f"best:{measure}", "val_share": 0.2, "epochs": 3, "lr": 0.5}
    result = train(stores["topk"], digits, None, tmp_path / "run", asked=asked)
    assert result["validation"][measure] == pytest.approx(result["against_teacher"][measure], rel=1e-6)
    with (tmp_path / "run" / HISTORY).open(newline="") as file:
        told = [float(row["val_selected"]) for row in csv.DictReader(file)]
    assert result["validation"][measure] == (min(told) if measure == "kl" else max(told))
