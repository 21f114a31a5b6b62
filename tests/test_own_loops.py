"""Training loops of one's own: every row meets its own answer in its own view, whoever loads it, and the loss is the
one that the program's own training has."""

import copy
import csv
import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, DistributedSampler, Subset, WeightedRandomSampler

from logitbank.pipeline.answers.dataset import DistillationDataset, Example
from logitbank.pipeline.answers.stored import StoredAnswers
from logitbank.pipeline.answers.tail_warnings import tail_warnings
from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split
from logitbank.pipeline.datasets.torchvision_ops import prepare_torchvision
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.models.weights import save_weights
from logitbank.pipeline.train_student.folder import HISTORY
from logitbank.pipeline.train_student.losses import Answer, Objective, Step
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.pages import ROOT, blocks
from tests.students import train

VIEWS = Views(transform="flip-crop", num_views=3)
TOP_3 = Encoding(kind="topk", num_classes=10, top_k=3)


@pytest.fixture(scope="module")
def logits(digits: Split) -> Tensor:
    return torch.randn(3, len(digits), 10, generator=torch.Generator().manual_seed(0)) * 4


@pytest.fixture(scope="module")
def stores(digits: Split, logits: Tensor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    folder = tmp_path_factory.mktemp("own")
    np.save(folder / "logits.npy", logits.numpy())
    dense = Encoding(kind="dense", num_classes=10, bits=32)
    for name, encoding in (("dense", dense), ("topk", TOP_3)):
        answers = ArrayTeacher(folder / "logits.npy", digits, VIEWS)
        cache_teacher(answers, folder / f"{name}.zarr", encoding=encoding, block_rows=300)
    return {name: open_store(folder / f"{name}.zarr") for name in ("dense", "topk")}


@pytest.fixture(scope="module")
def dataset(stores: dict[str, Store], digits: Split) -> DistillationDataset:
    return DistillationDataset(stores["dense"], digits)


@pytest.fixture(scope="module")
def shown(digits: Split) -> list[Tensor]:
    rows = np.arange(len(digits))
    return [torch.from_numpy(VIEWS.samples(digits, rows, view)) for view in range(3)]


LOADERS: dict[str, dict[str, Any]] = {
    "here": {},
    "fork": {"num_workers": 2, "multiprocessing_context": "fork"},
    "persistent": {"num_workers": 2, "multiprocessing_context": "fork", "persistent_workers": True},
    "spawn": {"num_workers": 1, "multiprocessing_context": "spawn", "persistent_workers": True},
    "forkserver": {"num_workers": 1, "multiprocessing_context": "forkserver", "persistent_workers": True},
}


@pytest.mark.parametrize("way", LOADERS)
def test_every_row_meets_its_own_answer_in_the_epochs_view(
    stores: dict[str, Store], digits: Split, dataset: DistillationDataset, logits: Tensor, shown: list[Tensor], way: str
) -> None:
    answers = StoredAnswers(stores["dense"])
    loader = DataLoader(dataset, batch_size=100, shuffle=True, **LOADERS[way])
    for epoch in range(4):
        dataset.set_epoch(epoch)
        seen = []
        for sample_B, label_B, row_B, view_B in loader:
            assert (view_B == epoch % 3).all()
            assert torch.equal(sample_B, shown[epoch % 3][row_B])
            assert torch.equal(label_B, torch.from_numpy(digits.labels)[row_B])
            assert torch.equal(answers.logits(row_B, view_B), logits[epoch % 3][row_B])
            seen += row_B.tolist()
        assert sorted(seen) == list(range(len(digits)))


def of(batches: Iterable[Any], answers: StoredAnswers, logits: Tensor) -> list[int]:
    """The rows of some batches, each with its own answer."""
    seen = []
    for batch in batches:
        assert torch.equal(answers.logits(batch.row, batch.view), logits[batch.view, batch.row])
        seen += batch.row.tolist()
    return seen


def test_subsets_sums_and_samplers_keep_rows_with_their_answers(
    stores: dict[str, Store], digits: Split, dataset: DistillationDataset, logits: Tensor
) -> None:
    answers, num_rows = StoredAnswers(stores["dense"]), len(digits)
    dataset.set_epoch(1)
    assert of(DataLoader(Subset(dataset, [5, 3, 3, 399])), answers, logits) == [5, 3, 3, 399]
    both: ConcatDataset[Example] = ConcatDataset([dataset, dataset])
    assert of(DataLoader(Subset(both, [num_rows + 7, 7])), answers, logits) == [7, 7]
    drawn = WeightedRandomSampler(np.arange(num_rows, dtype=float).tolist(), 50)
    assert len(of(DataLoader(dataset, batch_size=16, sampler=drawn), answers, logits)) == 50
    parts = [DistributedSampler[Example](dataset, num_replicas=2, rank=rank) for rank in range(2)]
    seen = [of(DataLoader(dataset, batch_size=64, sampler=part), answers, logits) for part in parts]
    assert set(seen[0] + seen[1]) == set(range(num_rows))


def test_rows_and_views_that_do_not_exist_are_refused(
    stores: dict[str, Store], digits: Split, dataset: DistillationDataset
) -> None:
    answers, last = StoredAnswers(stores["dense"]), len(digits) - 1
    for row in (-1, last + 1):
        with pytest.raises(IndexError, match=f"expected rows 0 to {last}, found {row}"):
            dataset[row]
        with pytest.raises(ValueError, match=f"expected rows from 0 to {last}, found {row}"):
            answers.logits(torch.tensor([row]), 0)
    for view in (-1, 3, torch.tensor([0, 3])):
        with pytest.raises(ValueError, match="expected views from 0 to 2, found"):
            answers.logits(torch.tensor([1, 2]), view)
    with pytest.raises(ValueError, match=r"expected rows as whole numbers \[B\], found torch.float32 \[1\]"):
        answers.logits(torch.tensor([1.0]), 0)
    with pytest.raises(ValueError, match="found 2 views for 3 rows"):
        answers.logits(torch.arange(3), torch.tensor([0, 1]))
    assert answers.logits(torch.arange(0), 0).shape == (0, 10)
    with pytest.raises(ValueError, match="epoch is -1"):
        dataset.set_epoch(-1)


def test_no_call_changes_what_another_returns(stores: dict[str, Store], digits: Split, logits: Tensor) -> None:
    answers, rows = StoredAnswers(stores["dense"]), torch.tensor([3, 900, 3])
    answer = answers.of(rows, 1)
    tail_warnings(answers, 4.0)
    answers.read_ahead(2)
    answers.logits(rows, 2)
    assert torch.equal(answer.logits(torch.zeros(3, 10), 1.0), logits[1, rows])
    answers.close()
    assert torch.equal(answers.logits(rows, torch.tensor([0, 1, 2])), logits[torch.tensor([0, 1, 2]), rows])


def test_a_copy_of_a_signal_answers_or_refuses(stores: dict[str, Store], logits: Tensor, tmp_path: Path) -> None:
    rows = torch.arange(5)
    for name in ("dense", "topk"):
        shutil.copytree(stores[name].path, tmp_path / name)
    answers = StoredAnswers(open_store(tmp_path / "dense"), memory_budget=100_000)
    packed = pickle.dumps(answers)
    for other in (pickle.loads(packed), copy.deepcopy(answers)):  # noqa: S301
        assert other.grouping == answers.grouping is not None
        assert torch.equal(other.logits(rows, 2), logits[2, rows])
    shutil.rmtree(tmp_path / "dense")
    (tmp_path / "topk").rename(tmp_path / "dense")
    with pytest.raises(ValueError, match=r"another store than the one .* open it again$"):
        pickle.loads(packed)  # noqa: S301


def test_a_copy_of_a_dataset_has_an_epoch_of_its_own(dataset: DistillationDataset) -> None:
    dataset.set_epoch(2)
    other = pickle.loads(pickle.dumps(dataset))  # noqa: S301
    assert other[3].view == 2
    other.set_epoch(1)
    assert (dataset[3].view, other[3].view) == (2, 1)
    loader = DataLoader(other, batch_size=500, num_workers=1, multiprocessing_context="fork", persistent_workers=True)
    assert {int(batch.view[0]) for batch in loader} == {1}
    other.set_epoch(0)
    assert {int(batch.view[0]) for batch in loader} == {0}


def test_a_view_of_two_examples_has_no_label(digits: Split, tmp_path: Path) -> None:
    np.save(tmp_path / "logits.npy", np.zeros((1, len(digits), 10), np.float32) - np.arange(10))
    answers = ArrayTeacher(tmp_path / "logits.npy", digits, Views(transform="mixup"))
    cache_teacher(answers, tmp_path / "s.zarr", encoding=TOP_3)
    assert DistillationDataset(open_store(tmp_path / "s.zarr"), digits)[0].label == -1


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")  # Lightning 2.6 with torch 2.13
@pytest.mark.parametrize("loss", ["rld", "taid"])
def test_the_documented_loops_have_the_loss_of_train_student(
    stores: dict[str, Store], digits: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    """Warm-ups, schedules, views and rows without a known order enter each loop's loss; the student stands still."""
    prepare_torchvision()  # which Lightning imports
    found: list[tuple[int, float]] = []
    ask = Objective.__call__

    def asked(
        self: Objective, student_BC: Tensor, answer: Answer, labels_B: Tensor, step: Step, captured: Any = None
    ) -> Tensor:
        loss_B = ask(self, student_BC, answer, labels_B, step, captured)
        found.append((step.epoch, float(loss_B.detach().sum())))
        return loss_B

    monkeypatch.setattr(Objective, "__call__", asked)
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "how-to" / "own-loop.md").read_text()
    program: dict[str, Any] = {"__name__": "page"}
    epochs: dict[str, dict[int, float]] = {}
    for block in (block for block in blocks(page) if block.kind == "python"):
        text = block.text
        for old, new in (
            ("lr=0.1", "lr=1e-30"),
            ("EPOCHS = 8", "EPOCHS = 2"),
            ('logitbank.parse_objective("kd", {"temperature": 2})', f"logitbank.parse_objective({loss!r})"),
            ('"digits.zarr"', repr(str(stores["topk"].path))),
        ):
            text = text.replace(old, new)
        exec(compile(text, "page", "exec"), program)
        if found:
            sums = {epoch: sum(value for at, value in found if at == epoch) for epoch in (1, 2)}
            epochs[text] = {epoch: value / len(digits) for epoch, value in sums.items()}
            found.clear()
    assert len(epochs) == 3
    save_weights(tmp_path / "init.safetensors", program["student"], {"architecture": "mlp:128"})
    init = str(tmp_path / "init.safetensors")
    settings = {"student": "mlp:128", "loss": loss, "epochs": 2, "lr": 1e-30, "init": init}
    train(stores["topk"], digits, None, tmp_path / "run", asked=settings)
    with (tmp_path / "run" / HISTORY).open() as file:
        own = [float(row["loss"]) for row in csv.DictReader(file)]
    assert own[1] != pytest.approx(own[0], rel=1e-3)
    for losses in epochs.values():
        # taid's target moves by step, so the order of rows makes a difference
        assert [losses[1], losses[2]] == pytest.approx(own, rel=1e-5 if loss == "rld" else 2e-2)
