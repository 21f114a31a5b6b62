"""What a training does to samples beside the views: random erasing, mixup of pairs and of their losses, drop path."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from logitbank.pipeline.cache_teacher.run import cache_teacher
from logitbank.pipeline.cache_teacher.teachers.arrays import ArrayTeacher
from logitbank.pipeline.datasets import Split, load_split
from logitbank.pipeline.encoding import Encoding
from logitbank.pipeline.fit import Training
from logitbank.pipeline.fit.augment import Augmentation, partner
from logitbank.pipeline.fit.feed import Feed
from logitbank.pipeline.models import build_model
from logitbank.pipeline.processes.together import Processes
from logitbank.pipeline.train_student.losses import ExactAnswer, Step, parse_objective
from logitbank.pipeline.views import Views
from logitbank.stores import Store, open_store
from tests.students import train

KEYS = np.random.default_rng(0).integers(0, 2**63, size=1000).astype(np.uint64)
ROWS = torch.randperm(1000, generator=torch.Generator().manual_seed(1))
IMAGES = torch.randn(len(ROWS), 3, 16, 16, generator=torch.Generator().manual_seed(2))


def erased(training: Training, rows: Tensor, epoch: int = 0) -> Tensor:
    return Augmentation(training, KEYS).apply(IMAGES[rows].clone(), rows, epoch)


@pytest.fixture(scope="module")
def store(digits: Split, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("stores")
    logits = np.random.default_rng(5).normal(scale=2, size=(len(digits), 10)).astype(np.float32)
    np.save(folder / "l.npy", logits)
    answers = ArrayTeacher(folder / "l.npy", digits, Views())
    cache_teacher(answers, folder / "s.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=16))
    return open_store(folder / "s.zarr")


def test_erasing_is_a_function_of_seed_example_and_epoch() -> None:
    training = Training(random_erasing=0.4)
    whole = erased(training, ROWS)
    changed_B = (whole != IMAGES[ROWS]).flatten(1).any(1)
    assert 0.33 < float(changed_B.float().mean()) < 0.47
    one = torch.cat([erased(training, part) for part in torch.split(ROWS, 7)])
    assert torch.equal(one, whole)  # in any company, so in any number of processes
    shuffled = torch.randperm(len(ROWS))
    assert torch.equal(erased(training, ROWS[shuffled]), whole[shuffled])
    for other in (erased(training, ROWS, epoch=1), erased(replace(training, seed=1), ROWS)):
        assert not torch.equal(other, whole)
    image, before = whole[changed_B][0], IMAGES[ROWS][changed_B][0]
    rows, columns = ((image != before).any(0).any(axis).nonzero().flatten() for axis in (1, 0))
    box = (image != before)[:, rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    assert box.all()  # one rectangle, of noise in every channel
    assert 0.02 * 0.5 <= box[0].numel() / 256 <= 1 / 3 + 0.1


def test_erasing_leaves_global_random_numbers_alone() -> None:
    random.seed(4)
    torch.manual_seed(4)
    expected = random.random(), torch.rand(3)
    random.seed(4)
    torch.manual_seed(4)
    erased(Training(random_erasing=1.0), ROWS[:9])
    assert random.random() == expected[0]
    assert torch.equal(torch.rand(3), expected[1])


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_drawn_from_beta(alpha: float) -> None:
    from scipy import stats

    keys = np.arange(20_000, dtype=np.uint64)
    share_N = Augmentation(Training(mixup=alpha), keys)._share(torch.arange(20_000), 0).numpy()
    assert share_N.min() >= 0.5
    drawn = np.concatenate([share_N, 1 - share_N])
    assert stats.kstest(drawn, stats.beta(alpha, alpha).cdf).statistic < 0.01


def test_pairs_stay_together_however_a_batch_is_cut() -> None:
    """Mixed samples, with their losses, are the same in one process and in three, in one pass and in two."""
    split = load_split("digits")
    training = Training(mixup=1.0, batch_size=38, accumulate=2)
    augmentation = Augmentation(training, split.keys)
    order = torch.randperm(95, generator=torch.Generator().manual_seed(0))  # the last batch is odd

    def mixed(count: int, passes: int) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for number in range(count):
            processes = Processes(number=number, count=count)
            own = replace(training, accumulate=passes)
            feed = Feed(split, Views(), own, processes, fit=None, workers=0, pinned=False, least_rows=2)
            for _, parts in feed.steps(feed.batches(order), 0):
                for rows_B, samples in parts:
                    shown = augmentation.apply(samples.float(), rows_B, 3)
                    loss_B = augmentation.loss(lambda rows: rows.double(), rows_B, 3)
                    found |= {
                        int(row): torch.cat([image.flatten().double(), loss[None]])
                        for row, image, loss in zip(rows_B, shown, loss_B, strict=True)
                    }
        return found

    one = mixed(1, 1)
    assert sorted(one) == sorted(order.tolist())
    for count, passes in ((1, 2), (2, 1), (3, 1), (3, 2)):
        other = mixed(count, passes)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[row], other[row]) for row in one)


def test_the_partner_of_a_place() -> None:
    assert partner(6).tolist() == [1, 0, 3, 2, 5, 4]
    assert partner(5).tolist() == [1, 0, 3, 2, 4]


@pytest.mark.parametrize("loss", ["kd", "kd ce_weight=0", "soft_ce", "ce"])
def test_mixed_losses_have_the_gradient_of_mixed_probabilities(loss: str) -> None:
    """Where a loss is linear in the target, as function matching's is: then that is what function matching does."""
    name, _, setting = loss.partition(" ")
    objective = parse_objective(name, dict([setting.split("=")]) if "=" in setting else {})
    generator = torch.Generator().manual_seed(3)
    teacher_BC = torch.randn(8, 10, generator=generator, dtype=torch.float64) * 3
    student_BC = torch.randn(8, 10, generator=generator, dtype=torch.float64, requires_grad=True)
    labels_B = torch.randint(0, 10, (8,), generator=generator)
    augmentation = Augmentation(Training(mixup=1.0), KEYS)
    rows_B = torch.arange(8)

    def ask(rows: Tensor) -> Tensor:
        step = Step(step=0, steps_per_epoch=1, num_epochs=1)
        return objective(student_BC, ExactAnswer(teacher_BC[rows]), labels_B[rows], step)

    (found,) = torch.autograd.grad(augmentation.loss(ask, rows_B, 0).sum(), student_BC)
    own_B1 = augmentation._share(rows_B, 0)[:, None]

    def mixed(target_BC: Tensor) -> Tensor:
        return own_B1 * target_BC + (1 - own_B1) * target_BC[partner(8)]

    by_hand = torch.zeros((), dtype=torch.float64)
    for term in objective.terms:
        heat, hard = term.temperature, term.name == "ce"
        target_BC = mixed(F.one_hot(labels_B, 10).double() if hard else (teacher_BC / heat).softmax(1))
        by_hand = by_hand - term.weight * heat**2 * (target_BC * (student_BC / heat).log_softmax(1)).sum()
    (expected,) = torch.autograd.grad(by_hand, student_BC)
    torch.testing.assert_close(found, expected)


def test_what_does_nothing_is_refused(store: Store, digits: Split, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mixes two examples of a batch, and --batch-size is 1; expected at least 2"):
        Training(mixup=1.0, batch_size=1)
    with pytest.raises(ValueError, match="--drop-path is timm's, and 'cnn' has none; take a timm: model"):
        train(store, digits, None, tmp_path / "r", student="cnn", drop_path=0.1)
    with pytest.raises(ValueError, match="timm:vgg11 has no branches to skip; leave it out"):
        build_model("timm:vgg11", digits, drop_path=0.1)
    table = replace(digits, samples=digits.samples.reshape(len(digits), -1).astype(np.float32))
    rows = np.arange(len(digits))
    np.save(tmp_path / "l.npy", np.zeros((len(rows), 10), np.float32))
    answers = ArrayTeacher(tmp_path / "l.npy", table, Views())
    cache_teacher(answers, tmp_path / "t.zarr", encoding=Encoding(kind="dense", num_classes=10, bits=16))
    of_table = open_store(tmp_path / "t.zarr")
    with pytest.raises(ValueError, match="--random-erasing does nothing here, because .* holds no images"):
        train(of_table, table, None, tmp_path / "r", student="mlp:8", random_erasing=0.5)
    assert train(of_table, table, None, tmp_path / "r", student="mlp:8", mixup=0.2, epochs=1)["weights_sha256"]


def test_drop_path_is_the_models_own_and_only_while_it_is_trained(digits: Split) -> None:
    from timm.layers import DropPath  # type: ignore[attr-defined]

    colours = replace(digits, samples=np.repeat(digits.samples, 3, axis=3))
    torch.manual_seed(0)
    model = build_model("timm:resnet10t", colours, drop_path=0.3)
    torch.manual_seed(0)
    plain = build_model("timm:resnet10t", colours)
    assert max(module.drop_prob for module in model.modules() if isinstance(module, DropPath)) == pytest.approx(0.3)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), plain.eval()(images))


@pytest.mark.parametrize("settings", [{"mixup": 1.0}, {"random_erasing": 0.5}, {"mixup": 0.3, "random_erasing": 0.3}])
def test_they_change_the_student_and_depend_on_the_seed_alone(
    store: Store, digits: Split, tmp_path: Path, settings: dict[str, float]
) -> None:
    def digest(name: str, **more: Any) -> str:
        result = train(store, digits, None, tmp_path / name, student="cnn", epochs=1, batch_size=256, **more)
        found: str = result["weights_sha256"]
        return found

    plain, first = digest("plain"), digest("first", **settings)
    assert plain != first
    assert digest("threads", workers=2, **settings) == first
